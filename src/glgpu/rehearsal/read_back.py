"""Reads back, raw and without any of glgpu, what is left in the stand-ins; run as a program of its own.

Standard input: a JSON object with ``compute``, ``google`` and ``gitlab`` (base addresses), ``project``,
``google_token``, ``buckets``, ``gitlab_token`` (an administrator's), ``gitlab_project`` (id), ``gitlab_path`` and
``known_tokens`` (names of tokens that were there before). Standard output: a JSON object of lists, all empty when
nothing is left. Outputs that are kept on purpose, as packages or in a bucket, are the team's and count as nothing left.
"""

import json
import sys
import urllib.request
from typing import Any

KEPT_PACKAGES = ("glgpu-train", "glgpu-notebook")
KEPT_OBJECTS = "glgpu/outputs/"


def get(url: str, headers: dict[str, str], body: object = None) -> Any:
    """Ask, and return the answer's JSON."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers={**headers, "Content-Type": "application/json"})
    # Whatever proxy this machine has: both sides are on it.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


def main() -> None:
    """Ask both sides and print what is there."""
    told = json.load(sys.stdin)
    cloud = f"{told['compute']}/compute/v1/projects/{told['project']}"
    bearer = {"Authorization": f"Bearer {told['google_token']}"}

    def aggregated(kind: str) -> list[str]:
        scopes = get(f"{cloud}/aggregated/{kind}", bearer).get("items", {}).values()
        return [f"{one['name']} ({one['status']})" for scope in scopes for one in scope.get(kind, [])]

    def stored(bucket: str) -> list[str]:
        found = get(f"{told['google']}/storage/v1/b/{bucket}/o", bearer).get("items", [])
        return [f"{bucket}/{one['name']}" for one in found if not one["name"].startswith(KEPT_OBJECTS)]

    forge = f"{told['gitlab']}/api/v4/projects/{told['gitlab_project']}"
    token = {"PRIVATE-TOKEN": told["gitlab_token"]}
    path = json.dumps(told["gitlab_path"])
    query = f"query {{ project(fullPath: {path}) {{ terraformStates {{ nodes {{ name lockedAt }} }} }} }}"
    answer = get(f"{told['gitlab']}/api/graphql", token, {"query": query})
    states = answer["data"]["project"]["terraformStates"]["nodes"]
    left = {
        "instances": aggregated("instances"),
        "disks": aggregated("disks"),
        "firewall rules": [
            rule["name"]
            for rule in get(f"{cloud}/global/firewalls", bearer).get("items", [])
            if not rule["name"].startswith("default-")
        ],
        "deploy keys": [key["title"] for key in get(f"{forge}/deploy_keys", token)],
        "states": [state["name"] for state in states],
        "objects": [name for bucket in told["buckets"] for name in stored(bucket)],
        "locks": [state["name"] for state in states if state["lockedAt"]],
        "packages": [
            package["name"] for package in get(f"{forge}/packages", token) if package["name"] not in KEPT_PACKAGES
        ],
        "deploy tokens": [one["name"] for one in get(f"{forge}/deploy_tokens", token)],
        "access tokens": [
            one["name"] for one in get(f"{forge}/access_tokens", token) if one["name"] not in told["known_tokens"]
        ],
    }
    json.dump(left, sys.stdout)


main()
