"""This machine's programs and packages, as far as glgpu leans on them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from glgpu.clients.terraform_program import terraform_program
from glgpu.interfaces import Tool
from glgpu.processes import TimedOut, environment, find_tool, run

VERSION_SECONDS = 20.0
HOW_TO_ASK = {"git": "--version", "ssh": "-V"}
"""Program -> what makes it say its version; the others are only looked for, since starting them takes long."""
PROVIDER = Path("registry.terraform.io/hashicorp/google")


class LocalTools:
    """Programs on PATH, folders of providers, installed packages.

    Args:
        asked_terraform: Path or name of the Terraform that a setting names, or empty.
    """

    def __init__(self, asked_terraform: str) -> None:
        self._asked = asked_terraform

    def tool(self, name: str) -> Tool | None:
        """A program and its version; None: it is not there."""
        path = find_tool(name)
        if path is None:
            return None
        if name not in HOW_TO_ASK:
            return Tool(path, ())
        try:
            done = run([path, HOW_TO_ASK[name]], timeout=VERSION_SECONDS)
        except TimedOut:
            return Tool(path, ())
        # ssh tells its version on standard error.
        return Tool(path, numbers(f"{done.text} {done.complaint}"))

    def terraform(self) -> Tool:
        """The Terraform or OpenTofu that will be used.

        Raises:
            Failure: TOOL_MISSING, where there is none, or too old a one.
        """
        path, version = terraform_program(self._asked)
        return Tool(path, numbers(version))

    def mirrored_providers(self) -> dict[str, list[tuple[int, ...]]]:
        """Folder -> versions of hashicorp/google in it, for every folder that Terraform installs from here.

        A provider that lies in one of these is never asked of a registry
        (https://developer.hashicorp.com/terraform/cli/config/config-file#implied-local-mirror-directories). Unpacked
        ones are folders named after their version, packed ones have it in their names.
        """
        child = environment()
        home = Path(child.get("HOME", "/"))
        data = Path(child.get("XDG_DATA_HOME") or home / ".local/share")
        system = [Path(one) for one in (child.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")]
        folders = [home / ".terraform.d/plugins", *(one / "terraform/plugins" for one in (data, *system))]
        found = {}
        for folder in folders:
            versions = sorted(_versions(folder / PROVIDER))
            if versions:
                found[str(folder)] = versions
        return found

    def outdated_packages(self) -> list[str]:
        """Python packages that are older than glgpu needs, as ``name 1.2 (needs 3.4)``."""
        try:
            wanted = metadata.requires("glgpu") or []
        except metadata.PackageNotFoundError:
            return []
        outdated = []
        for requirement in wanted:
            parts = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
            if parts is None:
                continue  # of an extra, or without a lower end
            try:
                installed = metadata.version(parts[1])
            except metadata.PackageNotFoundError:
                outdated.append(f"{parts[1]} is missing (needs {parts[2]})")
                continue
            if numbers(installed) < numbers(parts[2]):
                outdated.append(f"{parts[1]} {installed} (needs {parts[2]})")
        return outdated


def numbers(text: str) -> tuple[int, ...]:
    """The first version number in a text; empty where there is none."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _versions(folder: Path) -> Iterable[tuple[int, ...]]:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return
    for name in names:
        version = numbers(name.removeprefix("terraform-provider-google_"))
        if version:
            yield version
