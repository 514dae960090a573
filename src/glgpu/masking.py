"""The one place that hides secrets: from our own messages, from the training's log, from every file we write."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterable
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
            if len(text.strip()) >= SHORTEST:
                self._forms |= _forms(text)
        self._pattern = _any_of(self._forms)

    @property
    def forms(self) -> list[bytes]:
        """Every form in which a secret is recognised, the longest first."""
        return sorted(self._forms, key=lambda form: (-len(form), form))

    def mask(self, text: str) -> str:
        """Return ``text`` with every secret replaced."""
        return self.mask_bytes(to_bytes(text)).decode("utf-8", "surrogateescape")

    def mask_bytes(self, data: bytes) -> bytes:
        """Return ``data`` with every secret replaced; secrets that overlap are replaced together."""
        out, position = [], 0
        for begin, end in self.covered(data):
            out += [data[position:begin], MASK.encode()]
            position = end
        return b"".join([*out, data[position:]])

    def covered(self, data: bytes, already: int = 0) -> list[tuple[int, int]]:
        """The stretches of ``data`` that are secret, in order, those that overlap joined.

        Args:
            data: Where to look.
            already: How many bytes at the beginning are known to be secret.
        """
        found = [(0, already)] if already else []
        position = 0
        while self._pattern is not None and (match := self._pattern.search(data, position)):
            begin, end = match.span()
            if found and begin < found[-1][1]:
                found[-1] = (found[-1][0], max(end, found[-1][1]))
            else:
                found.append((begin, end))
            position = begin + 1
        return found

    def held_back(self, data: bytes) -> int:
        """How many bytes at the end of ``data`` could be the beginning of a secret."""
        first = len(data)
        for form in self._forms:
            begin = data.find(form[:1], max(0, len(data) - len(form) + 1), first)
            while begin >= 0 and not form.startswith(data[begin:]):
                begin = data.find(form[:1], begin + 1, first)
            if begin >= 0:
                first = begin
        return len(data) - first


class StreamMasker:
    """Masks a stream whose secrets may be split over any number of writes.

    It holds back less than the longest form of a secret; what comes out is what masking the whole at once gives.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._rest = b""
        self._hidden = 0  # bytes at the beginning of the rest that a mask already stands for

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream and return what can be let out."""
        data = self._rest + data
        keep = len(data) - self._masker.held_back(data)
        return self._let_out(data, keep)

    def flush(self) -> bytes:
        """Return what was held back: the stream has ended."""
        return self._let_out(self._rest, len(self._rest))

    def _let_out(self, data: bytes, keep: int) -> bytes:
        """Let out what lies before ``keep``; a secret that reaches beyond it is let out as its mask."""
        out, position, hidden = [], 0, 0
        for begin, end in self._masker.covered(data, self._hidden):
            announced = begin == 0 and self._hidden > 0
            if begin >= keep and not announced:
                break
            out.append(data[position:begin])
            if not announced:
                out.append(MASK.encode())
            position, hidden = min(end, keep), max(0, end - keep)
        out.append(data[position:keep])
        self._rest, self._hidden = data[keep:], hidden
        return b"".join(out)


_TOKENS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{1,10000}?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bgl(?:pat|dt|rt|rtr|cbt|ptt|agent|ft|imt|soat|ffct|oas)-[\w.-]{8,}|\bGR1348941[\w-]{10,}"
    r"|\b(?:ya29\.|1//0|AIza|GOCSPX-)[\w-]{10,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bhf_\w{20,}"
    r"|\bsk-[\w-]{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bdckr_(?:pat|oat)_[\w-]{20,}|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"
    r"|(?<=://)[^\s/:@'\"]*:[^\s/@'\"]{4,}(?=@)"
    r"|(?i:(?<=bearer )|(?<=basic )|(?<=private-token: )|(?<=job-token: )|(?<=password=)|(?<=passwd=)|(?<=token=)"
    r"|(?<=secret=)|(?<=api_key=)|(?<=apikey=))[^\s'\"&,;]{8,}"
    r"|(?i:(?<=\"password\": \")|(?<=\"private_key\": \")|(?<=\"refresh_token\": \")|(?<=\"access_token\": \")"
    r"|(?<=\"client_secret\": \")|(?<=\"auth\": \"))[^\"]{4,}",
)
"""What is a secret by its looks: keys, passwords in addresses, tokens of GitLab, Google, GitHub, Docker and others."""


def tokens_in(text: str) -> list[str]:
    """Secrets that nobody told us of: what people paste may hold some."""
    return [match[0] for match in _TOKENS.finditer(text)]


def to_bytes(text: str) -> bytes:
    """Text as UTF-8; what came from other bytes becomes those bytes again, any other lone surrogate a question mark."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _forms(text: str) -> set[bytes]:
    raw = to_bytes(text)
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    # Go and Rails write <, > and & as escapes, PHP the slash; `safe` is what encodeURIComponent leaves alone.
    escaped = [json.dumps(text)[1:-1], plain, plain.replace("/", "\\/"), _html_safe(plain)]
    escaped += [quote(raw, safe=""), quote_plus(raw), quote(raw), quote(raw, safe="!'()*")]
    forms = {raw, *map(to_bytes, escaped)}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # The secret may stand anywhere in what was encoded (`user:secret`): cut the characters at both ends
            # that its neighbours have a part in.
            first = (before * 8 + 5) // 6
            last = ((before + len(raw)) * 8) // 6
            forms.add(encode(b"\0" * before + raw)[first:last])
    return {form for form in forms if len(form) >= SHORTEST}


def _html_safe(text: str) -> str:
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _any_of(forms: Iterable[bytes]) -> re.Pattern[bytes] | None:
    """A pattern of all forms, the longest first, sorted by their first byte so that most are never tried."""
    by_first: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for form in sorted(forms, key=len, reverse=True):
        by_first[form[:1]].append(form[1:])
    groups = [re.escape(first) + b"(?:" + b"|".join(map(re.escape, rest)) + b")" for first, rest in by_first.items()]
    return re.compile(b"|".join(groups)) if groups else None
