"""Docker as the product uses it: one suite over the engine that answers here and over the process-based one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import pytest

from glgpu.errors import Failure
from glgpu.rehearsal.container_images import BASE, Engine, find_engine, prepare, process_image


@dataclass
class Docker:
    """A docker command line and what it has made."""

    command: list[str]
    environment: dict[str, str]
    folder: Path
    names: list[str] = field(default_factory=list)

    def name(self) -> str:
        name = f"glgpu-contract-{token_hex(4)}"
        self.names.append(name)
        return name

    def __call__(self, *argv: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *argv], capture_output=True, text=True, env=self.environment, timeout=seconds,
            stdin=subprocess.DEVNULL, cwd=self.folder, check=False,
        )  # fmt: skip

    def open(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment,
            stdin=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip

    def detached(self, *argv: str) -> str:
        name = self.name()
        done = self("run", "-d", "--name", name, *argv)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)
        return name

    def state(self, name: str) -> dict[str, object]:
        state: dict[str, object] = json.loads(self("inspect", "--format", "{{json .State}}", name).stdout)
        return state


def on_processes(folder: Path) -> Docker:
    """The process-based engine, in a folder whose path no socket address could hold."""
    root = folder / "a long folder name with spaces in it" / ("deep" * 20)
    root.mkdir(parents=True)
    (root / "images.json").write_text(json.dumps({BASE: process_image(Path(sys.executable))}))
    (root / "mounts.json").write_text(json.dumps([str(folder)]))
    program = [sys.executable, "-I", "-m", "glgpu.rehearsal.docker_engine", str(root)]
    return Docker(program, {"PATH": os.environ["PATH"], "HOST_SECRET": "not for containers"}, folder)


def engine_or_skip() -> Engine:
    engine = find_engine(os.environ)
    if engine.client is None or engine.docker("image", "inspect", BASE).returncode:
        pytest.skip(f"docker: no engine with the image {BASE} answers (`ci/engine start` makes both)")
    return engine


@contextmanager
def cleared(tool: Docker) -> Iterator[Docker]:
    yield tool
    if tool.names:
        tool("rm", "-f", *tool.names)


@pytest.fixture(params=["engine", "processes"])
def docker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Docker]:
    if request.param == "processes":
        tool = on_processes(tmp_path)
    else:
        tool = Docker([str(engine_or_skip().client)], dict(os.environ), tmp_path)
    with cleared(tool):
        yield tool


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Docker]:
    with cleared(on_processes(tmp_path)) as tool:
        yield tool


def test_version_answers_in_json(docker: Docker) -> None:
    assert json.loads(docker("version", "--format", "{{json .}}").stdout)["Server"]["Version"]
    assert docker("version", "--format", "{{.Server.Version}}").stdout.strip()


def test_an_image_has_an_id_that_stays(docker: Docker) -> None:
    first, second = (json.loads(docker("image", "inspect", "--format", "{{json .}}", BASE).stdout) for _ in range(2))
    assert first == second
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", first["Id"])
    assert first["RepoTags"] == [f"{BASE}:latest"]
    assert docker("run", "--rm", first["Id"], "true").returncode == 0


def test_a_missing_image_is_told_in_dockers_words(docker: Docker) -> None:
    missing = docker("image", "inspect", "--format", "{{json .}}", "nowhere.invalid/no:image")
    assert (missing.returncode, missing.stdout) == (1, "\n")
    assert "No such image: nowhere.invalid/no:image" in missing.stderr
    pulled = docker("pull", "nowhere.invalid/no:image")
    assert pulled.returncode == 1
    assert pulled.stderr.startswith('Error response from daemon: Get "https://nowhere.invalid/v2/": dial tcp: lookup ')
    ran = docker("run", "-d", "nowhere.invalid/no:image", "true")
    assert ran.returncode == 125
    assert ran.stderr.startswith("Unable to find image 'nowhere.invalid/no:image' locally\ndocker: Error response from")


def test_the_exit_code_of_the_command_is_the_runs(docker: Docker) -> None:
    assert docker("run", "--rm", BASE, "sh", "-c", "exit 5").returncode == 5
    assert docker("run", "--rm", BASE, "sh", "-c", "kill -9 $$").returncode in (0, 137)
    assert docker("run", "--rm", "--init", BASE, "sh", "-c", "kill -9 $$").returncode == 137


def test_run_prints_both_streams_apart(docker: Docker) -> None:
    done = docker("run", "--rm", BASE, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_run_rm_takes_the_container_away(docker: Docker) -> None:
    name = docker.name()
    assert docker("run", "--rm", "--name", name, BASE, "true").returncode == 0
    assert docker("inspect", name).returncode == 1


def test_arguments_arrive_as_they_are(docker: Docker) -> None:
    odd = ["$HOME", "a b", "`id`", "ü\n;", "-d", "--name", "'\""]
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    assert json.loads(docker("run", "--rm", BASE, "python3", "-c", program, *odd).stdout) == odd


def test_numpy_is_there(docker: Docker) -> None:
    assert docker("run", "--rm", BASE, "python", "-c", "import numpy; print(numpy.arange(3).sum())").stdout == "3\n"


def test_the_environment_is_the_images_and_what_is_given(docker: Docker) -> None:
    docker.environment["PASSED"] = "on"
    done = docker("run", "--rm", "-e", "A=1=2", "--env", "PASSED", "-e", "NOT_THERE", BASE, "env")
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert (seen["A"], seen["PASSED"]) == ("1=2", "on")
    assert set(seen) - {"PWD"} == {"A", "PASSED", "PATH", "LANG", "HOME", "HOSTNAME"}


def test_an_environment_file_is_read(docker: Docker) -> None:
    (docker.folder / "env").write_text("# comment\n\nTOKEN=a b=c\n")
    done = docker("run", "--rm", "--env-file", str(docker.folder / "env"), BASE, "sh", "-c", 'echo "$TOKEN"')
    assert done.stdout == "a b=c\n"


def test_a_mounted_folder_is_the_working_directory(docker: Docker) -> None:
    work = docker.folder / "work dir"
    name = docker.detached("--workdir", str(work), "-v", f"{work}:{work}", BASE, "sh", "-c", "pwd; echo hi > made")
    assert docker("wait", name).stdout == "0\n"
    assert docker("logs", name).stdout == f"{work}\n"
    assert (work / "made").read_text() == "hi\n"


def test_what_the_product_passes_is_taken(docker: Docker) -> None:
    name = docker.detached(
        "--init", "--ipc=host", "--label", "k=v=w", "--label", "glgpu=managed", "--log-driver", "json-file",
        "--network", "host", BASE, "true",
    )  # fmt: skip
    docker("wait", name)
    config = json.loads(docker("inspect", "--format", "{{json .}}", name).stdout)
    assert config["Config"]["Labels"].items() >= {"k": "v=w", "glgpu": "managed"}.items()
    assert (config["Name"], config["Path"], config["Config"]["Cmd"]) == (f"/{name}", "true", ["true"])
    assert config["HostConfig"]["Init"] is True
    assert docker("run", "--rm", "--shm-size", "1g", BASE, "true").returncode == 0


def test_the_state_tells_the_end(docker: Docker) -> None:
    name = docker.detached(BASE, "sh", "-c", "exit 7")
    assert docker("wait", name).stdout == "7\n"
    state = docker.state(name)
    assert (state["Status"], state["Running"], state["ExitCode"], state["OOMKilled"]) == ("exited", False, 7, False)
    # Not which comes first: of a short container, dockerd may note an end before its start.
    assert str(state["StartedAt"]) > "2000-"
    assert str(state["FinishedAt"]) > "2000-"
    assert docker("wait", name).stdout == "7\n"


def test_a_command_that_is_not_there_is_127(docker: Docker) -> None:
    name = docker.name()
    done = docker("run", "-d", "--name", name, BASE, "nope")
    assert done.returncode == 127
    assert 'exec: "nope": executable file not found in $PATH: unknown' in done.stderr
    assert done.stderr.startswith("docker: Error response from daemon: ")
    state = docker.state(name)
    assert (state["Status"], state["ExitCode"], state["StartedAt"]) == ("created", 127, "0001-01-01T00:00:00Z")


def test_a_command_that_is_no_program_is_126(docker: Docker) -> None:
    name = docker.name()
    done = docker("run", "--name", name, BASE, "/etc/passwd")
    assert done.returncode == 126
    assert 'exec: "/etc/passwd": permission denied' in done.stderr


def test_with_init_a_missing_command_starts_and_ends_with_127(docker: Docker) -> None:
    name = docker.detached("--init", BASE, "nope")
    assert docker("wait", name).stdout == "127\n"
    assert re.fullmatch(
        r"\[FATAL tini \(\d+\)\] exec nope failed: No such file or directory\n", docker("logs", name).stderr
    )


def test_a_taken_name_is_a_conflict(docker: Docker) -> None:
    name = docker.detached(BASE, "true")
    again = docker("run", "-d", "--name", name, BASE, "true")
    assert again.returncode == 125
    assert f'Conflict. The container name "/{name}" is already in use by container "' in again.stderr


@pytest.mark.parametrize("name", ["x", "-ab", "ab cd", "Ü2"])
def test_a_bad_name_is_refused(docker: Docker, name: str) -> None:
    done = docker("run", "-d", f"--name={name}", BASE, "true")
    assert done.returncode == 125
    assert f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed" in done.stderr


def test_an_unknown_flag_is_refused(docker: Docker) -> None:
    for verb in (["run", "--nope", BASE, "true"], ["ps", "--nope"], ["logs", "--nope", "x"]):
        done = docker(*verb)
        assert done.returncode == 125
        assert done.stderr.startswith("unknown flag: --nope\n\nUsage:  docker " + verb[0])


def test_an_unknown_verb_is_refused(docker: Docker) -> None:
    done = docker("nope")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "docker: unknown command: docker nope")


@pytest.mark.parametrize("verb", [["run"], ["exec", "x"], ["logs"], ["wait"], ["stop"], ["kill"], ["rm"], ["inspect"]])
def test_a_verb_without_arguments_is_refused(docker: Docker, verb: list[str]) -> None:
    done = docker(*verb)
    assert done.returncode == 1
    assert done.stderr.startswith(f"docker: 'docker {verb[0]}' requires ")


def test_gpus_without_a_toolkit_are_refused(docker: Docker) -> None:
    name = docker.name()
    done = docker("run", "-d", "--name", name, "--gpus", "all", BASE, "true")
    assert done.returncode == 125
    assert 'could not select device driver "" with capabilities: [[gpu]]' in done.stderr
    assert docker.state(name)["ExitCode"] == 128


def test_other_networks_and_modes_are_refused(docker: Docker) -> None:
    for options in (["--network", "nope"], ["-v", "/tmp/a:/tmp/a:zz"]):
        assert docker("run", "--rm", *options, BASE, "true").returncode == 125


def test_the_log_keeps_streams_apart_and_stamps_every_line(docker: Docker) -> None:
    name = docker.detached(BASE, "sh", "-c", "echo one; echo two >&2; printf 'no end'")
    docker("wait", name)
    told = docker("logs", "--timestamps", name)
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z "
    assert re.fullmatch(f"{stamp}one\n{stamp}no end", told.stdout)
    assert re.fullmatch(f"{stamp}two\n", told.stderr)
    assert docker("logs", name).stdout == "one\nno end"


def test_since_takes_a_stamp_of_the_log_itself(docker: Docker) -> None:
    name = docker.detached(BASE, "sh", "-c", "echo one; sleep 0.1; echo two; sleep 0.1; echo three")
    docker("wait", name)
    second = docker("logs", "--timestamps", name).stdout.splitlines()[1].split()[0]
    assert docker("logs", "--since", second, name).stdout == "two\nthree\n"


def test_a_bad_since_is_refused(docker: Docker) -> None:
    name = docker.detached(BASE, "true")
    done = docker("logs", "--since", "yesterday-ish", name)
    assert done.returncode == 1
    assert done.stderr.startswith('invalid value for "since": parsing time "yesterday-ish" as ')


def test_the_tail_of_a_log(docker: Docker) -> None:
    name = docker.detached(BASE, "sh", "-c", "echo one; echo two; echo three")
    docker("wait", name)
    assert docker("logs", "--tail", "2", name).stdout == "two\nthree\n"


def test_a_long_line_is_cut_and_bad_bytes_are_replaced(docker: Docker) -> None:
    program = r'import os; os.write(1, b"x" * 40000 + b"\n"); os.write(2, b"err \xff\xfe\xe2\x82 end\n")'
    name = docker.detached(BASE, "python3", "-c", program)
    docker("wait", name)
    assert docker("logs", name).stdout == "x" * 40000 + "\n"
    told = docker("logs", "--timestamps", name)
    pieces = re.findall(r"(\S+Z) (x+)", told.stdout)
    assert [len(piece) for _, piece in pieces] == [16384, 16384, 7232]
    assert len({stamp for stamp, _ in pieces}) == 1
    assert told.stderr.endswith(" err \ufffd\ufffd\ufffd\ufffd end\n")


def test_a_followed_log_is_live_and_ends_with_the_container(docker: Docker) -> None:
    gate = docker.folder / "gate"
    os.mkfifo(gate)
    mount = ["-v", f"{docker.folder}:{docker.folder}"]
    name = docker.detached(*mount, BASE, "sh", "-c", f"echo before; cat '{gate}'; echo after")
    with docker.open("logs", "-f", "--timestamps", name) as following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith(" before\n")
        gate.write_text("opened\n")
        assert [line.split()[-1] for line in following.stdout] == ["opened", "after"]
        assert following.wait(timeout=30) == 0


def test_a_container_survives_its_client(docker: Docker) -> None:
    gate = docker.folder / "gate"
    os.mkfifo(gate)
    name = docker.name()
    mount = ["-v", f"{docker.folder}:{docker.folder}"]
    with docker.open("run", "--name", name, *mount, BASE, "sh", "-c", f"echo on; cat '{gate}'; exit 3") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "on\n"
        client.send_signal(signal.SIGKILL)
    gate.write_text("go on\n")
    assert docker("wait", name).stdout == "3\n"
    assert docker("logs", name).stdout == "on\ngo on\n"


def test_stop_ends_a_child_of_init_at_once(docker: Docker) -> None:
    name = docker.detached("--init", BASE, "sleep", "100")
    began = time.monotonic()
    assert docker("stop", "-t", "30", name).stdout == f"{name}\n"
    assert time.monotonic() - began < 15
    assert docker.state(name)["ExitCode"] == 143
    assert docker("stop", name).returncode == 0


def test_stop_kills_a_first_process_without_a_handler(docker: Docker) -> None:
    name = docker.detached(BASE, "sleep", "100")
    began = time.monotonic()
    assert docker("stop", "-t", "1", name).returncode == 0
    assert time.monotonic() - began >= 1
    assert docker.state(name)["ExitCode"] == 137


@pytest.mark.parametrize("init", [["--init"], []])
def test_a_handler_gets_the_signal_and_its_time(docker: Docker, init: list[str]) -> None:
    program = (
        "import signal, sys, time\n"
        "def end(*_): print('saving', flush=True); time.sleep(0.3); print('saved', flush=True); sys.exit(4)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True)\n"
        "while True: time.sleep(1)"
    )
    name = docker.detached(*init, BASE, "python3", "-c", program)
    with docker.open("logs", "-f", name) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "ready\n"
        docker("stop", "-t", "30", name)
    assert docker.state(name)["ExitCode"] == 4
    assert docker("logs", name).stdout == "ready\nsaving\nsaved\n"


def test_kill_is_137_and_once_only(docker: Docker) -> None:
    name = docker.detached("--init", BASE, "sleep", "100")
    assert docker("kill", name).stdout == f"{name}\n"
    assert docker("wait", name).stdout == "137\n"
    again = docker("kill", name)
    assert again.returncode == 1
    assert again.stderr.startswith(f"Error response from daemon: Cannot kill container: {name}: Container ")
    assert docker("kill", "-s", "NOPE", name).stderr == "Error response from daemon: Invalid signal: NOPE\n"


def test_nothing_outlives_the_first_process(docker: Docker) -> None:
    command = "setsid sh -c 'sleep 1; echo still here > late' & exit 0"
    mount = ["-v", f"{docker.folder}:{docker.folder}", "-w", str(docker.folder)]
    name = docker.detached("--init", *mount, BASE, "sh", "-c", command)
    assert docker("wait", name).stdout == "0\n"
    time.sleep(1.5)
    assert not (docker.folder / "late").exists()


def test_exec_runs_inside_and_returns_its_code(docker: Docker) -> None:
    name = docker.detached("--init", "-e", "A=1", "--workdir", str(docker.folder), BASE, "sleep", "100")
    done = docker("exec", "-e", "B=2", name, "sh", "-c", 'echo "$A$B"; pwd; echo err >&2; exit 7')
    assert (done.returncode, done.stdout, done.stderr) == (7, f"12\n{docker.folder}\n", "err\n")
    missing = docker("exec", name, "nope")
    assert missing.returncode in (126, 127)
    assert 'exec: "nope": executable file not found in $PATH: unknown' in missing.stdout + missing.stderr


def test_exec_needs_a_running_container(docker: Docker) -> None:
    name = docker.detached(BASE, "true")
    docker("wait", name)
    done = docker("exec", name, "true")
    assert done.returncode == 1
    assert done.stderr.endswith(" is not running\n")


def test_rm_refuses_what_runs_unless_forced(docker: Docker) -> None:
    name = docker.detached("--init", BASE, "sleep", "100")
    refused = docker("rm", name)
    assert refused.returncode == 1
    assert "You cannot remove a running container" in refused.stderr
    assert docker("rm", "-f", name).stdout == f"{name}\n"
    assert docker("inspect", name).returncode == 1


def test_containers_that_are_not_there(docker: Docker) -> None:
    for verb in (["logs"], ["wait"], ["stop"], ["rm"]):
        done = docker(*verb, "glgpu-no-such")
        assert (done.returncode, done.stderr) == (1, "Error response from daemon: No such container: glgpu-no-such\n")
    assert docker("kill", "glgpu-no-such").returncode == 1
    assert docker("exec", "glgpu-no-such", "true").returncode == 1
    assert docker("rm", "-f", "glgpu-no-such").returncode == 0
    missing = docker("inspect", "--format", "{{json .State}}", "glgpu-no-such")
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "\n", "Error: No such object: glgpu-no-such\n")
    assert docker("inspect", "glgpu-no-such").stdout == "[]\n"


def test_ps_filters_by_name_and_label(docker: Docker) -> None:
    mark = token_hex(4)
    ended = docker.detached("--label", f"mark={mark}", BASE, "sh", "-c", "exit 3")
    running = docker.detached("--init", "--label", f"mark={mark}", BASE, "sleep", "100")
    docker("wait", ended)
    labelled = docker("ps", "-a", "--filter", f"label=mark={mark}", "--format", "{{json .}}").stdout.splitlines()
    rows = {row["Names"]: row for row in map(json.loads, labelled)}
    assert set(rows) == {ended, running}
    assert (rows[ended]["State"], rows[running]["State"]) == ("exited", "running")
    assert rows[ended]["Status"].startswith("Exited (3) ")
    assert docker("ps", "--filter", f"label=mark={mark}", "--format", "{{.Names}}").stdout == f"{running}\n"
    assert docker("ps", "-aq", "--filter", f"name={ended}").stdout == f"{rows[ended]['ID']}\n"
    assert docker("ps", "-a", "--filter", f"label=mark={mark}x", "-q").stdout == ""


def test_an_id_and_its_beginning_are_names_too(docker: Docker) -> None:
    name = docker.detached(BASE, "true")
    whole = json.loads(docker("inspect", "--format", "{{json .}}", name).stdout)["Id"]
    assert docker("wait", whole).stdout == "0\n"
    assert docker("inspect", "--format", "{{.Name}}", whole[:12]).stdout == f"/{name}\n"


def test_a_torn_template_is_refused(docker: Docker) -> None:
    name = docker.detached(BASE, "true")
    done = docker("inspect", "--format", "{{json", name)
    assert done.returncode == 64
    assert "template parsing error" in done.stderr


# What would need a namespace is refused by the process-based engine, never half done.


@pytest.mark.parametrize(
    "options",
    [
        ["-v", "/tmp/a:/tmp/b"], ["-v", "volume:/data"], ["-v", "/usr:/usr"], ["-v", "/dev/shm:/dev/shm"],
        ["--log-driver", "syslog"], ["--user", "1000"], ["--memory", "1g"], ["-it"], ["-p", "80:80"],
        ["--network", "none"],
    ],
)  # fmt: skip
def test_options_that_processes_cannot_honour_are_refused(processes: Docker, options: list[str]) -> None:
    assert processes("run", "--rm", *options, BASE, "true").returncode == 125


def test_a_container_whose_machine_lost_power_has_ended_with_255(processes: Docker) -> None:
    name = processes.detached(BASE, "sleep", "100")
    noted = next(Path(processes.command[-1]).glob("containers/*/supervisor.json"))
    os.kill(json.loads(noted.read_text())["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while processes.state(name)["Running"]:
        assert time.monotonic() < deadline
    assert processes.state(name)["ExitCode"] == 255


def test_the_process_engine_leaves_no_process(processes: Docker) -> None:
    mark = token_hex(8)
    command = f"setsid sh -c 'sleep 300; : {mark}' & true"
    assert processes("run", "--rm", BASE, "sh", "-c", command).returncode == 0
    assert subprocess.run(["pgrep", "-f", mark], capture_output=True, check=False).stdout == b""


# The images of a rehearsal.


def write_wheel(folder: Path) -> str:
    """A package that needs no index: the smallest wheel that pip takes."""
    name = "glgpu_contract-1.0-py3-none-any.whl"
    info = "glgpu_contract-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("glgpu_contract.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: glgpu-contract\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: glgpu\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return name


@pytest.fixture(params=["engine", "processes"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine() if request.param == "processes" else engine_or_skip()


def test_requirements_become_a_layer_that_is_made_once(engine: Engine, tmp_path: Path) -> None:
    repository = tmp_path / "a repository"
    repository.mkdir()
    (repository / "requirements.txt").write_text(f"./{write_wheel(repository)}\n# {token_hex(8)}\n")
    told: list[str] = []
    images = prepare(engine, [repository / "requirements.txt"], tmp_path / "cache", told.append)
    assert prepare(engine, [repository / "requirements.txt"], tmp_path / "cache", told.append) == images
    assert sum("once" in line for line in told) == 1
    ask = "import glgpu_contract, numpy; print(glgpu_contract.ANSWER)"
    if engine.client is None:
        tool = on_processes(tmp_path)
        (Path(tool.command[-1]) / "images.json").write_text(json.dumps(images.store))
    else:
        tool = Docker([engine.client], dict(os.environ), tmp_path)
    try:
        assert tool("run", "--rm", images.base, "python", "-c", ask).stdout == "42\n"
    finally:
        if engine.client is not None:
            tool("image", "rm", images.base)


def test_a_requirement_that_cannot_be_installed_is_exit_code_17(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(f"./no-such-file-1.0-py3-none-any.whl  # {token_hex(4)}\n")
    with pytest.raises(Failure) as failure:
        prepare(engine, [tmp_path / "requirements.txt"], tmp_path / "cache", lambda _: None)
    assert failure.value.exit_code == 17
    assert "no-such-file" in failure.value.evidence
