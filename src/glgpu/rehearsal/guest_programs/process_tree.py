"""A process that owns everything below it: orphans come to it, and none of them outlives it.

Linux only (``PR_SET_CHILD_SUBREAPER``): whoever starts below such a process and loses its parent becomes its child
instead of the machine's, so that walking down from it finds every process, whatever it did to its session or its
environment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None, use_errno=True)


class ProcessTree:
    """The calling process as the root of a tree; to be made once, in the main thread.

    Attributes:
        wakeup: A file descriptor that becomes readable when a child has ended; then call ``reap``.
    """

    def __init__(self) -> None:
        if LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._children: dict[int, tuple[subprocess.Popen[bytes], Callable[[int], None]]] = {}
        self.wakeup, write_end = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def spawn(
        self,
        argv: list[str],
        fds: list[int],
        *,
        env: dict[str, str],
        cwd: str,
        on_exit: Callable[[int], None],
        executable: str | None = None,
    ) -> int:
        """Start a child in a session of its own that dies when this process dies.

        Args:
            argv: Its argument vector.
            fds: Its standard input, output and error.
            env: Its whole environment.
            cwd: Its working directory.
            on_exit: Called with its exit code, negative for a signal.
            executable: The file to run, where argv[0] is not it.

        Returns:
            Its process id.

        Raises:
            OSError: It cannot be started.
        """
        child = subprocess.Popen(
            argv, executable=executable, stdin=fds[0], stdout=fds[1], stderr=fds[2], env=env, cwd=cwd,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        self._children[child.pid] = (child, on_exit)
        return child.pid

    def reap(self) -> None:
        """Collect every child that has ended, adopted ones too."""
        with suppress(BlockingIOError):
            while os.read(self.wakeup, 4096):
                pass
        with suppress(ChildProcessError):
            while self._collect(os.WNOHANG):
                pass

    def end(self) -> None:
        """Kill everything below this process and return when nothing is left.

        A process forked while we kill turns up as a grandchild or, orphaned, as a child, so that a later round
        finds it; each round waits for one death, which is certain to come.
        """
        me = psutil.Process()
        with suppress(ChildProcessError):
            while True:
                for process in me.children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                self._collect(0)

    def _collect(self, options: int) -> bool:
        pid, status = os.waitpid(-1, options)
        if pid == 0:
            return False
        if pid in self._children:
            child, on_exit = self._children.pop(pid)
            child.returncode = os.waitstatus_to_exitcode(status)
            on_exit(child.returncode)
        return True


def die_with_parent() -> None:
    """Between fork and exec: be killed when the parent dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_tree(pid: int, started: float) -> None:
    """Kill a process and everything below it from outside, if it is still the one that started then.

    Args:
        pid: Root of the tree, itself a ``ProcessTree``.
        started: Its start time as psutil tells it; another process that got the same number is left alone.
    """
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        if root.create_time() != started:
            return
        while below := [p for p in root.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]:
            for process in below:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(below, timeout=1)
        root.kill()
        with suppress(psutil.TimeoutExpired):
            root.wait(timeout=10)
