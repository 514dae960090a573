"""Outputs come home whole, checked, and nowhere else than into outputs/."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes import Entry, Stage
from glgpu.errors import ErrorClass, Failure
from glgpu.steps import collect as collect_module
from glgpu.steps.collect import Home, collect


def collected(stage: Stage, *paths: str, seconds: float = 3600) -> Home:
    return collect(stage.run, stage.machine, "/home/glgpu/glgpu", paths or ["weights/"], seconds=seconds)


def outputs(stage: Stage) -> dict[str, bytes]:
    found = {}
    for path in stage.run.outputs.rglob("*"):
        name = str(path.relative_to(stage.run.outputs))
        if path.is_file() and not path.is_symlink() and not name.startswith("glgpu/"):
            found[name] = path.read_bytes()
    return found


def sums(stage: Stage) -> bytes:
    return (stage.run.outputs / "glgpu/SHA256SUMS").read_bytes()


def sendings(stage: Stage) -> int:
    return sum(verb in ("send", "send-all") for verb in stage.machine.verbs())


ODD = [
    "a b",
    "line\nbreak",
    "carriage\rreturn",
    "ünïcödé 火",
    "-rf",
    "back\\slash",
    "quote'\"",
    "$(date)",
    "byte\udcff",
]


@pytest.mark.parametrize("name", ODD)
def test_a_file_keeps_its_name_whatever_it_is(stage: Stage, name: str) -> None:
    stage.machine.files = {f"weights/{name}": Entry(b"w")}
    assert collected(stage) == Home(1, 1)
    assert os.fsencode(name) in [os.fsencode(path.name) for path in (stage.run.outputs / "weights").iterdir()]


def test_five_thousand_files_come_home(stage: Stage) -> None:
    stage.machine.files = {f"weights/{n % 50}/{n}": Entry(str(n).encode()) for n in range(5000)}
    assert collected(stage).files == 5000
    assert len(sums(stage).splitlines()) == 5000


def test_every_file_can_be_read_by_whoever_uploads_it(stage: Stage) -> None:
    collected(stage)
    assert (stage.run.outputs / "weights/w.bin").stat().st_mode & 0o777 == 0o644


def test_the_folders_of_glgpu_yml_and_of_the_outputs_are_kept(stage: Stage) -> None:
    stage.use(base="examples/text")
    stage.machine.files = {"weights/a": Entry(b"1"), "metrics.json": Entry(b"{}"), "other": Entry(b"")}
    collected(stage, "weights/", "metrics.json")
    assert outputs(stage) == {"weights/a": b"1", "metrics.json": b"{}"}
    assert ("send-all", "/home/glgpu/glgpu/code/examples/text", "weights", "metrics.json") in stage.machine.calls


def test_nothing_is_there_is_no_failure_here(stage: Stage) -> None:
    stage.machine.files = {"weights": Entry(folder=True)}
    assert collected(stage) == Home(0, 0)
    assert sums(stage) == b""


def test_a_link_inside_is_kept_and_one_outside_left_out_and_said(stage: Stage) -> None:
    stage.machine.files |= {
        "weights/latest": Entry(link="w.bin"),
        "weights/up": Entry(link="../weights/w.bin"),
        "weights/passwd": Entry(link="/etc/passwd"),
        "weights/above": Entry(link="../../secret"),
    }
    assert collected(stage).files == 1
    assert (stage.run.outputs / "weights/latest").read_bytes() == b"w" * 100
    assert (stage.run.outputs / "weights/up").read_bytes() == b"w" * 100
    for name in ("passwd", "above"):
        assert not (stage.run.outputs / "weights" / name).is_symlink()
        assert f"'weights/{name}'" in stage.log


def test_a_link_cannot_climb_out_by_way_of_another(stage: Stage) -> None:
    stage.machine.files = {
        "weights/a/b/c/top": Entry(link="../../.."),
        "weights/out": Entry(link="a/b/c/top/../.."),
    }
    collected(stage)
    assert (stage.run.outputs / "weights/a/b/c/top").resolve() == stage.run.outputs / "weights"
    assert not (stage.run.outputs / "weights/out").is_symlink()


def test_no_file_is_written_through_a_link(stage: Stage) -> None:
    elsewhere = stage.run.outputs / "elsewhere"
    elsewhere.mkdir(parents=True)
    stage.machine.files = {"weights/dir": Entry(link="../elsewhere"), "weights/dir/evil": Entry(b"evil")}
    collected(stage)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-a-test", "weights/../../evil", "glgpu/run.json"])
def test_a_name_that_leads_elsewhere_is_left_out_and_said(stage: Stage, tmp_path: Path, name: str) -> None:
    stage.machine.files[name] = Entry(b"evil")
    collected(stage, "weights", name)
    assert b"evil" not in outputs(stage).values()
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil-of-a-test").exists()
    assert f"left out: '{name}'" in stage.log
    assert b"evil" not in sums(stage)


def test_what_is_neither_file_nor_folder_nor_link_is_left_out_and_said(stage: Stage) -> None:
    stage.machine.files["weights/pipe"] = Entry(kind=tarfile.FIFOTYPE)
    assert collected(stage).files == 1
    assert "left out: 'weights/pipe'" in stage.log


def test_a_link_that_has_moved_since_the_last_time_moves_here_too(stage: Stage) -> None:
    stage.machine.files |= {"weights/2": Entry(b"2"), "weights/latest": Entry(link="w.bin")}
    collected(stage)
    stage.machine.files["weights/latest"] = Entry(link="2")
    collected(stage)
    assert (stage.run.outputs / "weights/latest").read_bytes() == b"2"


def test_a_link_that_has_become_a_file_does_not_lead_it_elsewhere(stage: Stage) -> None:
    stage.machine.files["weights/latest"] = Entry(link="w.bin")
    collected(stage)
    stage.machine.files["weights/latest"] = Entry(b"new")
    collected(stage)
    assert outputs(stage) == {"weights/w.bin": b"w" * 100, "weights/latest": b"new"}


def test_wrong_checksums_are_tried_again(stage: Stage) -> None:
    stage.machine.sums_wrong = 2
    assert collected(stage).files == 1
    assert sendings(stage) == 3


def test_checksums_that_stay_wrong_are_refused(stage: Stage) -> None:
    stage.machine.sums_wrong = 99
    with pytest.raises(Failure, match="1 of 1 files") as caught:
        collected(stage)
    assert caught.value.klass is ErrorClass.SSH
    assert sendings(stage) == 3
    assert not (stage.run.outputs / "glgpu/SHA256SUMS").exists()


@pytest.mark.parametrize("at", [0, 100, 512, 700, 1536, 3000])
def test_a_stream_cut_in_the_middle_is_tried_again(stage: Stage, at: int) -> None:
    stage.machine.files = {f"weights/{n}": Entry(bytes([n]) * 1000) for n in range(5)}
    stage.machine.cut_at = [at]
    assert collected(stage) == Home(5, 5000)
    assert sendings(stage) == 2
    assert list(stage.run.outputs.rglob("*.part")) == []


def test_a_stream_that_is_always_cut_is_refused(stage: Stage) -> None:
    stage.machine.cut_at = [700] * 9
    with pytest.raises(Failure) as caught:
        collected(stage)
    assert caught.value.exit_code == 13


def test_a_collection_ends_in_time(stage: Stage) -> None:
    stage.machine.sums_wrong = 99
    stage.machine.before["send-all"] = lambda: stage.clock.sleep(61)
    with pytest.raises(Failure) as caught:
        collected(stage, seconds=60)
    assert caught.value.exit_code == 22
    assert stage.machine.allowed == [60]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no more than ``size`` bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_here_leaves_nothing_half_written(stage: Stage) -> None:
    stage.machine.files = {"weights/small": Entry(b"s"), "weights/large": Entry(b"l" * 200_000)}
    with largest_file(100_000), pytest.raises(Failure) as caught:
        collected(stage)
    assert caught.value.exit_code == 40
    assert "large" in caught.value.cause
    assert outputs(stage) == {"weights/small": b"s"}
    assert sendings(stage) == 1


def test_checksums_are_written_as_sha256sum_writes_them(stage: Stage) -> None:
    stage.machine.files = {
        "weights/plain": Entry(b"1"),
        "weights/line\nbreak": Entry(b"2"),
        "weights/b\\s": Entry(b"3"),
    }
    collected(stage)
    one, two, three = (hashlib.sha256(data).hexdigest() for data in (b"1", b"2", b"3"))
    assert sorted(sums(stage).decode().splitlines()) == sorted(
        [f"{one}  weights/plain", f"\\{two}  weights/line\\nbreak", f"\\{three}  weights/b\\\\s"]
    )


def test_what_is_home_already_is_not_sent_again(stage: Stage) -> None:
    stage.machine.files["weights/v.bin"] = Entry(b"v")
    collected(stage)
    stage.machine.files["weights/w.bin"] = Entry(b"changed")
    stage.machine.files["weights/x.bin"] = Entry(b"new")
    assert collected(stage) == Home(3, 11)
    assert stage.machine.stdin["choose"] == b"./weights/w.bin\0./weights/x.bin\0"
    assert outputs(stage) == {"weights/v.bin": b"v", "weights/w.bin": b"changed", "weights/x.bin": b"new"}
    assert sums(stage).count(b"\n") == 3


def test_what_has_the_name_of_a_file_that_is_not_whole_yet_is_cleared_away(stage: Stage) -> None:
    stage.machine.files = {f"weights/{collect_module.PART}": Entry(link="../other"), "weights/w.bin": Entry(b"w")}
    collected(stage)
    assert outputs(stage) == {"weights/w.bin": b"w"}
    assert not (stage.run.outputs / "other").exists()


def test_a_file_of_eight_gigabytes_and_a_name_of_any_length_are_read_as_tarfile_reads_them() -> None:
    entry = tarfile.TarInfo("weights/" + "n" * 200)
    entry.size = 1 << 33
    header = entry.tobuf(tarfile.GNU_FORMAT)
    found = collect_module._Entry.frombuf(header[-512:], "utf-8", "surrogateescape")
    assert (found.size, found.type) == (1 << 33, tarfile.REGTYPE)
    short = tarfile.TarInfo("weights/byte\udcff")
    short.size = 7
    read = collect_module._Entry.frombuf(short.tobuf(tarfile.GNU_FORMAT), "utf-8", "surrogateescape")
    assert (read.name, read.size, read.isfile()) == (short.name, 7, True)


@pytest.mark.parametrize("at", [0, 99, 130, 150, 400])
def test_a_header_that_is_damaged_is_no_header(at: int) -> None:
    entry = tarfile.TarInfo("weights/w.bin")
    entry.size = 7
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[at] ^= 1
    with pytest.raises(tarfile.TarError):
        collect_module._Entry.frombuf(bytes(header), "utf-8", "surrogateescape")


@pytest.mark.parametrize("name", ["glgpu", "./glgpu/x", ".//glgpu/x", "a/../../x", "./..", "a/..", "/x", ".", ""])
def test_no_way_of_writing_a_name_leads_out_or_into_our_own_folder(name: str) -> None:
    assert not collect_module._may_come(name)
    assert collect_module._may_come("weights/.//x")


def test_a_file_behind_a_link_is_not_taken_for_one_that_is_home(stage: Stage, tmp_path: Path) -> None:
    collected(stage)
    (stage.run.outputs / "weights").rename(tmp_path / "elsewhere")
    (stage.run.outputs / "weights").symlink_to(tmp_path / "elsewhere")
    collected(stage)
    assert stage.machine.stdin["choose"] == b"./weights/w.bin\0"
    assert not (stage.run.outputs / "weights").is_symlink()


def test_checksums_are_made_while_the_files_are_sent_where_nothing_can_be_home(stage: Stage) -> None:
    collected(stage)
    assert stage.machine.verbs() == ["send-all"]
    stage.machine.calls.clear()
    collected(stage)
    assert stage.machine.verbs() == ["sums", "choose", "send"]


@pytest.mark.parametrize("klass", [ErrorClass.OUT_OF_TIME, ErrorClass.INTERRUPTED])
def test_of_a_collection_that_is_cut_short_whole_files_are_named_and_the_next_one_goes_on(
    stage: Stage, klass: ErrorClass, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.machine.files = {f"weights/{n}": Entry(bytes(100)) for n in range(4)}
    written: list[str] = []
    write = collect_module._write

    def cut(source: collect_module._Forward, size: int, folder: str, target: str) -> str:
        if len(written) == 2:
            raise Failure(klass, "cut short", "none")
        written.append(target)
        return write(source, size, folder, target)

    monkeypatch.setattr(collect_module, "_write", cut)
    with pytest.raises(Failure) as caught:
        collected(stage)
    assert caught.value.klass is klass
    assert sorted(outputs(stage)) == ["weights/0", "weights/1"]
    assert sums(stage).count(b"\n") == 2
    assert stage.events()[-1] == "outputs-partly-home"
    monkeypatch.undo()
    assert collected(stage).files == 4
    assert stage.machine.stdin["choose"] == b"./weights/2\0./weights/3\0"
