"""What is imported of google-cloud-compute: in a process of its own, for it shows at the first import alone."""

from __future__ import annotations

import subprocess
import sys

SERVICES = "google.cloud.compute_v1.services."
BEGIN = f"""
import sys
from glgpu.clients.compute_library import lighten
lighten()
from google.cloud import compute_v1
def loaded(): return {{name.split(".")[4] for name in sys.modules if name.startswith("{SERVICES}")}}
"""


def ends_well(program: str, *, before: str = "") -> None:
    argv = [sys.executable, "-c", before + BEGIN + program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_the_clients_that_are_used_are_imported() -> None:
    ends_well("""
assert compute_v1.ZoneOperationsClient.__name__ == "ZoneOperationsClient"
assert compute_v1.Operation.Status.DONE.name == "DONE"
assert loaded() == {"zone_operations"}, loaded()
""")


def test_what_is_nowhere_else_is_in_the_whole_library() -> None:
    ends_well("""
before = compute_v1.Instance
try:
    compute_v1.NoSuchThing
except AttributeError as error:
    assert "NoSuchThing" in str(error)
else:
    raise AssertionError("there is such a thing")
assert len(loaded()) > 50, loaded()
assert compute_v1.Instance is before
""")


def test_a_library_that_is_imported_already_stays_as_it_is() -> None:
    ends_well(
        "assert sys.modules['google.cloud.compute_v1'] is before\nassert vars(before) == known",
        before="from google.cloud import compute_v1 as before\nknown = dict(vars(before))\n",
    )
