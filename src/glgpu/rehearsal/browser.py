"""A browser's side of JupyterLab, without the browser: HTTP requests, and web sockets to kernels and terminals."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp


class Browser:
    """Somebody who has the token.

    Args:
        where: An address, or the UNIX socket on which it listens.
        token: The token.
    """

    def __init__(self, where: str | Path, token: str) -> None:
        self._base = where if isinstance(where, str) else "http://localhost"
        self._socket = where if isinstance(where, Path) else None
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._tabs: list[aiohttp.ClientWebSocketResponse] = []

    def __enter__(self) -> Self:
        async def begin() -> aiohttp.ClientSession:
            connector = aiohttp.UnixConnector(str(self._socket)) if self._socket else aiohttp.TCPConnector()
            return aiohttp.ClientSession(connector=connector, headers=self._headers)

        self._session = self._do(begin())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._session is not None
        self._do(self._session.close())
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(what, 90))

    def ask(self, verb: str, path: str, **said: Any) -> tuple[int, Any]:
        """Status and JSON of a request."""

        async def go() -> tuple[int, Any]:
            assert self._session is not None
            async with self._session.request(verb, f"{self._base}/{path}", json=said or None) as answer:
                text = await answer.text()
                # JupyterLab calls some of its pages about what is not there JSON.
                is_json = answer.ok and answer.content_type == "application/json" and text
                return answer.status, await answer.json() if is_json else text

        status, answer = self._do(go())
        return int(status), answer

    def read(self, name: str) -> bytes:
        """A file of the workspace, as it is."""

        async def go() -> bytes:
            assert self._session is not None
            async with self._session.get(f"{self._base}/files/{name}") as answer:
                answer.raise_for_status()
                return await answer.read()

        data: bytes = self._do(go())
        return data

    def kernel(self) -> str:
        """Start one; its id."""
        status, answer = self.ask("POST", "api/kernels", name="python3")
        assert status == 201, answer
        return str(answer["id"])

    def type(self, terminal: str, text: str) -> None:
        """Type into a terminal."""

        async def go() -> None:
            assert self._session is not None
            async with self._session.ws_connect(f"{self._base}/terminals/websocket/{terminal}") as tab:
                await tab.receive()
                await tab.send_json(["stdin", text])
                await tab.receive()

        self._do(go())

    def open_tab(self, kernel: str) -> aiohttp.ClientWebSocketResponse:
        """What an open notebook keeps, and what it asks when it opens."""

        async def go() -> aiohttp.ClientWebSocketResponse:
            assert self._session is not None
            tab = await self._session.ws_connect(f"{self._base}/api/kernels/{kernel}/channels")
            await tab.send_json(message("kernel_info_request", {}))
            return tab

        tab: aiohttp.ClientWebSocketResponse = self._do(go())
        return tab

    def send(self, tab: aiohttp.ClientWebSocketResponse, code: str) -> str:
        """Have a cell run; the message's id."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        asked = message("execute_request", content)
        self._do(tab.send_json(asked))
        return str(asked["header"]["msg_id"])

    def cell(self, tab: aiohttp.ClientWebSocketResponse, code: str) -> str:
        """Run a cell to its end; what it printed, or its error."""
        asked = self.send(tab, code)

        async def read() -> str:
            said = ""
            while True:
                got = await tab.receive_json()
                if got["parent_header"].get("msg_id") != asked:
                    continue
                if got["msg_type"] == "stream":
                    said += got["content"]["text"]
                if got["msg_type"] == "error":
                    said += f"{got['content']['ename']}: {got['content']['evalue']}"
                if got["msg_type"] == "execute_reply":
                    # What it printed may come after the reply.
                    continue
                if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                    return said

        return str(self._do(read()))


def message(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """One of Jupyter's messages."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": "test", "date": "",
              "version": "5.3"}  # fmt: skip
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell",
            "buffers": []}  # fmt: skip
