"""What a remedy may say: commands that their programs take, addresses that somebody has seen, pages that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import yaml

from glgpu.cli import cli
from glgpu.links import LINKS
from glgpu.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "tests/fixtures/programs.yml").read_text(encoding="utf-8"))


def quoted(remedy: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", remedy)


def addresses(remedy: str) -> list[str]:
    """Its addresses, without what ends a sentence; a host without a dot stands for one that the reader knows."""
    return [address.rstrip(".,;:") for address in re.findall(r"https?://[^\s`)\"'/]+\.[^\s`)\"']+", remedy)]


def pages(remedy: str) -> list[str]:
    """The pages of our own documentation that it names."""
    return re.findall(r"docs/[\w./-]+\.md", remedy)


def commands(remedy: str) -> list[str]:
    """The commands that it quotes."""
    return [span for span in quoted(remedy) if span.split()[0] in {"glgpu", *PROGRAMS}]


def problems(remedy: str) -> list[str]:
    """What is wrong with a remedy; empty: each command parses, each address is known, each page and setting exists."""
    known = {link.url for link in LINKS}
    found = [f"no known address: {address}" for address in addresses(remedy) if address not in known]
    found += [f"no such page: {page}" for page in pages(remedy) if not (ROOT / page).exists()]
    for span in quoted(remedy):
        words = shlex.split(span)
        if words[0] == "glgpu":
            found += _glgpu(words[1:], span)
        elif words[0] in PROGRAMS:
            found += _other(PROGRAMS[words[0]], words[1:], span)
        elif setting := re.fullmatch(r"([a-z_.]+): (\S+)", span):
            found += [] if setting[1].rsplit(".", 1)[-1] in _setting_names(Settings) else [f"no such setting: {span}"]
    if loose := re.search(r"\bgcloud (?:\w[\w-]+ ){2}", re.sub(r"`[^`]+`", "", remedy)):
        found.append(f"a command without backticks: {loose[0]}")
    return found


def helps(remedy: str) -> bool:
    """Whether it holds a command, an address or a page of ours: something to do, to open or to read."""
    return bool(commands(remedy) or addresses(remedy) or pages(remedy))


def _glgpu(words: list[str], span: str) -> list[str]:
    name = words[0] if words else ""
    command = cli.commands.get(name)
    if command is None:
        return [f"glgpu has no command {name!r}: {span}"]
    if "--help" in words:
        return []
    try:
        command.make_context(name, list(words[1:]), resilient_parsing=False)
    except click.ClickException as error:
        return [f"{span}: {error.format_message()}"]
    return []


def _other(program: dict[str, Any], words: list[str], span: str) -> list[str]:
    name = next((name for name in program["commands"] if words[: len(name.split())] == name.split()), None)
    if name is None:
        return [f"tests/fixtures/programs.yml has no such command: {span}"]
    spec = program["commands"][name]
    flags = {**program["flags"], **spec["flags"]}
    rest, used, free = words[len(name.split()) :], set(), 0
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            free += 1
            continue
        flag, has_value, _ = word.partition("=")
        if flag not in flags:
            return [f"no such flag {flag}: {span}"]
        used.add(flag)
        if flags[flag] and not has_value:
            if not rest:
                return [f"{flag} wants a value: {span}"]
            rest.pop(0)
    missing = [flag for flag in spec.get("required", []) if flag not in used]
    low, high = spec["words"]
    wrong = [] if low <= free <= high else [f"{free} words where it takes {low} to {high}: {span}"]
    return wrong + [f"{flag} is missing: {span}" for flag in missing]


def _setting_names(model: Any) -> set[str]:
    names = set(model.model_fields)
    for field in model.model_fields.values():
        if hasattr(field.annotation, "model_fields"):
            names |= _setting_names(field.annotation)
    return names
