"""The one place that hides secrets: from our own messages, from the training's log, from every file we write."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, quote_plus

MASK = "[MASKED]"
SHORTEST = 4
"""A secret shorter than this cannot be masked: it would stand in half of all lines, and masking would tell it."""


class Masker:
    """Knows the secrets of this process in every form in which they usually appear."""

    def __init__(self) -> None:
        self._forms: set[bytes] = set()
        self._pattern: re.Pattern[bytes] | None = None

    def add(self, secret: str) -> None:
        """Hide ``secret`` from now on: as it is, line by line, in base64, URL- and JSON-escaped."""
        for text in {secret, secret.strip(), *(line.strip() for line in secret.splitlines())}:
            if len(text) >= SHORTEST:
                self._forms |= _forms(text)
        ordered = sorted(self._forms, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, ordered))) if ordered else None

    def mask(self, text: str) -> str:
        """Return ``text`` with every secret replaced."""
        return self.mask_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def mask_bytes(self, data: bytes) -> bytes:
        """Return ``data`` with every secret replaced."""
        return self._pattern.sub(MASK.encode(), data) if self._pattern else data

    def held_back(self, data: bytes) -> int:
        """How many bytes at the end of ``data`` could be the beginning of a secret."""
        longest = 0
        for form in self._forms:
            for length in range(min(len(form) - 1, len(data)), longest, -1):
                if data.endswith(form[:length]):
                    longest = length
                    break
        return longest


class StreamMasker:
    """Masks a stream whose secrets may be split over any number of writes."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream and return what can be let out."""
        whole = self._masker.mask_bytes(self._rest + data)
        keep = self._masker.held_back(whole)
        self._rest = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def flush(self) -> bytes:
        """Return what was held back: the stream has ended."""
        rest, self._rest = self._rest, b""
        return self._masker.mask_bytes(rest)


def _forms(text: str) -> set[bytes]:
    raw = text.encode("utf-8", "surrogateescape")
    forms = {raw, json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode("utf-8", "ignore")}
    forms |= {quote(raw, safe="").encode(), quote_plus(raw).encode(), quote(raw).encode()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # The secret may stand anywhere in what was encoded (`user:secret`): cut the characters at both ends
            # that its neighbours have a part in.
            first = (before * 8 + 5) // 6
            last = ((before + len(raw)) * 8) // 6
            forms.add(encode(b"\0" * before + raw)[first:last])
    return {form for form in forms if len(form) >= SHORTEST}
