"""Container registries by their own protocol (https://distribution.github.io/distribution/spec/api/): only asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

import requests

from glgpu.errors import ErrorClass, Failure
from glgpu.interfaces import ImageManifest
from glgpu.job import Job

CALL_SECONDS = 15.0
DOCKER_HUB = "docker.io"
HUB_SERVER = "registry-1.docker.io"
"""The server that answers for docker.io (https://docs.docker.com/docker-hub/)."""
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
ATTESTATION = "unknown"
"""Platform of what BuildKit puts beside an image and is none (https://docs.docker.com/build/metadata/attestations/)."""


class ContainerRegistry:
    """The registries that images name.

    Args:
        job: Logins, and the endpoint that answers for every registry where one is set.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def manifest(self, image: str) -> ImageManifest:
        """What an image is, with the job's own logins.

        Raises:
            Failure: IMAGE_PULL, when it is not there or not for us; NETWORK, when the registry does not answer.
        """
        host, name, reference = split(image)
        asking = _Asking(self._job, image, host, name)
        answer = asking.get(f"manifests/{reference}", {"Accept": ", ".join((*INDEXES, *MANIFESTS))})
        document = answer.json()
        if document.get("manifests"):
            return self._of_index(asking, document["manifests"])
        platform = asking.get(f"blobs/{document['config']['digest']}", {}).json() if "config" in document else {}
        named = f"{platform['os']}/{platform['architecture']}" if platform.get("architecture") else ""
        return ImageManifest((named,) if named else (), _weight(document))

    def _of_index(self, asking: _Asking, entries: list[dict[str, Any]]) -> ImageManifest:
        platforms = {
            f"{one['platform']['os']}/{one['platform']['architecture']}": one["digest"]
            for one in entries
            if one.get("platform", {}).get("os", ATTESTATION) != ATTESTATION
        }
        ours = platforms.get("linux/amd64")
        weight = 0.0
        if ours:
            weight = _weight(asking.get(f"manifests/{ours}", {"Accept": ", ".join(MANIFESTS)}).json())
        return ImageManifest(tuple(platforms), weight)


class _Asking:
    """Requests about one image; the token that the registry hands out is kept for the next."""

    def __init__(self, job: Job, image: str, host: str, name: str) -> None:
        self._image, self._host, self._name = image, host, name
        self._base = job.registry_endpoint or f"https://{HUB_SERVER if host == DOCKER_HUB else host}"
        # The pair of our own variables is for the registry that the image names, whichever that is.
        self._login = job.registry_logins.get(host) or job.registry_logins.get("")
        self._verify: bool | str = job.ca_file or True
        # Where one endpoint answers for all registries, it has to be told which one is meant.
        self._headers = {"Host": host} if job.registry_endpoint else {}

    def get(self, path: str, headers: Mapping[str, str]) -> requests.Response:
        """Ask; the first refusal says where a token is to be had.

        Raises:
            Failure: IMAGE_PULL or NETWORK.
        """
        address = f"{self._base}/v2/{self._name}/{path}"
        try:
            answer = self._request(address, headers)
            if answer.status_code == 401:
                self._answer_challenge(answer.headers.get("WWW-Authenticate", ""))
                answer = self._request(address, headers)
        except requests.RequestException as error:
            raise Failure(
                ErrorClass.NETWORK,
                f"the registry {self._host} cannot be reached from here",
                "the VM may reach it all the same; check the image's name with `docker manifest inspect IMAGE`",
                str(error),
            ) from None
        if answer.ok:
            return answer
        raise self._refusal(answer)

    def _request(self, address: str, headers: Mapping[str, str]) -> requests.Response:
        # Registries send blobs on to a store that takes no credentials of theirs: requests drops them on the way.
        return requests.get(
            address, headers={**self._headers, **headers}, timeout=CALL_SECONDS, verify=self._verify, auth=_keep
        )

    def _answer_challenge(self, challenge: str) -> None:
        """Get a token, or log in, as the registry asks for it (RFC 6750; distribution's token specification)."""
        scheme, _, rest = challenge.partition(" ")
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() == "basic" and self._login:
            request = requests.Request("GET", "http://unused", auth=self._login).prepare()
            self._headers["Authorization"] = request.headers["Authorization"]
            return
        if scheme.lower() != "bearer" or "realm" not in wanted:
            return
        answer = requests.get(
            urljoin(f"{self._base}/", wanted["realm"]),
            params={key: wanted[key] for key in ("service", "scope") if key in wanted},
            auth=self._login or _keep,
            timeout=CALL_SECONDS,
            verify=self._verify,
        )
        if not answer.ok:
            raise self._refusal(answer)
        told = answer.json()
        self._headers["Authorization"] = f"Bearer {told.get('token') or told.get('access_token')}"

    def _refusal(self, answer: requests.Response) -> Failure:
        status, image = answer.status_code, self._image
        if status in (401, 403):
            who = "the login for it is not accepted" if self._login else "no login for it is set"
            return Failure(
                ErrorClass.IMAGE_PULL,
                f"{image} cannot be pulled: {self._host} refuses ({status}), {who}",
                "set GLGPU_REGISTRY_USER and GLGPU_REGISTRY_PASSWORD, or DOCKER_AUTH_CONFIG",
                answer.text[:500],
            )
        if status == 404:
            return Failure(
                ErrorClass.IMAGE_PULL,
                f"{image} is not in its registry ({status})",
                "push it, or mend train.image",
                answer.text[:500],
            )
        if status == 429 or status >= 500:
            return Failure(
                ErrorClass.TRANSIENT,
                f"the registry {self._host} answers {status}",
                "ask again later",
                answer.text[:500],
            )
        return Failure(
            ErrorClass.IMAGE_PULL,
            f"the registry {self._host} answers {status} for {image}",
            "check train.image",
            answer.text[:500],
        )


def _keep(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """No login of requests' own: it would take one from a .netrc file, which a VM does not have."""
    return request


def split(image: str) -> tuple[str, str, str]:
    """Host, repository and tag or digest of an image, as Docker reads it.

    The first part is a host if it has a dot or a port or is ``localhost``; without one it is Docker Hub's, where a
    name without a slash is one of ``library`` (https://pkg.go.dev/github.com/distribution/reference).
    """
    rest, at, digest = image.partition("@")
    first, slash, tail = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, path = first, tail
    else:
        host, path = DOCKER_HUB, rest if slash else f"library/{rest}"
    name, colon, tag = path.rpartition(":")
    if not colon:
        name, tag = path, "latest"
    return host, name, digest if at else tag


def _weight(manifest: Mapping[str, Any]) -> float:
    return sum(float(layer.get("size", 0)) for layer in manifest.get("layers", [])) / 1e9
