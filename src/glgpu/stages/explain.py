"""Explain: a pasted text of the other side in, its class, cause and remedy out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import BinaryIO

from glgpu.classify import LONGEST_TEXT
from glgpu.classify import explain as classify
from glgpu.console import Console
from glgpu.errors import EXIT_MEANINGS, ErrorClass, Failure
from glgpu.masking import tokens_in

CHUNK = 65_536
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|PRIVATE|AUTH|_KEY$")
"""Variables that hold a secret, to judge by their names."""
SHORTEST_SECRET = 8
LONGEST_INPUT = 4 * LONGEST_TEXT
"""Bytes that are kept of what is read, the last ones: UTF-8 takes at most four for a character."""


def explain(console: Console, source: BinaryIO, environment: Mapping[str, str], *, as_json: bool) -> None:
    """Say what a text means. That it means nothing known is an answer, too.

    Args:
        console: Where the answer goes.
        source: The text.
        environment: The process's variables. What they hold of secrets is masked, and what looks like a secret.
        as_json: One line of JSON instead of lines for people.

    Raises:
        Failure: USAGE, where there is no text.
    """
    text = read_tail(source).decode("utf-8", "replace")
    if not text.strip():
        raise Failure(
            ErrorClass.USAGE, "there is nothing to explain: the text is empty", "name a file, or `glgpu explain --help`"
        )
    secrets = [value for name, value in environment.items() if SECRET_NAME.search(name)]
    for secret in [*filter(lambda value: len(value) >= SHORTEST_SECRET, secrets), *tokens_in(text)]:
        console.masker.add(secret)
    found = classify(console.masker.mask(text))
    if as_json:
        answer = {
            "class": found.klass,
            "cause": found.cause,
            "remedy": found.remedy,
            "exit_code": found.exit_code,
            "retry": found.retry,
        }
        console.say(json.dumps(answer, ensure_ascii=False))
        return
    meaning = EXIT_MEANINGS[found.exit_code]
    console.say(f"class:     {found.klass}")
    console.say(f"cause:     {found.cause}")
    console.say(f"remedy:    {found.remedy}")
    console.say(f"exit code: {found.exit_code} ({meaning})")
    console.say(f"retry:     {'can help as it is' if found.retry else 'does not help before something is changed'}")


def read_tail(source: BinaryIO) -> bytes:
    """The end of a stream, however long it is."""
    tail = b""
    while chunk := source.read(CHUNK):
        tail = (tail + chunk)[-LONGEST_INPUT:]
    return tail
