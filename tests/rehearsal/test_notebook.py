"""A notebook from click to artifacts: jobs and a laptop as processes, JupyterLab on a stand-in VM, a real tunnel."""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from rehearsing import GLGPU, rehearse
from serving import Served, stand_ins

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab: not installed here: no notebook is started"
)
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
PICTURE = os.environ.get("GLGPU_PICTURE", "")
"""Where the picture for docs/how-to/notebook.md goes, for whoever wants a new one."""


@pytest.fixture
def served() -> Iterator[Served]:
    with stand_ins(GLGPU, ROOT / "examples/text-generation", "--notebook") as world:
        yield world


def job(served: Served, folder: Path, *words: str, **own: str) -> subprocess.CompletedProcess[str]:
    """A job of the pipeline that calls glgpu."""
    folder.mkdir(exist_ok=True)
    variables = served.environment | {"CI_PROJECT_DIR": str(folder), "GITLAB_USER_LOGIN": "ada"} | own
    return subprocess.run(
        [GLGPU, *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder.parent), **variables},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def started_notebook(served: Served, checkout: Path) -> str:
    """Play `start notebook` in a checkout of its own; what it printed."""
    whose = f"://gitlab-ci-token:{served.environment['CI_JOB_TOKEN']}@"
    subprocess.run(["git", "clone", "-q", served.told["repository_url"].replace("://", whose), checkout], check=True)
    done = job(served, checkout, "notebook", "start", CI_JOB_NAME="start notebook")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def laptop(served: Served, home: Path) -> dict[str, str]:
    """Ada's own machine: her Google login and the address of her GitLab; no token of GitLab's."""
    known = ("CI_SERVER_URL", "CI_PROJECT_ID", "CI_PROJECT_PATH", "CI_COMMIT_REF_NAME")
    ours = {
        name: value
        for name, value in served.environment.items()
        if name in known or (name.startswith("GLGPU_") and "TOKEN" not in name)
    }
    token = {"GOOGLE_OAUTH_ACCESS_TOKEN": served.told["google_access_token"]}
    return {"PATH": os.environ["PATH"], "HOME": str(home), **ours, **token}


def from_laptop(served: Served, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GLGPU, *words], cwd=home, env=laptop(served, home), capture_output=True, text=True, timeout=90,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


