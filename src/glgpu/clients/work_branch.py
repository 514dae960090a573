"""A branch of the project at GitLab over SSH, by git: no more of the repository is fetched than one commit needs."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from glgpu.classify import explain, lay_bare
from glgpu.clients.key_pair import make_key_pair
from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure, one_line
from glgpu.interfaces import WorkCommit
from glgpu.lifetime import spoken
from glgpu.processes import Done, Running, TimedOut, environment, need_tool, run

WHY = "to push a notebook's work"
ANSWER_SECONDS = 15
CHUNK = 1 << 20
TRAILER = "Glgpu-Commit: "
"""Line of a commit's message with the commit that its work was made from, so that nobody needs the history for that."""
WORK = "refs/glgpu/work"
RULES = (".gitignore", ".gitattributes")
"""Files in which a repository says what git does with others."""
IGNORED, LARGE, FOREIGN = "ignored by git", "for Git LFS", "in a submodule"
UNREACHABLE = "see that runners reach GitLab's SSH port, or set notebook.can_push: false"
SETTINGS = {
    # Nothing of this machine's configuration, nor of whoever runs this.
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_VARIANT": "ssh",
}
OTHERS = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_SSH",
    "GIT_ASKPASS",
)
"""Variables that would lead git elsewhere."""


class WorkBranch:
    """A branch, reached with a key of its own.

    Args:
        address: Where git finds the project, as ``ssh://git@HOST:PORT/PATH``.
        folder: For key and repository; what lies there is removed.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder.absolute()
        self._key = self._folder / "key"
        self._known = self._folder / "known_hosts"
        self._tree = self._folder / "tree"

    def make_key(self, comment: str) -> str:
        """Make a key pair for this alone; its public half."""
        self.close()
        return make_key_pair(self._key, comment, "pushes a notebook's work")

    def answering_keys(self) -> str:
        """The SSH host keys that GitLab's SSH port answers with; empty where it does not answer."""
        where = urlsplit(self._address)
        scan = need_tool("ssh-keyscan", WHY)
        argv = [scan, "-T", str(ANSWER_SECONDS), "-p", str(where.port or 22), str(where.hostname)]
        try:
            done = run(argv, timeout=2 * ANSWER_SECONDS)
        except TimedOut:
            return ""
        return "".join(f"{line}\n" for line in done.text.splitlines() if not line.startswith("#"))

    def open(self, known_hosts: str) -> None:
        """Begin with an empty repository, and GitLab's host keys as known_hosts lines; no others are taken."""
        try:
            self._known.write_text(known_hosts, encoding="utf-8")
        except OSError as error:
            raise cannot_write(error, self._known) from None
        self._need(self._git("init", "-q", "--template=", str(self._tree), within=False), "making a repository")

    def tip(self, branch: str, seconds: float) -> str:
        """The commit that a branch is at; empty where there is no such branch."""
        ref = f"refs/heads/{branch}"
        done = self._ask("looking at the branch", seconds, "ls-remote", self._address, ref)
        found = (line.partition("\t") for line in done.text.splitlines())
        # git shows what ends with the name.
        return next((commit for commit, _, name in found if name == ref), "")

    def commit(
        self, base: str, tip: str, folder: Path, names: Sequence[str], author: str, message: str, seconds: float
    ) -> WorkCommit:
        """Make a commit of what a commit has, with files put over it, byte for byte.

        Modes are those that the repository has; a new file's is that of any file.
        """
        commits = [base, *([tip] if tip else [])]
        doing = "fetching the commit that the notebook had"
        self._ask(doing, seconds, "fetch", "-q", "--depth=1", "--no-tags", self._address, *commits)
        modes = self._modes(base)
        self._lay_rules(base, folder, names)
        left_out = self._left_out(modes, names)
        stay_out = {name for group in left_out.values() for name in group}
        chosen = [name for name in names if name not in stay_out]
        whose = _whose(author)
        self._write(base, folder, {name: modes.get(name, "100644") for name in chosen}, whose)
        tree = self._said("rev-parse", f"{WORK}^{{tree}}")
        if tree == self._said("rev-parse", f"{tip or base}^{{tree}}"):
            return WorkCommit("", 0, left_out)
        parents = [tip] if tip and self._is_behind(base, tip) else [*([tip] if tip else []), base]
        words = [word for parent in parents for word in ("-p", parent)]
        roles = {f"GIT_{role}_{what}": whose[what] for role in ("AUTHOR", "COMMITTER") for what in whose}
        made = self._git("commit-tree", *words, tree, stdin=f"{message}\n\n{TRAILER}{base}\n".encode(), env=roles)
        return WorkCommit(self._need(made, "making the commit").text.strip(), len(chosen), left_out)

    def push(self, commit: str, branch: str, seconds: float) -> bool:
        """Bring a commit onto a branch, on which it begins no pipeline; False: somebody else was faster.

        The option is GitLab's own (https://docs.gitlab.com/topics/git/commit/#push-options). Nothing is ever forced.
        """
        words = ["push", "--porcelain", "--push-option=ci.skip", self._address, f"{commit}:refs/heads/{branch}"]
        done = self._far(f"pushing to {branch}", seconds, *words)
        refused = next((line for line in done.text.splitlines() if line.startswith("!\t")), "")
        if done.code == 0:
            return True
        if "[rejected]" in refused or ("cannot lock ref" in done.complaint + refused and _moved(done.complaint)):
            return False
        raise _refused(done.complaint, f"{done.complaint}\n{refused}", f"pushing to {branch}")

    def close(self) -> None:
        """Remove key and repository."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _modes(self, commit: str) -> dict[str, str]:
        """Path -> mode of everything that a commit has."""
        listed = self._need(self._git("ls-tree", "-r", "-z", "--full-tree", commit), "reading the commit")
        entries = (entry.partition(b"\t") for entry in listed.stdout.split(b"\0") if entry)
        return {os.fsdecode(name): facts.split(b" ", 1)[0].decode() for facts, _, name in entries}

    def _lay_rules(self, base: str, folder: Path, names: Sequence[str]) -> None:
        """Have what says how git treats files, as the work has it, and an index of the commit."""
        self._need(self._git("read-tree", base), "reading the commit")
        listed = self._git("ls-files", "-z", "--", *(f":(glob)**/{name}" for name in RULES))
        found = self._need(listed, "reading the commit").stdout
        self._need(self._git("checkout-index", "-q", "-f", "-z", "--stdin", stdin=found), "reading the commit")
        try:
            for name in names:
                if PurePosixPath(name).name in RULES and not _is_gits_own(name):
                    target = self._tree / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, target)
        except OSError as error:
            raise cannot_write(error, self._tree) from None

    def _left_out(self, modes: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
        """Why -> the files that do not belong into a commit."""
        modules = {name for name, mode in modes.items() if mode == "160000"}
        foreign = [name for name in names if _is_gits_own(name) or not modules.isdisjoint(_above(name))]
        rest = sorted(set(names) - set(foreign))
        ignored = self._git("check-ignore", "-z", "--stdin", stdin=_listed(rest))
        if ignored.code not in (0, 1):
            self._need(ignored, "asking git what it ignores")
        out = {os.fsdecode(name) for name in ignored.stdout.split(b"\0") if name}
        rest = [name for name in rest if name not in out]
        told = self._need(self._git("check-attr", "-z", "--stdin", "filter", stdin=_listed(rest)), "reading attributes")
        facts = told.stdout.split(b"\0")
        large = [os.fsdecode(name) for name, value in zip(facts[::3], facts[2::3], strict=False) if value == b"lfs"]
        return {why: group for why, group in ((IGNORED, sorted(out)), (LARGE, large), (FOREIGN, foreign)) if group}

    def _write(self, base: str, folder: Path, modes: Mapping[str, str], whose: Mapping[str, str]) -> None:
        """Make a commit with the files over what the base has; its tree is what counts."""
        argv = [*self._command(), "fast-import", "--quiet", "--done", "--force"]
        with Running(argv, stdin=True, stderr=True, env=self._environment()) as process:
            try:
                line = f"commit {WORK}\ncommitter {whose['NAME']} <{whose['EMAIL']}> 0 +0000\ndata 0\nfrom {base}\n"
                process.stdin.write(line.encode("utf-8", "surrogateescape"))
                for name, mode in modes.items():
                    _give(process.stdin, folder / name, name, "100755" if mode == "100755" else "100644")
                process.stdin.write(b"done\n")
                process.stdin.close()
            except BrokenPipeError:
                pass  # its complaint tells more
            except OSError as error:
                raise cannot_write(error, self._tree) from None
            complaint = process.stderr.read()
            done = Done(argv, process.wait(), b"", complaint)
        self._need(done, "writing the files into the repository")

    def _is_behind(self, base: str, tip: str) -> bool:
        """Whether what a branch is at has a commit among its parents, or was itself made from it."""
        head, _, message = self._said("cat-file", "commit", tip).partition("\n\n")
        return tip == base or f"parent {base}" in head.splitlines() or f"{TRAILER}{base}" in message.splitlines()

    def _ask(self, doing: str, seconds: float, *words: str) -> Done:
        """Ask GitLab.

        Raises:
            Failure: it refuses, or does not answer in time.
        """
        done = self._far(doing, seconds, *words)
        if done.code != 0:
            raise _refused(done.complaint, done.complaint, doing)
        return done

    def _far(self, doing: str, seconds: float, *words: str) -> Done:
        """Let git talk to GitLab.

        Raises:
            Failure: NETWORK, when it does not answer in time.
        """
        try:
            return self._git(*words, seconds=seconds)
        except TimedOut:
            told = f"{doing}: GitLab does not answer over SSH within {spoken(seconds)}"
            raise Failure(ErrorClass.NETWORK, told, UNREACHABLE) from None

    def _said(self, *words: str) -> str:
        return self._need(self._git(*words), "reading the commit").text.strip()

    def _need(self, done: Done, doing: str) -> Done:
        if done.code != 0:
            raise Failure(
                ErrorClass.CODE,
                f"{doing}: {one_line(done.complaint)}",
                "take the work from the artifacts; `glgpu explain` says what git means",
                done.complaint,
            )
        return done

    def _git(
        self,
        *words: str,
        stdin: bytes = b"",
        seconds: float | None = None,
        env: Mapping[str, str] | None = None,
        within: bool = True,
    ) -> Done:
        argv = [*self._command(within=within), *words]
        return run(argv, stdin=stdin, timeout=seconds, env=self._environment(env))

    def _command(self, *, within: bool = True) -> list[str]:
        options = {
            "core.quotePath": "false",
            "core.excludesFile": os.devnull,
            "core.attributesFile": os.devnull,
            "core.hooksPath": os.devnull,
            "gc.auto": "0",
            "protocol.allow": "never",
            "protocol.ssh.allow": "always",
        }
        where = ["-C", str(self._tree)] if within else []
        return [need_tool("git", WHY), *where, *(w for key, value in options.items() for w in ("-c", f"{key}={value}"))]

    def _environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        options = {
            "IdentityFile": f'"{self._key}"',
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "UserKnownHostsFile": f'"{self._known}"',
            "GlobalKnownHostsFile": os.devnull,
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(ANSWER_SECONDS),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        ssh = shlex.join([need_tool("ssh", WHY), "-F", os.devnull, *words])
        return environment({**SETTINGS, "GIT_SSH_COMMAND": ssh, **(more or {})}, without=OTHERS)


def _give(to: IO[bytes], source: Path, name: str, mode: str) -> None:
    """Put a file into the stream of git-fast-import(1)."""
    quoted = os.fsencode(name).replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        to.write(b'M %s inline "%s"\ndata %d\n' % (mode.encode(), quoted, size))
        left = size
        while left and (data := file.read(min(CHUNK, left))):
            to.write(data)
            left -= len(data)
    to.write(b"\n")


def _listed(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def _above(name: str) -> list[str]:
    """The folders that a path leads through, and itself."""
    return [name, *map(str, PurePosixPath(name).parents)]


def _is_gits_own(name: str) -> bool:
    return any(part.lower() == ".git" for part in name.split("/"))


def _whose(author: str) -> dict[str, str]:
    """A name that git takes, and an address that is nobody's (RFC 2606)."""
    plain = "".join(letter for letter in author if letter.isprintable() and letter not in "<>").strip() or "somebody"
    return {"NAME": plain, "EMAIL": "glgpu-notebook@noreply.invalid"}


