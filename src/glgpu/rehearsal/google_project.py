"""Service Usage, Resource Manager, Organization Policy and Cloud Billing, as far as one project goes."""

from __future__ import annotations

import secrets
from typing import Any

from glgpu.rehearsal.compute_resources import Resource
from glgpu.rehearsal.google_access import tested
from glgpu.rehearsal.google_errors import (
    ERROR_INFO,
    Refusal,
    caller_denied,
    denied,
    not_found,
    not_served,
    service_denied,
)
from glgpu.rehearsal.google_requests import Handler, Project, Request, stamp
from glgpu.rehearsal.google_skus import COMPUTE_ENGINE, skus

TITLES = {
    "cloudbilling.googleapis.com": "Cloud Billing API",
    "cloudquotas.googleapis.com": "Cloud Quotas API",
    "cloudresourcemanager.googleapis.com": "Cloud Resource Manager API",
    "compute.googleapis.com": "Compute Engine API",
    "iam.googleapis.com": "Identity and Access Management (IAM) API",
    "iamcredentials.googleapis.com": "IAM Service Account Credentials API",
    "iap.googleapis.com": "Cloud Identity-Aware Proxy API",
    "logging.googleapis.com": "Cloud Logging API",
    "monitoring.googleapis.com": "Cloud Monitoring API",
    "orgpolicy.googleapis.com": "Organization Policy API",
    "oslogin.googleapis.com": "Cloud OS Login API",
    "servicemanagement.googleapis.com": "Service Management API",
    "serviceusage.googleapis.com": "Service Usage API",
    "storage-api.googleapis.com": "Google Cloud Storage JSON API",
    "storage-component.googleapis.com": "Cloud Storage",
    "storage.googleapis.com": "Cloud Storage API",
    "sts.googleapis.com": "Security Token Service API",
}
"""The services that exist here."""

BROUGHT_ALONG = {"compute.googleapis.com": ("oslogin.googleapis.com",)}
"""What a service switches on together with itself."""

NEEDS_BILLING = frozenset({"compute.googleapis.com"})

AT_BIRTH = frozenset(
    {
        "cloudresourcemanager.googleapis.com",
        "logging.googleapis.com",
        "monitoring.googleapis.com",
        "servicemanagement.googleapis.com",
        "serviceusage.googleapis.com",
        "storage-api.googleapis.com",
        "storage-component.googleapis.com",
        "storage.googleapis.com",
    }
)
"""What is on in a new project. Google counts a person's calls of Resource Manager elsewhere; here it is simply on."""

BOOLEAN_CONSTRAINTS = frozenset(
    {
        "compute.disableGuestAttributesAccess",
        "compute.disableSerialPortAccess",
        "compute.requireOsLogin",
        "compute.requireShieldedVm",
        "compute.skipDefaultNetworkCreation",
        "iam.disableServiceAccountCreation",
        "iam.disableServiceAccountKeyCreation",
        "storage.publicAccessPrevention",
        "storage.uniformBucketLevelAccess",
    }
)
LIST_CONSTRAINTS = frozenset(
    {
        "compute.restrictNonConfidentialComputing",
        "compute.trustedImageProjects",
        "compute.vmExternalIpAccess",
        "gcp.resourceLocations",
        "gcp.restrictServiceUsage",
        "iam.workloadIdentityPoolProviders",
    }
)

BILLING_ACCOUNT = "billingAccounts/01A2B3-C4D5E6-F70819"
PAGE_SIZE = 50
LARGEST_PAGE = 200
LARGEST_SKU_PAGE = 5000


