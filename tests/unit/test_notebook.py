"""What the notebook's two sides agree on."""

from __future__ import annotations

import pytest

from glgpu.notebook import State, read_state, socket_of
from glgpu.run_names import LONGEST_NAME, RunName

LONGEST_SOCKET = 107
"""Bytes that the kernel takes as a UNIX socket's path."""


def test_the_socket_of_the_longest_name_fits() -> None:
    name = RunName("https://gitlab.example.com", 10**14, f"{10**10}-1234", "notebook")
    assert len(str(name)) == LONGEST_NAME
    assert len(socket_of(name)) <= LONGEST_SOCKET


def test_a_state_is_understood_and_nothing_is_no_notebook() -> None:
    text = '{"answers":true,"busy":false,"idle_seconds":12,"soft_end":1700000000,"saved":null}\n'
    assert read_state(text) == State(True, False, 12, 1700000000, None)
    assert read_state("\n") is None


@pytest.mark.parametrize("text", ["[]", "{}", "no", '{"answers":1,"busy":0,"idle_seconds":null}'])
def test_anything_else_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|Expecting value"):
        read_state(text)
