"""`docker logs --timestamps`, read through any number of broken connections: each byte once, in order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from docker_log import PIECE, STAMP, DockerLog
from glgpu.steps.log_reader import LogReader

LENGTH = st.one_of(st.integers(0, 40), st.sampled_from([PIECE - 2, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 40_000]))
LINE = st.tuples(LENGTH, st.sampled_from([b"a", b"2", b" ", b"\xff", STAMP.format(0, 1).encode() + b" "]))
LINES = st.lists(
    st.tuples(LINE.map(lambda line: (line[1] * (line[0] // len(line[1]) + 1))[: line[0]] + b"\n"), st.integers(0, 2)),
    max_size=8,
)


def read(reader: LogReader, data: bytes, sizes: Sequence[int]) -> bytes:
    got, at, turn = b"", 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        got += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    return got


@given(
    lines=LINES,
    breaks=st.lists(st.floats(0, 1), max_size=6),
    sizes=st.lists(st.sampled_from([1, 7, 30, 4096, 100_000]), min_size=1, max_size=4).filter(lambda s: max(s) > 1000),
)
@example([(b"x" * PIECE + b"\n", 0), (b"y\n", 0), (b"y\n", 0)], [0.999, 0.9999, 0.5], [100_000])
def test_no_byte_is_lost_or_repeated_wherever_the_connection_breaks(
    lines: list[tuple[bytes, int]], breaks: list[float], sizes: list[int]
) -> None:
    engine, reader, got = DockerLog(lines), LogReader(), b""
    for part in [*breaks, 1.0]:
        reader.connection()
        data = engine.logs(reader.since)
        got += read(reader, data[: round(len(data) * part)], sizes)
    assert got == engine.content


def test_every_place_of_a_small_log_can_be_the_place_of_the_break() -> None:
    engine = DockerLog([(b"one\n", 1), (b"two\n", 0), (b"two\n", 0), (b"\n", 0), (b"three\n", 1), (b"four\n", 0)])
    whole = engine.logs("")
    for first in range(len(whole) + 1):
        for second in range(0, len(whole), 5):
            reader = LogReader()
            got = read(reader, whole[:first], [10_000])
            reader.connection()
            got += read(reader, engine.logs(reader.since)[:second], [10_000])
            reader.connection()
            got += read(reader, engine.logs(reader.since), [10_000])
            assert got == engine.content


def test_output_that_came_while_the_connection_was_lost_is_read_afterwards() -> None:
    early, late = [(b"one\n", 1)], [(b"one\n", 1), (b"one\n", 0), (b"two\n", 1)]
    reader = LogReader()
    got = read(reader, DockerLog(early).logs(""), [1000])
    reader.connection()
    assert got + read(reader, DockerLog(late).logs(reader.since), [1000]) == DockerLog(late).content


def test_the_next_connection_asks_from_where_the_last_one_ended() -> None:
    reader = LogReader()
    assert reader.since == ""
    read(reader, DockerLog([(b"one\n", 1), (b"two\n", 1)]).logs(""), [1000])
    assert reader.since == STAMP.format(0, 2)


def test_a_line_of_the_program_that_looks_like_a_time_stamp_is_the_programs() -> None:
    engine = DockerLog([(STAMP.format(9, 9).encode() + b" not a stamp\n", 1)])
    assert read(LogReader(), engine.logs(""), [1000]) == engine.content


@pytest.mark.parametrize(
    "stamp", ["2026-11-23T20:00:00Z", "2026-11-23T20:00:00.1+01:00", "2026-11-23T20:00:00.123456789Z"]
)
def test_every_form_of_a_time_stamp_is_taken_off(stamp: str) -> None:
    assert read(LogReader(), f"{stamp} text\n".encode(), [1]) == b"text\n"


def test_what_the_engine_itself_says_is_shown() -> None:
    said = b"Error response from daemon: configured logging driver does not support reading\n"
    assert read(LogReader(), said, [7]) == said


def test_a_log_whose_beginning_was_rotated_away_goes_on_with_what_is_there() -> None:
    reader = LogReader()
    read(reader, DockerLog([(b"one\n", 1), (b"two\n", 1)]).logs(""), [1000])
    reader.connection()
    rotated = DockerLog([(b"five\n", 5), (b"six\n", 0)])
    assert read(reader, rotated.logs(reader.since), [1000]) == rotated.content


def test_bytes_come_as_soon_as_they_are_there() -> None:
    reader = LogReader()
    assert reader.feed(STAMP.format(0, 1).encode() + b" 10%") == b"10%"
    assert reader.feed(b"\r20%") == b"\r20%"
    assert reader.feed(b"\r30%\n") == b"\r30%\n"