def _moved(complaint: str) -> bool:
    """Whether a branch could not be changed because somebody has changed it meanwhile."""
    return "but expected" in complaint or "reference already exists" in complaint


def _refused(complaint: str, evidence: str, doing: str) -> Failure:
    """What GitLab says against it, in its words where those are known, and what can be done."""
    told = explain(evidence, unknown=ErrorClass.GITLAB, doing=doing)
    said = [line.removeprefix("remote: ") for line in lay_bare(complaint).splitlines() if line.startswith("remote: ")]
    word = next((line for line in said if line.startswith(("GitLab: ", "ERROR: "))), "")
    if word:
        told = Failure(ErrorClass.GITLAB, f"{doing}: GitLab refuses: {word.partition(': ')[2].strip()}", told.remedy)
    remedies = {
        ErrorClass.NETWORK: UNREACHABLE,
        ErrorClass.TRANSIENT: "nothing to do if GitLab is back: the next notebook's end pushes this work too",
        ErrorClass.GITLAB: "let deploy keys push to glgpu-notebook/* (protected branches and push rules, in Settings > "
        "Repository), or set notebook.can_push: false",
    }
    remedy = remedies.get(told.klass, "see that git works over SSH with your GitLab, or set notebook.can_push: false")
    return Failure(told.klass, told.cause, remedy, evidence)