class ProjectServices:
    """The handlers."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def handlers(self) -> dict[str, Handler]:
        """Method to handler."""
        found: dict[str, Handler] = {
            "serviceusage.services.list": self._list_services,
            "serviceusage.services.get": self._get_service,
            "serviceusage.services.batchGet": self._batch_get,
            "serviceusage.services.enable": self._enable,
            "serviceusage.services.disable": self._disable,
            "serviceusage.services.batchEnable": self._batch_enable,
            "serviceusage.operations.get": self._operation,
            "orgpolicy.projects.policies.getEffectivePolicy": self._effective_policy,
            "cloudbilling.projects.getBillingInfo": self._billing,
            "cloudbilling.services.skus.list": self._list_skus,
            "cloudresourcemanager.projects.get": self._get_project,
            "cloudresourcemanager.projects.getIamPolicy": self._get_policy,
            "cloudresourcemanager.projects.setIamPolicy": self._set_policy,
            "cloudresourcemanager.projects.testIamPermissions": self._test_permissions,
        }
        return found

    # Service Usage

    def _list_services(self, request: Request) -> Resource:
        self._require_usage(request, "list", f"list services for consumer container [projects/{self._project.number}]")
        wanted = {"state:ENABLED": (True,), "state:DISABLED": (False,), "": (True, False)}
        if request.query.get("filter", "") not in wanted:
            raise Refusal(400, "The filter is invalid. Allowed: state:ENABLED, state:DISABLED.")
        states = wanted[request.query.get("filter", "")]
        names = [name for name in sorted(TITLES) if (name in self._project.services) in states]
        size = min(int(request.query.get("pageSize") or PAGE_SIZE), LARGEST_PAGE)
        begin = int(request.query.get("pageToken") or 0)
        page: Resource = {"services": [self._service(name) for name in names[begin : begin + size]]}
        if begin + size < len(names):
            page["nextPageToken"] = str(begin + size)
        return page

    def _get_service(self, request: Request) -> Resource:
        service = request.names["name"].rpartition("/")[2]
        self._require_usage(request, "get", f"get service [{service}]")
        self._known([service])
        return self._service(service)

    def _batch_get(self, request: Request) -> Resource:
        self._require_usage(request, "get", "get services")
        names = request.query.get("names", "").split(",")
        return {"services": [self._service(name.rpartition("/")[2]) for name in names]}

    def _enable(self, request: Request) -> Resource:
        service = request.names["name"].rpartition("/")[2]
        self._switch_on(request, [service])
        return self._begun({"service": self._service(service)}, "EnableServiceResponse")

    def _batch_enable(self, request: Request) -> Resource:
        services = [str(name) for name in request.body.get("serviceIds", [])]
        if not 0 < len(services) <= 20:
            raise Refusal(400, "A batch must have 1 to 20 services.")
        self._switch_on(request, services)
        return self._begun({"services": [self._service(name) for name in services]}, "BatchEnableServicesResponse")

    def _disable(self, request: Request) -> Resource:
        service = request.names["name"].rpartition("/")[2]
        self._require_usage(request, "disable", f"disable service [{service}]")
        self._known([service])
        self._project.services.discard(service)
        return self._begun({"service": self._service(service)}, "DisableServiceResponse")

    def _switch_on(self, request: Request, services: list[str]) -> None:
        self._require_usage(request, "enable", f"enable service [{', '.join(services)}]")
        self._known(services)
        paid = NEEDS_BILLING & set(services)
        if paid and not self._project.billing:
            raise Refusal(
                400,
                f"Billing account for project '{self._project.number}' is not found. Billing must be enabled for "
                f"activation of service(s) '{','.join(sorted(paid))}' to proceed.",
                status="FAILED_PRECONDITION",
                details=[
                    {
                        "@type": ERROR_INFO,
                        "reason": "UREQ_PROJECT_BILLING_NOT_FOUND",
                        "domain": "serviceusage.googleapis.com/billing-enabled",
                        "metadata": {"services": ",".join(sorted(paid))},
                    }
                ],
            )
        for service in services:
            self._project.services.update({service, *BROUGHT_ALONG.get(service, ())})

    def _require_usage(self, request: Request, verb: str, action: str) -> None:
        container = request.names.get("parent") or "/".join(request.names["name"].split("/")[:2])
        if not self._project.is_meant(container) or not self._project.allows(request, f"serviceusage.services.{verb}"):
            raise service_denied(action)

    def _known(self, services: list[str]) -> None:
        unknown = [service for service in services if service not in TITLES]
        if unknown:
            info = {
                "@type": ERROR_INFO,
                "reason": "SERVICE_CONFIG_NOT_FOUND_OR_PERMISSION_DENIED",
                "domain": "serviceusage.googleapis.com",
                "metadata": {"services": ",".join(unknown)},
            }
            raise Refusal(403, f"Not found or permission denied for service(s): {', '.join(unknown)}.", details=[info])

    def _service(self, name: str) -> Resource:
        parent = f"projects/{self._project.number}"
        return {
            "name": f"{parent}/services/{name}",
            "parent": parent,
            "config": {"name": name, "title": TITLES[name]},
            "state": "ENABLED" if name in self._project.services else "DISABLED",
        }

    def _begun(self, response: Resource, kind: str) -> Resource:
        name = f"operations/acat.p2-{self._project.number}-{secrets.token_hex(16)}"
        typed = {"@type": f"type.googleapis.com/google.api.serviceusage.v1.{kind}", **response}
        return self._project.operation(name, typed)

    def _operation(self, request: Request) -> Resource:
        return self._project.look_at(request.names["name"])

    # Organization Policy and Cloud Billing

    def _effective_policy(self, request: Request) -> Resource:
        _, project, _, constraint = request.names["name"].split("/")
        if not self._project.is_meant(project) or not self._project.allows(request, "orgpolicy.policy.get"):
            raise denied("orgpolicy.policy.get", f"projects/{project}")
        if constraint in BOOLEAN_CONSTRAINTS:
            rules: list[Resource] = [{"enforce": False}]
        elif constraint in LIST_CONSTRAINTS:
            rules = [{"allowAll": True}]
        else:
            raise not_found()
        rules = self._project.policies.get(constraint, rules)
        return {"name": f"projects/{self._project.number}/policies/{constraint}", "spec": {"rules": rules}}

    def _billing(self, request: Request) -> Resource:
        self._require_project(
            request, "projects/" + request.names["name"].split("/")[1], "resourcemanager.projects.get"
        )
        found: dict[str, Any] = {"name": f"projects/{self._project.id}/billingInfo", "projectId": self._project.id}
        return found | (
            {"billingAccountName": BILLING_ACCOUNT, "billingEnabled": True} if self._project.billing else {}
        )

    def _list_skus(self, request: Request) -> Resource:
        """Compute Engine's price list; whoever is known to Google may read it."""
        if request.names["parent"] != COMPUTE_ENGINE:
            raise not_found()
        if request.query.get("currencyCode", "USD") != "USD":
            raise not_served("another currency than USD")
        found = skus()
        begin, size = int(request.query.get("pageToken") or 0), int(request.query.get("pageSize") or LARGEST_SKU_PAGE)
        end = begin + min(size, LARGEST_SKU_PAGE)
        return {"skus": found[begin:end], "nextPageToken": str(end) if end < len(found) else ""}

    # Resource Manager

    def _get_project(self, request: Request) -> Resource:
        named = request.names.get("projectId") or request.names["name"]
        self._require_project(request, named, "resourcemanager.projects.get")
        if "name" in request.names:
            return {
                "name": f"projects/{self._project.number}",
                "projectId": self._project.id,
                "displayName": self._project.id,
                "state": self._project.state,
                "createTime": stamp(0),
            }
        return {
            "projectId": self._project.id,
            "projectNumber": self._project.number,
            "name": self._project.id,
            "lifecycleState": self._project.state,
            "createTime": stamp(0),
        }

    def _get_policy(self, request: Request) -> Resource:
        self._require_project(request, request.names["resource"], "resourcemanager.projects.getIamPolicy")
        return self._project.access.policy.shown()

    def _set_policy(self, request: Request) -> Resource:
        self._require_project(request, request.names["resource"], "resourcemanager.projects.setIamPolicy")
        access = self._project.access
        access.policy = access.checked(request.body.get("policy", {}), access.policy)
        return access.policy.shown()

    def _test_permissions(self, request: Request) -> Resource:
        if not self._project.is_meant(request.names["resource"]):
            raise caller_denied()
        held = [p for p in tested(request.body.get("permissions", [])) if self._project.allows(request, p)]
        return {"permissions": held} if held else {}

    def _require_project(self, request: Request, project: str, permission: str) -> None:
        if not self._project.is_meant(project) or not self._project.allows(request, permission):
            raise caller_denied()
