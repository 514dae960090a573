"""What a VM has left of a detached training: its manifest, and what lies beside it."""

from __future__ import annotations

import json

import pytest

from glgpu.elsewhere import MovedFile, Part
from glgpu.saved import collected_by, collected_mark, manifests, of_detached, read_save

DIGEST = "ab" * 32
STATE = json.dumps({"Running": False, "ExitCode": 3, "OOMKilled": False})


def manifest(*lines: str, what: str = "all", reason: str = "ended", state: str = STATE) -> bytes:
    return "\n".join(["glgpu-save 1", f"what {what}", f"reason {reason}", f"state {state}", *lines, ""]).encode()


def test_a_manifest_tells_files_parts_and_how_the_training_ended() -> None:
    save = read_save(
        manifest(
            "bundle", f"file 3 {DIGEST}  ./weights/a", f"file 4 {DIGEST}  ./weights/b c", f"part save-1-0-1 7 {DIGEST}",
            "bundle", f"file 9 {DIGEST}  ./weights/big", f"part save-1-1-1 5 {DIGEST}", f"part save-1-1-2 4 {DIGEST}",
        )
    )  # fmt: skip
    assert (save.whole, save.reason, save.exit_code, save.out_of_memory) == (True, "ended", 3, False)
    assert [file.path for file in save.files] == ["weights/a", "weights/b c", "weights/big"]
    assert save.bundles[1].files == (MovedFile("weights/big", 9, DIGEST),)
    assert save.bundles[1].parts == (Part("save-1-1-1", 5, DIGEST), Part("save-1-1-2", 4, DIGEST))


def test_names_are_read_as_sha256sum_escapes_them() -> None:
    save = read_save(manifest("bundle", f"file 0 \\{DIGEST}  ./a\\nb\\\\c\\rd"))
    assert [file.path for file in save.files] == ["a\nb\\c\rd"]


def test_a_container_that_is_no_more_has_no_exit_code() -> None:
    assert read_save(manifest(state="null")).exit_code is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"glgpu-save 2\n",
        manifest(reason="bored"),
        manifest("bundle", f"file 3 {DIGEST}  ./a", f"part save-1-0-1 2 {DIGEST}"),
        manifest("bundle", "file three"),
        b"glgpu-save 1\nwhat all\nreason ended\nstate {\n",
    ],
)
def test_what_is_no_whole_manifest_is_none(text: bytes) -> None:
    with pytest.raises((ValueError, KeyError)):
        read_save(text)


def test_the_newest_manifest_comes_first_and_what_is_not_ours_is_left_alone() -> None:
    names = [
        "save-2.manifest", "save-10.manifest", "save-2-0-1", "probe", "detached.json", "ended", collected_mark("77"),
        "collected-by-9", "elsewhere-5.json", "abc-weights.bin",
    ]  # fmt: skip
    assert manifests(names) == ["save-10.manifest", "save-2.manifest"]
    assert collected_by(names) == ["9", "77"]
    assert set(names) - set(of_detached(names)) == {"elsewhere-5.json", "abc-weights.bin"}
