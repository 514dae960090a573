"""Files as one stream, and checksums of its stretches."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from glgpu.steps.strand import Strand, Stretches


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, int]]:
    made = []
    for name, data in (("a", b"hello"), ("b", b""), ("c", b"world"), ("d", b"!" * 10)):
        (tmp_path / name).write_bytes(data)
        made.append((tmp_path / name, len(data)))
    return made


def test_any_stretch_is_what_lies_there(files: list[tuple[Path, int]]) -> None:
    whole = b"helloworld" + b"!" * 10
    for begin in range(21):
        for size in range(21 - begin):
            with Strand(files, begin, size) as strand:
                assert len(strand) == size
                assert strand.read() == whole[begin : begin + size]


def test_it_is_read_in_full_pieces_and_again_from_anywhere(files: list[tuple[Path, int]]) -> None:
    with Strand(files, 2, 12) as strand:
        assert [strand.read(7), strand.tell()] == [b"lloworl", 7]
        assert [strand.read(7), strand.read(7)] == [b"d!!!!", b""]
        assert strand.seek(-3, io.SEEK_END) == 9
        assert strand.read() == b"!!!"
        strand.seek(0)
        assert strand.seek(2, io.SEEK_CUR) == 2
        assert strand.read(3) == b"owo"


def test_a_file_that_has_become_shorter_is_an_error_and_no_end(files: list[tuple[Path, int]]) -> None:
    files[2][0].write_bytes(b"wo")
    with Strand(files, 0, 20) as strand, pytest.raises(OSError, match="become shorter"):
        strand.read()


def test_stretches_are_summed_however_the_stream_is_fed() -> None:
    data = bytes(range(256)) * 3
    sizes = [0, 1, 0, 300, 400, 67, 0, 0]
    wanted, begin = [], 0
    for size in sizes:
        wanted.append(hashlib.sha256(data[begin : begin + size]).hexdigest())
        begin += size
    for step in (1, 7, 300, 1000):
        stretches = Stretches(sizes)
        for start in range(0, len(data), step):
            stretches.feed(data[start : start + step])
        assert stretches.digests() == wanted
