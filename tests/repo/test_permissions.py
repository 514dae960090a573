"""What terraform/bootstrap grants is what glgpu says that it needs."""

import re
from pathlib import Path

import hcl2
import pytest

from glgpu import permissions

ROOT = Path(__file__).parents[2]
BOOTSTRAP = ROOT / "terraform" / "bootstrap"
LISTS = BOOTSTRAP / "permissions.tf"


@pytest.mark.parametrize("name", ["run", "look", "bucket", "users"])
def test_each_role_of_bootstrap_holds_the_permissions_that_glgpu_names(name: str) -> None:
    found = [entry["permissions"] for entry in hcl2.loads(LISTS.read_text(encoding="utf-8"))["locals"]]
    assert re.findall(r"[\w.]+", str(found[0][name])) == sorted(getattr(permissions, name.upper()))


def test_no_permission_is_named_twice() -> None:
    held = [*permissions.RUN, *permissions.LOOK, *permissions.TUNNEL, *permissions.ORGANISATION, *permissions.ACT_AS]
    assert len(held) == len(set(held))


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_the_reference_names_every_variable_and_output_of_bootstrap(kind: str) -> None:
    text = (ROOT / "docs" / "reference" / "terraform.md").read_text(encoding="utf-8").partition("\n## bootstrap\n")[2]
    (rows,) = re.findall(rf"(?m)^\| {kind} of `bootstrap` \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    written = (BOOTSTRAP / f"{kind}s.tf").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\| `(\w+)` \|", rows) == re.findall(rf'(?m)^{kind} "(\w+)"', written)
