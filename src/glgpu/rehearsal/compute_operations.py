"""Operations: every change is accepted first and carried out later, and may still fail then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from glgpu.rehearsal.compute_errors import OperationFailed
from glgpu.rehearsal.compute_resources import Links, Resource, new_id, timestamp
from glgpu.rehearsal.world_clock import WorldClock

LONGEST_WAIT = 120.0
"""Seconds for which one call of ``wait`` holds; then it answers with the operation as it is."""


@dataclass
class Operation:
    """One operation.

    Attributes:
        resource: What callers see of it.
        slow: Whether it takes longer than the others.
        done: Set when it is over, one way or the other.
    """

    resource: Resource
    slow: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Operations:
    """All operations of the project, and the tasks that carry them out.

    Attributes:
        latency: Seconds of the world's clock from PENDING to the work itself; half of them PENDING. With 0, an
            operation is done at the first look at it.
    """

    def __init__(self, clock: WorldClock, links: Links, user: str, latency: float) -> None:
        self.latency = latency
        self._clock = clock
        self._links = links
        self._user = user
        self._all: dict[tuple[str, str], Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self,
        kind: str,
        target: Resource,
        scope: str,
        work: Callable[[], Awaitable[None]],
        *,
        undo: Callable[[], None] | None = None,
        failure: OperationFailed | None = None,
        latency: float | None = None,
    ) -> Operation:
        """Accept a change.

        Args:
            kind: Google's word for it, ``insert`` for example.
            target: The resource that is changed.
            scope: ``zones/Z``, ``regions/R`` or ``global``.
            work: What is done after the latency. May raise OperationFailed.
            undo: Called when the operation fails.
            failure: Fail with this instead of doing the work.
            latency: Of this one alone.
        """
        number = new_id()
        name = f"operation-{int(self._clock.now() * 1000)}-{number}"
        now = timestamp(self._clock.now())
        resource: Resource = {
            "kind": "compute#operation",
            "id": number,
            "name": name,
            "operationType": kind,
            "targetLink": target["selfLink"],
            "targetId": target["id"],
            "status": "PENDING",
            "user": self._user,
            "progress": 0,
            "insertTime": now,
            "selfLink": self._links.to(f"{scope}/operations/{name}"),
        }
        if scope.startswith("zones/"):
            resource["zone"] = self._links.to(scope)
        if scope.startswith("regions/"):
            resource["region"] = self._links.to(scope)
        operation = self._all[scope, name] = Operation(resource, slow=latency is not None)
        task = asyncio.create_task(self._carry_out(operation, work, undo, failure, latency))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return operation

    def in_scope(self, scope: str) -> list[Resource]:
        """The operations of a zone or of the whole project."""
        return [operation.resource for (where, _), operation in self._all.items() if where == scope]

    def find(self, scope: str, name: str) -> Operation | None:
        """An operation by name or id."""
        for (where, known), operation in self._all.items():
            if where == scope and name in (known, operation.resource["id"]):
                return operation
        return None

    async def look(self, operation: Operation) -> Resource:
        """What one GET sees."""
        if self.latency == 0 and not operation.slow:
            await operation.done.wait()
        return operation.resource

    async def wait(self, operation: Operation) -> Resource:
        """What ``wait`` sees: the end, or how far it is after LONGEST_WAIT."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(operation.done.wait(), LONGEST_WAIT)
        return operation.resource

    async def stop(self) -> None:
        """Drop what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(
        self,
        operation: Operation,
        work: Callable[[], Awaitable[None]],
        undo: Callable[[], None] | None,
        failure: OperationFailed | None,
        own_latency: float | None,
    ) -> None:
        begun, latency = self._clock.now(), self.latency if own_latency is None else own_latency
        await self._until(begun + latency / 2)
        operation.resource |= {"status": "RUNNING", "startTime": timestamp(self._clock.now())}
        await self._until(begun + latency)
        try:
            if failure is not None:
                raise failure
            await self._work(work)
        except OperationFailed as failed:
            if undo is not None:
                undo()
            error = {"code": failed.code, "message": str(failed), "errorDetails": failed.details}
            operation.resource |= {
                "error": {"errors": [error]},
                "httpErrorStatusCode": failed.http_code,
                "httpErrorMessage": failed.http_message,
            }
        operation.resource |= {"status": "DONE", "progress": 100, "endTime": timestamp(self._clock.now())}
        operation.done.set()

    @staticmethod
    async def _work(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except OperationFailed:
            raise
        except Exception as mistake:
            # A mistake of a stand-in must end the operation, or its caller would wait for ever and learn nothing.
            raise OperationFailed("INTERNAL_ERROR", f"Internal error: {mistake!r}", 500, "INTERNAL ERROR") from mistake

    async def _until(self, when: float) -> None:
        if when <= self._clock.now():
            return
        reached = asyncio.Event()
        self._clock.call_at(when, reached.set)
        await reached.wait()
