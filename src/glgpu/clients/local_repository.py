"""The checkout this process stands in, through git: one exact commit as a pack, and its files as tar."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO

from glgpu.errors import ErrorClass, Failure
from glgpu.processes import Running, need_tool, run


class LocalRepository:
    """A git checkout.

    Args:
        folder: Its top.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def head(self) -> str:
        """The checked-out commit; empty where this is no checkout."""
        done = run([*self._git(), "rev-parse", "--verify", "-q", "HEAD"])
        return done.text.strip() if done.code == 0 else ""

    def origin(self) -> str:
        """Address of the remote ``origin``; empty where there is none, or where this is no checkout."""
        done = run([*self._git("to see where this repository is from"), "remote", "get-url", "origin"])
        return done.text.strip() if done.code == 0 else ""

    def branch(self) -> str:
        """The checked-out branch; empty where there is none, or where this is no checkout."""
        done = run([*self._git("to see which branch this is"), "branch", "--show-current"])
        return done.text.strip() if done.code == 0 else ""

    def changed(self) -> list[str]:
        """Tracked files that differ from the commit."""
        return [path for path in self._list("diff", "--name-only", "-z", "HEAD") if path]

    def write_pack(self, commit: str, to: IO[bytes]) -> None:
        """Write the objects of one commit, without its history, as a pack.

        Raises:
            Failure: CODE.
        """
        objects = run([*self._git(), "rev-list", "--objects", "--no-object-names", "--max-count=1", commit])
        argv = [*self._git(), "pack-objects", "--stdout", "-q", "--delta-base-offset"]
        with Running(argv, stdin=True, stderr=True) as process:
            process.stdin.write(objects.stdout)
            process.stdin.close()
            while data := process.stdout.read(1 << 20):
                to.write(data)
            complaint = process.stderr.read()
            if objects.code != 0 or process.wait() != 0:
                raise _broken(objects.complaint or complaint.decode("utf-8", "replace"))

    def write_tar(self, to: IO[bytes]) -> None:
        """Write every tracked file as it lies here, submodules' and LFS files too, as a tar stream."""
        with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in self._list("ls-files", "--recurse-submodules", "-z"):
                path = self._folder / name
                if path.is_symlink() or path.is_file():
                    archive.add(path, arcname=f"./{name}", recursive=False, filter=_anonymous)

    def _list(self, *words: str) -> list[str]:
        done = run([*self._git(), *words])
        if done.code != 0:
            raise _broken(done.complaint)
        return [name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\0") if name]

    def _git(self, why: str = "to bring the code to the VM") -> list[str]:
        # A job's checkout may belong to another user than the one who runs the job: that is the runner's business.
        git = need_tool("git", why)
        return [git, "-c", "safe.directory=*", "-c", "core.quotePath=false", "-C", str(self._folder)]


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _broken(complaint: str) -> Failure:
    return Failure(
        ErrorClass.CODE,
        f"git cannot read the job's checkout: {complaint}",
        "check GIT_STRATEGY and GIT_DEPTH of the job, or set `code: deploy-key`",
        complaint,
    )
