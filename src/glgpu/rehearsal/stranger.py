"""A run of another GitLab server in the same cloud project, with the same project and pipeline ids: never ours."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from glgpu.lifetime import Lifetime
from glgpu.rehearsal.cloud_catalogue import IMAGES
from glgpu.run_names import RunName

SERVER = "https://gitlab.elsewhere.example"
ZONE = "europe-west4-a"


class Stranger:
    """The other run: a VM with its disk, and two firewall rules.

    Args:
        endpoint: Where Compute Engine answers.
        token: An access token.
        google_project: The cloud project.
        project_id: The GitLab project's id, there as here.
        pipeline: The pipeline's id, there as here.

    Attributes:
        name: Its name.
    """

    def __init__(self, endpoint: str, token: str, google_project: str, project_id: int, pipeline: int) -> None:
        self.name = RunName(SERVER, project_id, str(pipeline))
        self._root = f"{endpoint}/compute/v1/projects/{google_project}"
        self._project = google_project
        self._token = token

    def move_in(self, now: float) -> None:
        """Come up, as whoever brought it up would have it."""
        lifetime = Lifetime("pipeline", now + 3600, now + 3600)
        zone = f"projects/{self._project}/zones/{ZONE}"
        disk = {"sourceImage": IMAGES[0].path, "diskSizeGb": "50", "diskType": f"{zone}/diskTypes/pd-balanced"}
        self._post(
            f"zones/{ZONE}/instances",
            {
                "name": str(self.name),
                "machineType": f"{zone}/machineTypes/e2-small",
                "labels": self.name.labels(lifetime, user="ada", ref="main"),
                "tags": {"items": [str(self.name)]},
                "disks": [{"boot": True, "autoDelete": True, "initializeParams": disk}],
                "networkInterfaces": [{"network": f"projects/{self._project}/global/networks/default"}],
            },
        )
        for name in (str(self.name), self.name.closed_rule):
            rule = {"name": name, "sourceRanges": ["198.51.100.1/32"], "targetTags": [str(self.name)]}
            self._post("global/firewalls", {**rule, "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}]})

    def apart(self, left: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], list[str]]:
        """What the read-back found without this run's things, and what of this run it did not find."""
        own = {kind: [name for name in names if name.startswith(str(self.name))] for kind, names in left.items()}
        others = {kind: [name for name in names if name not in own[kind]] for kind, names in left.items()}
        expected = {"instances": 1, "disks": 1, "firewall rules": 2}
        missing = [kind for kind, count in expected.items() if len(own[kind]) != count]
        running = own["instances"] == [f"{self.name} (RUNNING)"]
        return others, missing if running or missing else ["instances"]

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._root}/{path}", json.dumps(body).encode(), headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass
