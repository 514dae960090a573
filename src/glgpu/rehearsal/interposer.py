"""Between the callers and the stand-ins: whoever watches here may act at each of a call's four boundaries.

A process can be cut off before it sends, after it has sent, before it is answered and after it is. The stand-ins ask
here, so that a test can strike at exactly one of them; the caller knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import asyncssh
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

Moment = Literal["before send", "after send", "before answer", "after answer"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)


@dataclass(frozen=True)
class Reached:
    """A call that has reached a stand-in.

    Attributes:
        to: The stand-in: ``compute``, ``gitlab``, ``git``, ``vm``, ...
        verb: HTTP method, or what was asked.
        target: Path with query, or command.
        port: Local port of the caller's end of the connection; 0 where it is not known.
    """

    to: str
    verb: str
    target: str
    port: int = 0


class Cut(Protocol):
    """What happens to one call."""

    async def __call__(self, moment: Moment) -> bool:
        """Act at a boundary; whether the caller is gone: what it cannot have sent is not served, nor answered."""


class Interposer:
    """Asked by every stand-in, for every call.

    Attributes:
        watch: Told of each call before it is served; whom it returns is asked at the call's boundaries.
    """

    def __init__(self) -> None:
        self.watch: Callable[[Reached], Cut | None] | None = None

    def cut(self, call: Reached) -> Cut | None:
        """Who is to be asked at this call's boundaries."""
        return self.watch(call) if self.watch is not None else None

    def middleware(self, to: str) -> Middleware:
        """The same for a server of HTTP."""

        @web.middleware
        async def between(request: web.Request, handler: Handler) -> web.StreamResponse:
            peer = request.transport.get_extra_info("peername") if request.transport else None
            cut = self.cut(Reached(to, request.method, request.raw_path, peer[1] if peer else 0))
            if cut is None:
                return await handler(request)
            if await cut("before send"):
                return _hang_up(request)
            await cut("after send")
            response = await handler(request)
            if await cut("before answer"):
                return _hang_up(request)
            with suppress(ConnectionError):  # it may have died meanwhile, and of something else
                await response.prepare(request)
                await response.write_eof()
            await cut("after answer")
            return response

        return between

    async def session(
        self,
        to: str,
        process: asyncssh.SSHServerProcess[bytes],
        serve: Callable[[], Awaitable[Callable[[], None]]],
    ) -> None:
        """The same for a command over SSH.

        Args:
            to: The stand-in.
            process: The session.
            serve: Runs the command to its end, and returns what tells the caller how it ended.
        """
        cut = self.cut(Reached(to, "ssh", process.command or ""))
        connection: asyncssh.SSHServerConnection = process.get_extra_info("connection")
        if cut is None:
            (await serve())()
            return
        if await cut("before send"):
            connection.abort()
            return
        await cut("after send")
        answer = await serve()
        if await cut("before answer"):
            connection.abort()
            return
        answer()
        await cut("after answer")


def _hang_up(request: web.Request) -> web.Response:
    """End the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