class Opened:
    """`glgpu notebook open` that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said = ""
        assert process.stdout is not None
        for line in process.stdout:
            self.said += line
            if found := re.search(r"open (file://\S+) in a browser", line):
                self.page = Path(unquote(urlsplit(found[1]).path))
                (address,) = re.findall(r'url=([^"]+)"', self.page.read_text())
                self.address = html.unescape(address)
                break
        else:
            raise AssertionError(self.said)
        self.base, _, self.token = self.address.partition("/lab?token=")

    def read(self, name: str) -> bytes:
        """A file of the workspace, as it is there."""
        request = urllib.request.Request(f"{self.base}/files/{name}", headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def ask(self, path: str, token: str) -> int:
        request = urllib.request.Request(f"{self.base}/{path}", headers={"Authorization": f"token {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@contextlib.contextmanager
def opened(served: Served, home: Path) -> Iterator[Opened]:
    process = subprocess.Popen(
        [GLGPU, "notebook", "open", "--no-browser"], cwd=home, env=laptop(served, home), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Opened(process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    # Root has no sandbox, and there is nothing but our own page to be kept in one.
    options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as launched:
        yield launched


def command_lines() -> str:
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return "\n".join(lines)


@pytest.mark.every_fault
def test_a_notebook_from_a_click_to_artifacts(served: Served, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    start = started_notebook(served, tmp_path / "start")
    with opened(served, home) as one:
        assert one.ask("api/kernels", one.token) == 200
        assert one.ask("api/kernels", "guessed") == 403
        assert one.token not in one.said
        assert one.token not in command_lines()
        told = from_laptop(served, home, "notebook", "status", "--json")
        assert told.returncode == 0, told.stderr
        (found,) = json.loads(told.stdout)["notebooks"]
        assert (found["user"], found["answers"], found["busy"]) == ("ada", True, False)
        more = from_laptop(served, home, "notebook", "extend", "90m")
        assert more.returncode == 0, more.stdout
        later = json.loads(from_laptop(served, home, "notebook", "status", "--json").stdout)["notebooks"][0]
        assert later["soft_end"] == found["soft_end"] + 5400
        refused = from_laptop(served, home, "notebook", "extend", "1000h")
        assert refused.returncode == 2, refused.stdout
        # What somebody has changed there.
        there = from_laptop(served, home, "ssh", "--kind", "notebook", "--", "echo mine >glgpu/code/mine.txt")
        assert there.returncode == 0, there.stderr
        entry = from_laptop(served, home, "ssh", "--config")
        assert entry.returncode == 0, entry.stdout
        (host,) = (home / ".ssh/glgpu").glob("*.conf")
        plain = subprocess.run(["ssh", "-F", host, host.stem, "cat glgpu/code/mine.txt"],
                               capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert (plain.returncode, plain.stdout) == (0, "mine\n"), plain.stderr
    assert one.process.returncode == 0
    # A failed second click ends nothing.
    failed = job(served, tmp_path / "again", "notebook", "stop", "--cloud-only", CI_JOB_STATUS="failed")
    assert failed.returncode == 0, failed.stdout
    assert "(RUNNING)" in str(served.left()["instances"]), failed.stdout
    folder = tmp_path / "stop"
    stop = job(served, folder, "notebook", "stop", CI_JOB_NAME="stop notebook")
    assert stop.returncode == 0, stop.stdout + stop.stderr
    assert (folder / "outputs/workspace/mine.txt").read_text() == "mine\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "glgpu/SHA256SUMS"], cwd=folder / "outputs", check=True)
    assert one.token not in start + stop.stdout + stop.stderr
    assert served.left() == {}
    gone = job(served, tmp_path / "stop again", "notebook", "stop", CI_JOB_NAME="stop notebook")
    assert gone.returncode == 0, gone.stdout + gone.stderr


CELL = """\
import os, train
os.environ.update(EPOCHS="2", STEPS="10", HIDDEN="16", BATCH="8")
train.main()"""


@pytest.mark.every_fault
@pytest.mark.skipif(CHROMIUM is None, reason="chromium: not on PATH: no real browser opens a notebook")
def test_a_real_browser_opens_a_notebook_trains_in_a_cell_and_what_it_saved_comes_home(
    served: Served, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    start = started_notebook(served, tmp_path / "start")
    with opened(served, home) as one, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1200, "height": 720})
        page.goto(one.page.as_uri())
        page.locator(".jp-LauncherCard[title*='Python 3']").first.click(timeout=90_000)
        cell = page.locator(".jp-NotebookPanel .jp-Cell .cm-content").first
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)
        cell.click()
        page.keyboard.insert_text(CELL)
        page.keyboard.press("Shift+Enter")
        expect(page.locator(".jp-OutputArea-output").first).to_contain_text("epoch 2 of 2", timeout=90_000)
        page.keyboard.press("Control+s")
        page.get_by_placeholder("File name").fill("trained.ipynb")
        page.locator(".jp-Dialog .jp-mod-accept").click()
        page.locator(".jp-DirListing-itemText", has_text="trained.ipynb").wait_for(timeout=30_000)
        if PICTURE:
            page.screenshot(path=PICTURE)
        saved = one.read("trained.ipynb")
        assert one.token not in page.title()
    (printed,) = [cell["outputs"][0] for cell in json.loads(saved)["cells"] if cell.get("outputs")]
    assert "epoch 2" in "".join(printed["text"])
    folder = tmp_path / "stop"
    stop = job(served, folder, "notebook", "stop", CI_JOB_NAME="stop notebook")
    assert stop.returncode == 0, stop.stdout + stop.stderr
    assert (folder / "outputs/workspace/trained.ipynb").read_bytes() == saved
    assert (folder / "outputs/workspace/metrics.json").exists()  # what the cell has left is work as well
    assert one.token not in start + stop.stdout + stop.stderr
    assert served.left() == {}


@pytest.mark.every_fault
@pytest.mark.skipif(CHROMIUM is None, reason="chromium: not on PATH: no real browser is warned")
def test_whoever_has_it_open_is_warned_ten_minutes_before_its_end_until_it_has_more_time(
    served: Served, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    started_notebook(served, tmp_path / "start")
    with opened(served, home) as one, browser() as chromium:
        page = chromium.new_page(locale="en-GB", timezone_id="UTC")
        warning = page.locator(".Toastify__toast", has_text="glgpu notebook extend")
        with page.expect_response("**/glgpu/until", timeout=90_000):
            page.goto(one.page.as_uri())
        page.locator(".jp-LauncherCard[title*='Python 3']").first.click(timeout=90_000)
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)
        expect(warning).to_have_count(0)
        end = int(time.time()) + 590
        move(served, home, end)
        at = datetime.fromtimestamp(end, UTC)
        said = re.compile("|".join(f"Ends at {at + timedelta(minutes=late):%H:%M};" for late in (-1, 0, 1)))
        expect(warning).to_contain_text(said, timeout=30_000)
        more = from_laptop(served, home, "notebook", "extend", "90m")
        assert more.returncode == 0, more.stdout
        expect(warning).to_have_count(0, timeout=30_000)


def move(served: Served, home: Path, end: int) -> None:
    """Tell the VM another soft end."""
    name = served.left()["instances"][0].split()[0]
    tell = f"sh glgpu/helper notebook-until {name} {end}"
    done = from_laptop(served, home, "ssh", "--kind", "notebook", "--", tell)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.every_fault
def test_a_notebook_is_rehearsed_by_one_command(tmp_path: Path) -> None:
    played = rehearse(tmp_path, "--notebook")
    assert played.code == 0, played.text
    assert "a cell ran: Python 3" in played.text
    assert "laptop: the notebook has ended" in played.text
    written = json.loads((tmp_path / "work/outputs/workspace/rehearsal.ipynb").read_text())
    assert "sees .git" in "".join(written["cells"][0]["outputs"][0]["text"])
    assert not re.search("token=[0-9a-f]", played.text)
    played.assert_nothing_is_left()
