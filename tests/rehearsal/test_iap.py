"""Training on a VM without any way in from the internet, through Identity-Aware Proxy's tunnel."""

from __future__ import annotations

from pathlib import Path

import pytest

from glgpu.rehearsal.gitlab_model import Variable
from rehearsing import TINY, Played, repository, world

pytestmark = pytest.mark.every_fault
PRIVATE = f"{TINY}network:\n  access: iap\n  external_ip: false\n"


def test_a_vm_without_an_external_address_trains_through_the_tunnel(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {"glgpu.yml": PRIVATE})
    with world() as made:
        played = Played(made, made.adopt(own))
        outcomes = played.play()
        for name in ("provision", "train", "destroy"):
            assert outcomes[name].status == "success", played.logs[name]
        calls = list(made.calls.lines())
        assert {call["status"] for call in calls if call["to"] == "iap"} == {101}
        rules = [call["body"] for call in calls if call["verb"] in ("POST", "PATCH") and "/firewalls" in call["target"]]
        assert any("35.235.240.0/20" in rule for rule in rules)
        assert not any("203.0.113" in rule for rule in rules)
        assert not [call for call in calls if "/echo" in call["target"]]
        assert played.left() == {}
        played.close()


def test_whoever_may_not_use_the_tunnel_does_not_get_in(tmp_path: Path) -> None:
    own = repository(tmp_path / "repository", {"glgpu.yml": PRIVATE})
    with world() as made:
        access = made.google.project.access
        for role in access.roles.values():
            kept = [one for one in role["includedPermissions"] if one != "iap.tunnelInstances.accessViaIAP"]
            role["includedPermissions"] = kept
        played = Played(made, made.adopt(own, variables=[Variable("GLGPU_LIMITS_BOOT_MINUTES", "0.1")]))
        outcomes = played.play()
        assert outcomes["provision"].exit_code in (13, 15), played.logs["provision"]
        assert "not authorized" in played.logs["provision"]
        assert played.left() == {}
        played.close()
