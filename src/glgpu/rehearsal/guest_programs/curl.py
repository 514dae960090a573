"""``curl`` of a VM: its metadata server, and uploads to whatever answers over HTTP.

Served of the metadata server are ``GET .../instance/{name,attributes/KEY,preempted,service-accounts/...}`` and ``PUT
.../instance/guest-attributes/NAMESPACE/KEY``, with the header ``Metadata-Flavor: Google`` as Google demands it
(https://cloud.google.com/compute/docs/metadata/querying-metadata). To others goes what standard input gives (``-T -``),
in chunks as it comes. What curl itself knows beside that is refused.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from glgpu.rehearsal.guest_programs.guest import Guest

HOST = "metadata.google.internal"
ROOT = "/computeMetadata/v1/instance/"
SWITCHES = "sfSL"
VALUED = {
    "-m", "-o", "-D", "-X", "-H", "-T", "--data-raw", "--retry", "--connect-timeout", "--speed-limit", "--speed-time",
    "--cacert",
}  # fmt: skip
REFUSED = 22
"""curl's exit code with ``-f`` for a status of 400 and above; the others below are its own too."""
UNKNOWN_OPTION, UNKNOWN_HOST, NO_CONNECTION, CUT_OFF, TIMED_OUT, NOT_TRUSTED = 2, 6, 7, 56, 28, 60
PIECE = 1 << 16


def main(argv: list[str]) -> int:
    """Make one request."""
    options: dict[str, list[str]] = {}
    switches, urls, words = "", [], list(argv)
    while words:
        word = words.pop(0)
        if word in VALUED and words:
            options.setdefault(word, []).append(words.pop(0))
        elif word == "--http1.1":
            continue  # it knows no other
        elif word.startswith("-") and not word.startswith("--") and set(word[1:]) <= set(SWITCHES):
            switches += word[1:]
        elif word.startswith("-"):
            print(f"curl: option {word}: is unknown", file=sys.stderr)
            return UNKNOWN_OPTION
        else:
            urls.append(word)
    if len(urls) != 1:
        print("curl: (2) no URL specified", file=sys.stderr)
        return UNKNOWN_OPTION
    url = urlsplit(urls[0])
    if url.hostname != HOST and "-T" in options:
        return upload(url, options, switches)
    if url.hostname != HOST:
        print(f"curl: (6) Could not resolve host: {url.hostname}", file=sys.stderr)
        return UNKNOWN_HOST
    if "-T" in options:
        return refuse(405, switches)
    verb = options.get("-X", ["GET"])[-1]
    data = options.get("--data-raw", [""])[-1]
    if "Metadata-Flavor: Google" not in options.get("-H", []) or not url.path.startswith(ROOT):
        return refuse(403, switches)
    query = dict(parse_qsl(url.query))
    answer = Guest().ask(do="metadata", verb=verb, path=url.path.removeprefix(ROOT), query=query, data=data)
    if answer["status"] != 200:
        return refuse(answer["status"], switches)
    if "-D" in options:
        tag = f"ETag: {answer['etag']}\r\n" if "etag" in answer else ""
        Path(options["-D"][-1]).write_text(f"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n{tag}\r\n", newline="")
    if "-o" not in options:
        sys.stdout.write(answer["text"])
    return 0


def refuse(status: int, switches: str) -> int:
    """Say that the server refused, unless with ``-s`` and without ``-S``."""
    if "s" not in switches or "S" in switches:
        print(f"curl: (22) The requested URL returned error: {status}", file=sys.stderr)
    return REFUSED


def upload(url: SplitResult, options: dict[str, list[str]], switches: str) -> int:
    """Send standard input to a server outside the VM."""
    if options["-T"] != ["-"] or "f" not in switches or "L" in switches or "-X" in options:
        print("curl: this virtual machine's curl only sends standard input: -f -T -", file=sys.stderr)
        return UNKNOWN_OPTION
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    fate = Guest().ask(do="egress", host=host)["fate"]
    if fate == "silence":
        print(f"curl: (28) Failed to connect to {host} port {port}: Connection timed out", file=sys.stderr)
        return TIMED_OUT
    headers = dict(line.split(": ", 1) for line in header_lines(options.get("-H", [])))
    seconds = float(options.get("--connect-timeout", ["300"])[-1])
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    if url.scheme == "https":
        trusted = ssl.create_default_context(cafile=options.get("--cacert", [None])[-1])
        connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=trusted)
    try:
        if fate == "refuse":
            raise ConnectionRefusedError
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        print(f"curl: (60) SSL certificate problem: {error.verify_message}", file=sys.stderr)
        return NOT_TRUSTED
    except OSError:
        print(f"curl: (7) Failed to connect to {host} port {port}: Connection refused", file=sys.stderr)
        return NO_CONNECTION
    target = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
    try:
        # A server that is silent is given up only by --speed-time, whatever its answer takes.
        connection.sock.settimeout(float(options.get("--speed-time", ["0"])[-1]) or None)
        connection.request("PUT", target, body=pieces(), headers=headers, encode_chunked=True)
        answer = connection.getresponse()
        text = answer.read()
    except TimeoutError:
        print("curl: (28) Operation too slow. Less than the limit transferred the last seconds", file=sys.stderr)
        return TIMED_OUT
    except (OSError, http.client.HTTPException):
        print("curl: (56) Recv failure: Connection reset by peer", file=sys.stderr)
        return CUT_OFF
    if "-D" in options:
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.getheaders())
        Path(options["-D"][-1]).write_text(f"HTTP/1.1 {answer.status} {answer.reason}\r\n{head}\r\n", newline="")
    if answer.status >= 400:
        return refuse(answer.status, switches)
    if "-o" not in options:
        sys.stdout.buffer.write(text)
    return 0


def header_lines(given: list[str]) -> Iterator[str]:
    """The headers; ``@FILE`` stands for the lines of a file."""
    for one in given:
        yield from Path(one[1:]).read_text().splitlines() if one.startswith("@") else [one]
    yield "Transfer-Encoding: chunked"


def pieces() -> Iterator[bytes]:
    """Standard input."""
    while piece := sys.stdin.buffer.read(PIECE):
        yield piece


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
