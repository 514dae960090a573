"""What is too much for artifacts, how it is cut, and the note that tells where it is."""

from __future__ import annotations

import json

import pytest

from glgpu.elsewhere import (
    BUNDLE_BYTES,
    Bundle,
    Elsewhere,
    MovedFile,
    Part,
    bundled,
    part_name,
    read_elsewhere,
    too_much,
    zipped_size,
)

NOTE = Elsewhere(
    "glgpu-abcdef-42-1001-train",
    "5",
    "packages",
    "",
    "https://gitlab.example.com/team/model/-/packages/7",
    (Bundle((MovedFile("weights/w", 3, "a" * 64),), (Part("x-w.0001", 2, "b" * 64), Part("y-w.0002", 1, "c" * 64))),),
)


def test_what_fits_stays() -> None:
    sizes = {"a": 100, "b": 200}
    assert too_much(sizes, zipped_size(sizes), ["a", "b"]) == []


def test_the_biggest_go_and_no_more_than_needed() -> None:
    sizes = {"small": 10, "big": 10_000, "middle": 5_000, "record": 20_000}
    movable = ["small", "big", "middle"]
    assert too_much(sizes, zipped_size(sizes) - 1, movable) == ["big"]
    assert too_much(sizes, zipped_size(sizes) - 11_000, movable) == ["big", "middle"]


def test_many_small_files_count_their_headers_too() -> None:
    sizes = {f"checkpoints/{n:04}": 1 for n in range(1000)}
    assert zipped_size(sizes) > 200_000
    assert len(too_much(sizes, 100_000, list(sizes))) > 500


def test_small_files_are_put_together_and_big_ones_go_alone() -> None:
    sizes = {"a": BUNDLE_BYTES * 3, "b": BUNDLE_BYTES, "c": 10, "d": 0, "e": BUNDLE_BYTES - 10}
    assert list(bundled(sizes)) == [["a"], ["b"], ["c", "d", "e"]]


@pytest.mark.parametrize("name", ["w.safetensors", "ünï 火.bin", "-rf", "~a~", "a" * 300, "..", "line\nbreak", "@x@"])
def test_the_name_of_a_part_is_one_that_gitlab_takes(name: str) -> None:
    import re

    made = part_name("0123456789abcdef" * 4, [f"weights/{name}"], 1, 3)
    # Gitlab::Regex.generic_package_file_name_regex
    assert re.fullmatch(r"(?![~@])[A-Za-z0-9._\-+~@]+(?<![~@])", made)
    assert ".." not in made.replace("...", "") or name == ".."
    assert made.startswith("0123456789abcdef0123-")
    assert made.endswith(".0002")


def test_the_note_reads_as_it_was_written() -> None:
    assert read_elsewhere(NOTE.text()) == NOTE
    odd = Elsewhere(**{**NOTE.__dict__, "bundles": (Bundle((MovedFile("w/byte\udcff", 0, "d" * 64),), ()),)})
    assert read_elsewhere(odd.text()) == odd


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"store": "attic"},
        {"bundles": [{"files": [{"path": "w"}], "parts": []}]},
        {"bundles": [{"files": [{"path": "w", "size": 2, "sha256": ""}], "parts": []}]},
        {"bundles": 3},
    ],
)
def test_a_note_of_another_form_is_not_guessed_at(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_elsewhere(json.dumps({**json.loads(NOTE.text()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "\xff"])
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_elsewhere(text)
