"""What texts of the other side mean.

Texts below an address are transcribed from that public issue, with the names of people's things replaced; the others
are the words of the program itself, as measured or as its documentation has them.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glgpu.classify import RULES, explain
from glgpu.errors import ErrorClass

ROOT = Path(__file__).resolve().parents[2]

STOCKOUT = [
    # https://github.com/cloud-barista/cb-spider/issues/1125
    "Operation errors: The zone 'projects/my-dl/zones/us-central1-a' does not have enough resources available to "
    "fulfill the request.  '(resource type:compute)'.",
    # https://github.com/GoogleCloudPlatform/anthos-samples/pull/667
    "Error: Error waiting for instance to create: The zone 'projects/my-dl/zones/us-central1-a' does not have enough "
    "resources available to fulfill the request.  '(resource type:compute)'.\n\n\nA n1-standard-8 VM instance with 1 "
    "nvidia-tesla-k80 accelerator(s) is currently unavailable in the us-central1-a zone. Consider trying your request "
    "in the us-central1-c zone(s), which currently has capacity to accommodate your request.",
    # https://github.com/kubernetes/k8s.io/issues/9834 (as gcloud wraps it)
    "ERROR: (gcloud.compute.instances.create) Could not fetch resource:\n---\n- localizedMessage:\n    locale: en-US\n"
    "    message: A n1-standard-4 VM instance with 1 nvidia-tesla-t4 accelerator(s) is\n      currently unavailable in "
    "the us-central1-b zone.",
    "code: ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "message: The zone 'projects/my-dl/zones/us-central1-b' does\n  not have enough resources available to fulfill the "
    "request.",
    # https://github.com/Zhen-Dong/HAWQ/issues/4
    "The zone 'projects/my-dl/zones/us-central1-a' does not have enough resources available to fulfill the request. "
    "Try a different zone, or try again later.",
]
QUOTA_GLOBAL = [
    # https://github.com/fastai/course-v3/pull/165
    "ERROR: (gcloud.compute.instances.create) Could not fetch resource:\n - Quota 'GPUS_ALL_REGIONS' exceeded. Limit: "
    "0.0 globally.",
    # https://github.com/GoogleCloudPlatform/ai-on-gke/issues/849
    "Code: QUOTA_EXCEEDED\nMessage: Quota 'CPUS_ALL_REGIONS' exceeded.",
    # Measured with hashicorp/google 7.46
    "Error: Error creating instance: googleapi: Error 403: Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally., "
    "quotaExceeded",
]
QUOTA_REGION = [
    "Error: Error waiting for instance to create: Quota 'NVIDIA_T4_GPUS' exceeded.  Limit: 1.0 in region us-central1.",
    "Code: QUOTA_EXCEEDED\nMessage: Quota 'N2_CPUS' exceeded.",
    "googleapi: Error 403: Quota 'SSD_TOTAL_GB' exceeded.  Limit: 500.0 in region europe-west4., quotaExceeded",
]
RATE_LIMIT = [
    # https://github.com/hashicorp/terraform-provider-google/issues/8360
    'Error: Error when reading or editing ComputeReservation "one": googleapi: Error 403: Quota exceeded for quota '
    "group 'ReadGroup' and limit 'Read requests per user per 100 seconds' of service 'compute.googleapis.com' for "
    "consumer 'project_number:123456'., rateLimitExceeded",
    # https://github.com/hashicorp/terraform-provider-google/issues/8264
    "googleapi: Error 429: Quota exceeded for quota metric 'Read requests' and limit 'Read requests per minute' of "
    "service 'cloudresourcemanager.googleapis.com' for consumer 'project_number:123456'., rateLimitExceeded",
    # https://github.com/docker/hub-feedback/issues/2429
    "Error response from daemon: toomanyrequests: You have reached your pull rate limit. You may increase the limit by "
    "authenticating and upgrading: https://www.docker.com/increase-rate-limit",
    # https://github.com/docker/hub-feedback/issues/2464
    "Error response from daemon: toomanyrequests: You have reached your unauthenticated pull rate limit. "
    "https://www.docker.com/increase-rate-limit",
    # https://github.com/ScribeMD/docker-cache/issues/829
    "ERROR: failed to copy: httpReadSeeker: failed open: unexpected status code https://registry-1.docker.io/v2/library"
    "/rust/manifests/sha256:de6e: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull "
    "rate limit.",
]
PERMISSION = [
    # https://github.com/hashicorp/terraform-provider-google/issues/8638
    "Error: Error loading zone 'us-east1-c': googleapi: Error 403: Required 'compute.zones.get' permission for "
    "'projects/my-dl/zones/us-east1-c', forbidden",
    # https://github.com/jetstack/terraform-google-gke-cluster/issues/51
    "Error creating service account: googleapi: Error 403: Permission iam.serviceAccounts.create is "
    "required to perform "
    "this operation on project projects/my-dl., forbidden",
    # https://github.com/dora-team/fourkeys/issues/459
    "Error: Error creating Service: googleapi: Error 403: Permission \u2018iam.serviceaccounts.actAs\u2019 denied on "
    "service account vm@my-dl.iam.gserviceaccount.com (or it may not exist).",
    # https://github.com/kubicorn/kubicorn/issues/475
    'error: [\n   0: {\n    code: "SERVICE_ACCOUNT_ACCESS_DENIED"',
    "googleapi: Error 400: The user does not have access to service account 'vm@my-dl.iam.gserviceaccount.com'.",
]
AUTH = [
    # https://github.com/jenkins-x/terraform-google-jx/issues/108
    "Error: google: could not find default credentials. See https://developers.google.com/accounts/docs/"
    "application-default-credentials for more information.",
    # https://github.com/eatonc/actual-gcp/issues/3
    "│ Error: Attempted to load application default credentials since neither `credentials` nor `access_token` was set "
    "in the provider block.  No credentials loaded.",
    # https://github.com/dwzhu-pku/PaperBanana/issues/26
    "Error: Your default credentials were not found. To set up Application Default Credentials, see https://"
    "cloud.google.com/docs/authentication/external/set-up-adc for more information.",
    # https://github.com/circleci/circleci-docs/pull/8541
    "google.auth.exceptions.OAuthError: ('Error code unauthorized_client: The given credential is rejected by the "
    'attribute condition.\', \'{"error":"unauthorized_client"}\')',
    # https://github.com/google-github-actions/auth/issues/334
    '(\'Error code invalid_target: The target service indicated by the "audience" parameters is invalid. This might '
    "either be because the pool or provider is disabled or deleted or because it doesn't exist.')",
    # https://github.com/googleapis/google-cloud-go/issues/12440
    'status code 400: {"error":"invalid_grant","error_description":"ID Token issued at 1749625771 is '
    'stale to sign-in."}',
    # https://github.com/googleapis/google-cloud-python/issues/15186
    '(\'Unable to acquire impersonated credentials\', \'{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}\')',
]
ORG_POLICY = [
    # https://github.com/gardener/gardener-extension-provider-gcp/issues/415
    "googleapi: Error 412: Constraint constraints/compute.vmExternalIpAccess violated for project my-dl. Add instance "
    "projects/my-dl/zones/z/instances/i to the constraint to use external IP with it., conditionNotMet",
    # https://github.com/fortinet/fortigate-terraform-deploy/issues/34
    "Error: Error creating instance: googleapi: Error 412: Constraint constraints/compute.requireShieldedVm violated "
    "for project projects/my-dl. The boot disk's 'initialize_params.source_image' field specifies a non-Shielded image",
    # https://github.com/GoogleCloudPlatform/iap-desktop/issues/866
    'ERROR: (gcloud.compute.start-iap-tunnel) Error while connecting [4054: \n"Request is prohibited by '
    "organization's "
    'policy. ID: wRKq"].\nkex_exchange_identification: Connection closed by remote host',
]
API_DISABLED = [
    # https://github.com/midl-dev/tezos-on-gke/issues/34
    "Error: Error when reading or editing Subnetwork Not Found : default: googleapi: Error 403: Compute Engine API has "
    "not been used in project 1 before or it is disabled. Enable it by visiting https://console.developers.google.com/"
    "apis/api/compute.googleapis.com/overview?project=1 then retry., accessNotConfigured",
    # https://github.com/fog/fog/issues/3996
    "Google::Apis::ClientError: accessNotConfigured: Access Not Configured. Compute Engine API has not been used in "
    "project 2 before or it is disabled.",
    # https://github.com/coreos/tectonic-installer/pull/2324
    "googleapi: Error 403: Google Identity and Access Management (IAM) API has not been used in project "
    "tectonic before "
    "or it is disabled. Enable it by visiting https://console.developers.google.com/apis/api/iam.googleapis.com/"
    "overview?project=tectonic then retry., accessNotConfigured",
]
BILLING = [
    # https://github.com/kyegomez/zeta/issues/71
    "ERROR: (gcloud.services.enable) FAILED_PRECONDITION: Billing account for project '52' is not found. "
    "Billing must be "
    "enabled for activation of service(s) 'compute.googleapis.com' to proceed.",
    # https://github.com/GoogleCloudPlatform/java-docs-samples/issues/276
    '"message" : "Project my-dl (#808) has billing disabled. Please enable it.",\n"status" : "PERMISSION_DENIED"',
    # https://github.com/attacksurge/ax/issues/20
    "Billing is not enabled for project []. Please enable billing to proceed.",
]
STATE_ACCESS = [
    # https://github.com/l2fprod/serverless-terraform-backend/issues/2
    "Initializing the backend...\nError refreshing state: HTTP remote state endpoint requires auth",
    # A Developer's token, which may read a state but not lock it: terraform_state.md of GitLab's documentation
    "Error: Error acquiring the state lock\n\nError message: HTTP remote state endpoint invalid auth\n\nTerraform "
    "acquires a state lock to protect the state from being written\nby multiple users at the same time.",
    # https://github.com/hashicorp/setup-terraform/issues/127
    "Error loading state: Error creating workspace one: resource not in place",
]
STATE_LOCK = [
    # https://github.com/radius-project/radius/issues/10179
    "Error: Error acquiring the state lock\n\nError message: the state is already locked by another terraform client\n"
    "Lock Info:\n  ID:        3d20d141-88c4-bb14-d677-88c5c9ec329a\n  Operation: OperationTypeApply",
    # https://github.com/nimbolus/terraform-backend/pull/29
    "│ Error: Error acquiring the state lock\n│ \n│ Error message: HTTP remote state already locked, "
    "failed to unmarshal",
    # https://github.com/khuedoan/homelab/issues/170
    "╷\n│ Error: Error acquiring the state lock\n│ \n│ Error message: resource not in place\n│ ",
]
IMAGE = [
    # https://github.com/terraform-google-modules/cloud-foundation-training/issues/55
    "│ Error: Error resolving image name 'debian-cloud/debian-9': Could not find image or family debian-cloud/debian-9",
    # https://github.com/hashicorp/terraform-provider-google/issues/9522
    "googleapi: Error 404: The resource 'projects/my-dl/global/images/family/rocky-linux-8' was not found, notFound",
    "googleapi: Error 400: Invalid value for field 'resource.disks[0].initializeParams.sourceImage': 'https://www."
    "googleapis.com/x'. The referenced image resource cannot be found., invalid",
]
NOT_AVAILABLE = [
    # https://github.com/bsteuber/lizzie-gcloud-setup/issues/6
    "ERROR: (gcloud.compute.instances.create) Could not fetch resource:\n - The resource 'projects/my-dl/zones/"
    "europe-west2-c/acceleratorTypes/nvidia-tesla-v100' was not found",
    # https://github.com/taskcluster/community-tc-config/pull/75
    "Invalid value for field 'resource.machineType': 'zones/us-east4-a/machineTypes/n2-highcpu-16'. Machine type with "
    "name 'n2-highcpu-16' does not exist in zone 'us-east4-a'.",
]
CONFIG = [
    # https://github.com/iterative/cml/issues/1398
    "terraform error: Error: Failed creating the machine: googleapi: Error 400: Instances with guest "
    "accelerators do not "
    "support live migration., badRequest",
    # https://github.com/GoogleCloudPlatform/cluster-toolkit/issues/4787
    "<HttpError 400 when requesting https://compute.googleapis.com returned \"Invalid value for field 'resource."
    "instanceProperties': CT machine types are not supported in regional scope.\">",
]
CONFLICT = [
    "googleapi: Error 409: The resource 'projects/my-dl/zones/z/instances/glgpu-1' already exists, alreadyExists",
    "googleapi: Error 400: The disk resource 'projects/my-dl/zones/z/disks/d' is already being used by 'projects/my-dl/"
    "zones/z/instances/i', resourceInUseByAnotherResource",
    "googleapi: Error 412: Supplied fingerprint does not match current metadata fingerprint., conditionNotMet",
]
IMAGE_PULL = [
    # https://github.com/docker/for-win/issues/9562
    "Error response from daemon: pull access denied for utils, repository does not exist or may require "
    "'docker login': "
    "denied: requested access to the resource is denied",
    # https://github.com/kubernetes/website/issues/14257
    'Failed to pull image "auth:latest": rpc error: code = Unknown desc = Error response from daemon: '
    "pull access denied "
    "for auth, repository does not exist or may require 'docker login'",
    "Error response from daemon: manifest for python:3.99 not found: manifest unknown: manifest unknown",
    'Error response from daemon: Head "https://registry.example.com/v2/team/train/manifests/1": denied: '
    "access forbidden",
    'Error response from daemon: Get "https://registry.example.com/v2/": unauthorized: HTTP Basic: Access denied.',
]
DRIVER = [
    # https://github.com/NVIDIA/nvidia-docker/issues/1034
    'docker: Error response from daemon: could not select device driver "" with capabilities: '
    "[[gpu]].\nERRO[0000] error "
    "waiting for container: context canceled",
    # https://github.com/ggml-org/llama.cpp/issues/9665
    "docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime "
    "create failed: runc create failed: unable to start container process: error during container init: error running "
    "hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: "
    "requirement error: "
    "unsatisfied condition: cuda>=12.6, please update your driver to a newer version, or use an earlier "
    "cuda container: "
    "unknown.",
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
    "Failed to initialize NVML: Driver/library version mismatch",
]
CODE = [
    # https://github.com/sameersbn/docker-gitlab/issues/1561
    "Cloning into 'code'...\nGitLab: The project you were looking for could not be found.\nfatal: Could not read from "
    "remote repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.",
    # https://github.com/berndpfrommer/tagslam_root/issues/10
    "Cloning into '/home/user/src/apriltag'...\ngit@example.com: Permission denied (publickey).\nfatal: Could not read "
    "from remote repository.",
    # https://github.com/eliotsykes/real-world-rails/issues/205
    "ERROR: Repository not found.\nfatal: Could not read from remote repository.",
    "fatal: remote error: upload-pack: not our ref 0123456789012345678901234567890123456789",
]
DISK_FULL = [
    # https://github.com/NVIDIA/nvidia-docker/issues/792
    "failed to register layer: Error processing tar file(exit status 1): write "
    "/usr/share/vim/vim74/syntax/sisu.vim: no "
    "space left on device",
    # https://github.com/docker/for-win/issues/13751
    "failed to register layer: no space left on device",
]
SSH = [
    # https://github.com/ZcashFoundation/zebra/issues/5362
    "ERROR: (gcloud.compute.start-iap-tunnel) Error while connecting [4010: 'destination read failed'].\n"
    "kex_exchange_identification: Connection closed by remote host",
    # https://github.com/terraform-google-modules/terraform-google-bastion-host/issues/58
    "ERROR: (gcloud.beta.compute.start-iap-tunnel) Error while connecting [4003: 'failed to connect to backend'].",
    "ssh: connect to host 203.0.113.7 port 22: Connection timed out",
    "glgpu@203.0.113.7: Permission denied (publickey).",
]
NETWORK = [
    # https://github.com/hashicorp/terraform-provider-google/issues/10704
    'Post "https://oauth2.googleapis.com/token": proxyconnect tcp: dial tcp: lookup http: no such host',
    'Get "https://compute.googleapis.com/compute/v1/projects/p": dial tcp 142.250.1.95:443: i/o timeout',
    "HTTPSConnectionPool(host='gitlab.example.com', port=443): Max retries exceeded with url: /api/v4/projects/1",
    "x509: certificate signed by unknown authority",
    "ssh: Could not resolve hostname gitlab.example.com: Name or service not known\nfatal: Could not read from remote "
    "repository.",
    'Error: Error acquiring the state lock\n\nError message: Post "https://gitlab.example.com/api/v4/lock": dial tcp '
    "10.0.0.1:443: connect: connection refused",
]
TRANSIENT = [
    "googleapi: Error 503: The service is currently unavailable., backendError",
    "503 POST https://compute.googleapis.com/compute/v1/projects/p/zones/z/instances: try again",
    "Internal error. Please try again or contact Google Support. (Code: '5F1B2C3D')",
    "googleapi: Error 400: The resource 'projects/p/global/networks/n' is not ready, resourceNotReady",
    "received unexpected HTTP status: 502 Bad Gateway",
]
NOT_FOUND = [
    "googleapi: Error 404: The resource 'projects/my-dl/global/networks/vpc' was not found, notFound",
    "404 GET https://compute.googleapis.com/compute/v1/projects/no-project: The resource 'projects/no-project' was not "
    "found",
]
OOM = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."]
UNKNOWN = [
    "",
    'Error: Unsupported argument\n\n  on main.tf line 502, in resource "x" "y":\n 429: foo = 1',
    "PermissionError: [Errno 13] Permission denied: '/data'",
    "timeout while waiting for state to become 'DONE' (last state: 'RUNNING', timeout: 20m0s)",
    "4290 files, 503 of them new",
]

CASES = [(klass, text) for klass in ErrorClass for text in globals().get(klass.name, [])]


@pytest.mark.parametrize(("klass", "text"), CASES, ids=[f"{klass}-{text[:40]!r}" for klass, text in CASES])
def test_a_text_has_the_class_that_it_deserves(klass: ErrorClass, text: str) -> None:
    failure = explain(text)
    assert failure.klass is klass
    assert failure.evidence == text
    assert failure.cause
    assert failure.remedy
    assert "\n" not in failure.cause + failure.remedy
    assert "{" not in failure.remedy


def test_every_rule_is_the_answer_to_a_text_above() -> None:
    def first(text: str) -> int | None:
        plain = text.replace("│", " ")
        return next((number for number, rule in enumerate(RULES) if rule.pattern.search(plain)), None)

    used = {first(text) for _, text in CASES} - {None}
    assert sorted(set(range(len(RULES))) - used) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (QUOTA_GLOBAL[0], "GPUS_ALL_REGIONS"),
        (QUOTA_REGION[0], "NVIDIA_T4_GPUS is used up (Limit: 1.0 in region us-central1)"),
        (PERMISSION[0], "lacks the permission compute.zones.get"),
        (PERMISSION[2], "lacks the permission iam.serviceaccounts.actAs"),
        (ORG_POLICY[0], "compute.vmExternalIpAccess"),
        (API_DISABLED[0], "the Compute Engine API is not enabled"),
        (API_DISABLED[2], "the Google Identity and Access Management (IAM) API is not enabled"),
        (STOCKOUT[1], "does not have enough resources"),
        ("something else\n\nmore", "something else"),
        ("\n \n", "no reason given"),
    ],
)
def test_the_cause_says_what_it_is_about(text: str, said: str) -> None:
    assert said in explain(text).cause


def test_the_remedy_names_the_api_to_enable() -> None:
    assert (
        explain(API_DISABLED[0]).remedy == "enable it: gcloud services enable compute.googleapis.com --project PROJECT"
    )
    assert explain(API_DISABLED[2]).remedy == "enable it: gcloud services enable iam.googleapis.com --project PROJECT"


def test_what_was_being_done_begins_the_cause() -> None:
    assert explain("no such thing", doing="terraform apply").cause == "terraform apply: no such thing"


def test_the_caller_says_what_an_unknown_text_is() -> None:
    assert explain("no idea", unknown=ErrorClass.TERRAFORM).klass is ErrorClass.TERRAFORM
    assert explain("no space left on device", unknown=ErrorClass.TERRAFORM).klass is ErrorClass.DISK_FULL


@given(text=st.text())
def test_any_text_is_explained_and_kept(text: str) -> None:
    assert explain(text).evidence == text


def test_a_text_of_5_mb_is_explained_in_a_moment() -> None:
    begin = time.process_time()
    failure = explain("A" * 5_000_000 + "\ngoogleapi: Error 503: backendError")
    assert failure.klass is ErrorClass.TRANSIENT
    assert time.process_time() - begin < 5


def test_the_pages_that_remedies_name_exist() -> None:
    pages = {page for rule in RULES for page in re.findall(r"docs/[\w./-]+\.md", rule.remedy)}
    assert pages
    assert all((ROOT / page).exists() for page in pages)
