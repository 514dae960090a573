"""The mistakes that the kill campaign has to find can still be made; whether it finds them, `--mutants` tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.mutants import PATCHES, ROOT, mutated


@pytest.mark.parametrize("patch", sorted(PATCHES.glob("*.patch")), ids=lambda patch: patch.stem)
def test_a_mistake_applies_to_the_code_as_it_is(patch: Path, tmp_path: Path) -> None:
    source = mutated(patch, tmp_path)
    changed = [
        path.relative_to(source)
        for path in source.rglob("*.py")
        if path.read_bytes() != (ROOT / "src" / path.relative_to(source)).read_bytes()
    ]
    assert changed
