"""The boundaries of a call: what is served and what is answered when the caller dies at one of them."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from glgpu.rehearsal.interposer import MOMENTS, Interposer, Moment, Reached


class Watch:
    """Notes what it is told, and says at one boundary that the caller is gone."""

    def __init__(self, gone_at: Moment | None = None) -> None:
        self.gone_at = gone_at
        self.seen: list[str] = []
        self.calls: list[Reached] = []

    def __call__(self, reached: Reached) -> Watch:
        self.calls.append(reached)
        return self

    async def at(self, moment: Moment) -> bool:
        self.seen.append(moment)
        return moment == self.gone_at


async def ask(watch: Watch | None) -> tuple[str, list[str]]:
    """What a caller is answered, and what happened on the other side in which order."""
    order = watch.seen if watch else []
    interposer = Interposer()
    interposer.watch = (lambda reached: watch(reached).at) if watch else None

    async def serve(_: web.Request) -> web.Response:
        order.append("served")
        return web.Response(text="answer")

    app = web.Application(middlewares=[interposer.middleware("compute")])
    app.router.add_get("/a", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/a?b=c") as answer,
        ):
            said = await answer.text()
        await asyncio.sleep(0)
    except aiohttp.ClientError:
        said = "no answer"
    finally:
        await runner.cleanup()
    return said, order


def test_where_nobody_watches_a_call_is_served() -> None:
    assert asyncio.run(ask(None)) == ("answer", ["served"])


def test_a_watched_call_passes_its_four_boundaries_in_order() -> None:
    watch = Watch()
    said, order = asyncio.run(ask(watch))
    assert said == "answer"
    assert order == ["before send", "after send", "served", "before answer", "after answer"]
    (reached,) = watch.calls
    assert (reached.to, reached.verb, reached.target) == ("compute", "GET", "/a?b=c")
    assert reached.port > 0


@pytest.mark.parametrize(
    ("moment", "served", "answered"),
    [
        ("before send", False, False),
        ("after send", True, True),  # the answer goes to nobody: the dead one's socket is closed
        ("before answer", True, False),
        ("after answer", True, True),
    ],
)
def test_what_a_dead_caller_has_not_sent_is_not_served(moment: Moment, served: bool, answered: bool) -> None:
    said, order = asyncio.run(ask(Watch(moment)))
    assert ("served" in order) is served
    assert (said == "answer") is answered
    assert [one for one in order if one in MOMENTS][-1] == ("after answer" if answered else moment)
