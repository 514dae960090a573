"""Writes down the command line of every process that is started while it runs; a program of its own.

Standard output: one JSON string a line, a command line with its words parted by NUL. With root's rights the kernel
tells of each new program (its process connector); without, /proc is read over and over, and what lives for less than
some milliseconds may be missed. Ends when standard input is closed.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
from pathlib import Path

NETLINK_CONNECTOR, CN_IDX_PROC, CN_VAL_PROC, LISTEN, EXEC = 11, 1, 1, 1, 2
"""linux/netlink.h, linux/connector.h, linux/cn_proc.h."""
LOOK_SECONDS = 0.002


def main() -> None:
    """Watch until standard input is closed."""
    try:
        kernel = listen()
    except OSError:
        kernel = None
    seen: set[tuple[int, str]] = set()
    print(json.dumps("kernel" if kernel else "/proc"), flush=True)
    while True:
        sources = [sys.stdin] if kernel is None else [sys.stdin, kernel]
        ready, _, _ = select.select(sources, [], [], LOOK_SECONDS if kernel is None else None)
        try:
            pids = [started(kernel.recv(4096))] if kernel is not None and kernel in ready else every()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            pids = every()  # more has begun at once than the kernel could note down for us
        for pid in pids:
            line = command_line(pid)
            if line and (pid, line) not in seen:
                seen.add((pid, line))
                print(json.dumps(line), flush=True)
        if sys.stdin in ready:
            return


def listen() -> socket.socket:
    """Ask the kernel to tell of every process."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_CONNECTOR)
    kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    kernel.bind((0, CN_IDX_PROC))
    order = struct.pack("=IIIIHHI", CN_IDX_PROC, CN_VAL_PROC, 0, 0, 4, 0, LISTEN)
    kernel.send(struct.pack("=IHHII", 16 + len(order), 3, 0, 0, os.getpid()) + order)
    return kernel


def every() -> list[int]:
    """Every process that there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def started(message: bytes) -> int:
    """The process that has just begun a program; 0 where the message tells of something else."""
    what, _, _, pid = struct.unpack_from("=IIQI", message, 36)
    return int(pid) if what == EXEC else 0


def command_line(pid: int) -> str:
    """Its words; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape") if pid else ""
    except OSError:
        return ""


if __name__ == "__main__":
    main()
