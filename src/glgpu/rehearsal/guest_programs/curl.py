"""``curl`` of a VM, which reaches its metadata server and nothing else.

Served are ``GET .../instance/{name,attributes/KEY,preempted}`` and ``PUT .../instance/guest-attributes/NAMESPACE/KEY``,
with the header ``Metadata-Flavor: Google`` as Google demands it
(https://cloud.google.com/compute/docs/metadata/querying-metadata).
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from glgpu.rehearsal.guest_programs.guest import Guest

HOST = "metadata.google.internal"
ROOT = "/computeMetadata/v1/instance/"
SWITCHES = "sfSL"
VALUED = {"-m", "-o", "-D", "-X", "-H", "--data-raw", "--retry"}
REFUSED = 22
"""curl's exit code with ``-f`` for a status of 400 and above; the others below are its own too."""
UNKNOWN_OPTION, UNKNOWN_HOST = 2, 6


def main(argv: list[str]) -> int:
    """Make one request."""
    options: dict[str, list[str]] = {}
    urls, words = [], list(argv)
    while words:
        word = words.pop(0)
        if word in VALUED and words:
            options.setdefault(word, []).append(words.pop(0))
        elif word.startswith("-") and not word.startswith("--") and set(word[1:]) <= set(SWITCHES):
            continue
        elif word.startswith("-"):
            print(f"curl: option {word}: is unknown", file=sys.stderr)
            return UNKNOWN_OPTION
        else:
            urls.append(word)
    if len(urls) != 1:
        print("curl: (2) no URL specified", file=sys.stderr)
        return UNKNOWN_OPTION
    url = urlsplit(urls[0])
    if url.hostname != HOST:
        print(f"curl: (6) Could not resolve host: {url.hostname}", file=sys.stderr)
        return UNKNOWN_HOST
    verb = options.get("-X", ["GET"])[-1]
    data = options.get("--data-raw", [""])[-1]
    if "Metadata-Flavor: Google" not in options.get("-H", []) or not url.path.startswith(ROOT):
        return refuse(403)
    query = dict(parse_qsl(url.query))
    answer = Guest().ask(do="metadata", verb=verb, path=url.path.removeprefix(ROOT), query=query, data=data)
    if answer["status"] != 200:
        return refuse(answer["status"])
    if "-D" in options:
        tag = f"ETag: {answer['etag']}\r\n" if "etag" in answer else ""
        Path(options["-D"][-1]).write_text(f"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n{tag}\r\n", newline="")
    if "-o" not in options:
        sys.stdout.write(answer["text"])
    return 0


def refuse(status: int) -> int:
    """Say that the server refused, as with ``-S``."""
    print(f"curl: (22) The requested URL returned error: {status}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
