"""The VM's start-up script, every program that it calls recorded: as root in a container, and in a folder of ours."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from glgpu.rehearsal.container_images import BASE, Engine, find_engine
from glgpu.resources import resource_text

TOOLS = ["sh", "cat", "cut", "cp", "flock", "grep", "head", "mkdir", "mv", "sed", "tail", "timeout", "tr"]
"""The system's own programs that the script may have; all others are recorders, or missing."""
KEY = "ssh-ed25519 " + "A" * 68
IMAGE = "docker.io/pytorch/pytorch:2.9.0-cuda12.9-cudnn9-runtime"
METADATA = f"1 {IMAGE}"

CURL = """case "$*" in
*attributes/glgpu-startup*) [ -f "$T/metadata" ] && cat "$T/metadata" || exit 22 ;;
*guest-attributes*) [ ! -f "$T/attributes-blocked" ] || exit 22 ;;
*gpgkey*) while [ "$1" != -o ]; do shift; done; echo 'a key' >"$2" ;;
esac"""
DOCKER = """case "$*" in
*Runtimes*) [ -f "$T/configured" ] && echo '{"nvidia":{},"runc":{}}' || echo '{"runc":{}}' ;;
pull*) [ ! -f "$T/private" ] || { echo 'Error response from daemon: pull access denied' >&2; exit 1; } ;;
esac"""
APT_GET = """[ ! -f "$T/lists-locked" ] || {
    mv "$T/lists-locked" "$T/lists-free"
    echo 'E: Could not get lock /var/lib/apt/lists/lock'
    exit 100
}
[ ! -f "$T/no-network" ] || { echo 'E: Unable to fetch some archives'; exit 100; }
case "$*" in
*install*docker.io*) give docker ;;
*install*nvidia-container-toolkit*) give nvidia-ctk ;;
*install*curl*) give curl ;;
esac"""
NVIDIA_SMI = """if [ -s "$T/driver-silent-for" ]; then
    read -r left <"$T/driver-silent-for"
    [ "$left" -gt 1 ] && echo "$((left - 1))" >"$T/driver-silent-for" || : >"$T/driver-silent-for"
    cat "$T/driver-says"
    exit 9
fi
echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'"""
PROGRAMS = {
    "apt-cache": '[ -f "$T/in-repository" ] || { echo "E: No packages found"; exit 100; }',
    "apt-get": APT_GET,
    "curl": CURL,
    "dmesg": 'cat "$T/kernel" 2>/dev/null',
    "docker": DOCKER,
    "nvidia-ctk": ': >"$T/configured"',
    "nvidia-smi": NVIDIA_SMI,
    "sleep": "",
    "systemctl": "",
    "systemd-inhibit": "",
}
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)


@dataclass
class Booted:
    """What a boot left behind.

    Attributes:
        code: The script's exit code.
        said: Its output: what Google's agent puts on the serial console.
        calls: What it called, one command line each.
        root: The files that it wrote.
    """

    code: int
    said: str
    calls: list[str]
    root: Path

    @property
    def state(self) -> str:
        return (self.root / "run/glgpu/state").read_text().strip()

    @property
    def published(self) -> list[str]:
        return [call.split("[--data-raw] [")[1].partition("]")[0] for call in self.calls if "guest-attributes" in call]

    def called(self, *words: str) -> list[str]:
        return [call for call in self.calls if all(word in call for word in words)]

    def position(self, *words: str) -> int:
        (found,) = [at for at, call in enumerate(self.calls) if all(word in call for word in words)]
        return found


@dataclass
class Guest:
    """A boot image with recorders for programs; the default has all that a training needs.

    Attributes:
        folder: Everything is in here.
        engine: Who runs the container; None: the folder is the root.
    """

    folder: Path
    engine: Engine | None
    has: set[str] = field(default_factory=lambda: set(PROGRAMS))

    def __post_init__(self) -> None:
        for name in ("bin", "later", "root/etc/ssh", "root/etc/apt/apt.conf.d", "root/etc/apt/sources.list.d"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "root/usr/share/keyrings").mkdir(parents=True)
        (self.folder / "root/etc/ssh/ssh_host_ed25519_key.pub").write_text(f"{KEY} root@vm\n")
        (self.folder / "startup.sh").write_bytes(resource_text("vm/startup.sh"))
        self.set("metadata", METADATA)
        self.set("configured")

    def set(self, name: str, text: str = "") -> None:
        """Make a file that a recorder looks at."""
        (self.folder / name).write_text(text)

    def lacks(self, *names: str) -> None:
        """Take programs out of the boot image; installing their package brings them."""
        self.has -= set(names)
        if "nvidia-ctk" in names:
            (self.folder / "configured").unlink()

    def boot(self) -> Booted:
        """Run the script to its end."""
        for name, does in PROGRAMS.items():
            here = self.folder / ("bin" if name in self.has else "later") / name
            here.write_text(
                f"#!/bin/sh\nT={shlex.quote(str(self.folder))}\n"
                'give() { mv "$T/later/$1" "$T/bin/$1"; }\n'
                # In one write: the pull is recorded beside whatever else the boot calls.
                f'printf "%s\\n" "$(printf {name}; [ $# = 0 ] || printf \' [%s]\' "$@")" >>"$T/calls"\n{does}\n'
            )
            here.chmod(0o755)
        folder = shlex.quote(str(self.folder))
        boot = (
            f"cd {folder} && mkdir -p tools && for tool in {' '.join(TOOLS)}; do "
            'ln -sf "$(command -v "$tool")" "tools/$tool"; done; '
        )
        run = "PATH=$PWD/bin:$PWD/tools sh startup.sh"
        if self.engine is None:
            script = f"{boot} GLGPU_ROOT=$PWD/root {run}"
            done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
        else:
            # Its own root, as on the VM; what was written there comes back.
            kept = "etc/apt etc/systemd run/glgpu usr/share/keyrings"
            script = f"{boot} cp -R root/. / && {run}; code=$?; for one in {kept}; do mkdir -p root/$one; " + (
                "cp -R /$one/. root/$one/; done; chmod -R a+rwX . ; exit $code"
            )
            mount = f"{self.folder}:{self.folder}"
            done = self.engine.docker("run", "--rm", "--network", "none", "-v", mount, BASE, "sh", "-c", script)
        calls = self.folder / "calls"
        noted = calls.read_text().splitlines()
        calls.unlink()
        return Booted(done.returncode, done.stdout + done.stderr, noted, self.folder / "root")


@pytest.fixture(params=["in a container", "in a folder"])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    if request.param == "in a folder":
        return Guest(tmp_path / "guest", None)
    engine = find_engine(os.environ)
    if engine.client is None or engine.docker("image", "inspect", BASE).returncode:
        pytest.skip(f"docker: no engine with the image {BASE} answers (`ci/engine start` makes both)")
    return Guest(tmp_path / "guest", engine)


def test_where_nothing_is_missing_nothing_is_installed(guest: Guest) -> None:
    booted = guest.boot()
    assert (booted.code, booted.state) == (0, "ready boot the VM has what a training needs")
    assert not booted.called("apt-get")
    assert not booted.called("nvidia-ctk")
    assert not booted.called("restart", "[docker]")
    assert booted.called("docker [pull]") == [f"docker [pull] [-q] [--] [{IMAGE}]"]


def test_progress_and_host_key_are_on_the_serial_console_and_the_state_in_guest_attributes(guest: Guest) -> None:
    booted = guest.boot()
    assert f"glgpu: host key: {KEY}\n" in booted.said
    assert booted.said.index("host key") < booted.said.index("pulling")
    assert booted.published == ["working start the start-up script begins", booted.state]
    assert f"glgpu: {booted.state}\n" in booted.said


def test_upgrades_are_turned_off_before_anything_else(guest: Guest) -> None:
    booted = guest.boot()
    assert (booted.root / "etc/apt/apt.conf.d/99glgpu").read_text() == 'APT::Periodic::Enable "0";\n'
    masked = booted.position("systemctl [mask] [--now]", "[apt-daily.timer]", "[apt-daily-upgrade.timer]")
    assert masked < booted.position("systemctl [stop] [--no-block]", "[unattended-upgrades.service]")
    assert masked < booted.position("docker [pull]")


def test_a_training_may_delay_the_shutdown_for_almost_as_long_as_google_gives_it(guest: Guest) -> None:
    booted = guest.boot()
    settings = booted.root / "etc/systemd/logind.conf.d/glgpu.conf"
    assert settings.read_text() == "[Login]\nInhibitDelayMaxSec=27\n"
    assert booted.called("systemctl [restart] [systemd-logind]")
    assert booted.state.startswith("ready ")


def test_an_image_without_systemd_boots_as_well(guest: Guest) -> None:
    guest.lacks("systemctl", "systemd-inhibit")
    booted = guest.boot()
    assert not list((booted.root / "etc").rglob("glgpu.conf"))
    assert booted.state.startswith("ready ")


def test_a_bare_image_gets_docker_and_the_toolkit_before_the_pull(guest: Guest) -> None:
    guest.lacks("docker", "nvidia-ctk")
    booted = guest.boot()
    assert booted.state.startswith("ready ")
    install = "apt-get [-q] [-y] [-o] [DPkg::Lock::Timeout=600] [-o] [Acquire::Retries=3] [install]"
    order = [
        booted.position(install, "[docker.io]"),
        booted.position("curl", "[https://nvidia.github.io/libnvidia-container/gpgkey]"),
        booted.position(install, "[nvidia-container-toolkit]"),
        booted.position("nvidia-ctk [runtime] [configure] [--runtime=docker]"),
        booted.position("systemctl [restart] [docker]"),
        booted.position("docker [pull]"),
    ]
    assert order == sorted(order)
    key = Path("/usr/share/keyrings/nvidia-container-toolkit.asc")
    assert (booted.root / key.relative_to("/")).read_text() == "a key\n"
    source = (booted.root / "etc/apt/sources.list.d/nvidia-container-toolkit.list").read_text()
    assert source.startswith("deb [signed-by=/")
    assert source.endswith(f"{key}] https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH) /\n")
    assert [line.split()[1] for line in booted.published] == ["start", "docker", "toolkit", "boot"]


def test_a_toolkit_that_the_image_can_install_needs_no_further_repository(guest: Guest) -> None:
    guest.lacks("nvidia-ctk")
    guest.set("in-repository")
    booted = guest.boot()
    assert booted.state.startswith("ready ")
    assert not booted.called("gpgkey")


def test_docker_that_does_not_know_the_toolkit_is_told_of_it(guest: Guest) -> None:
    (guest.folder / "configured").unlink()
    booted = guest.boot()
    assert booted.position("nvidia-ctk") < booted.position("[restart] [docker]") < booted.position("docker [pull]")
    assert not booted.called("apt-get")


def test_a_second_boot_changes_nothing(guest: Guest) -> None:
    guest.lacks("docker", "nvidia-ctk")
    first = guest.boot()
    guest.has = set(PROGRAMS)
    second = guest.boot()
    assert (first.code, second.code, second.state) == (0, 0, first.state)
    assert not second.called("apt-get")
    assert not second.called("nvidia-ctk")


def test_a_lock_on_the_package_lists_is_waited_for(guest: Guest) -> None:
    guest.lacks("docker")
    guest.set("lists-locked")
    booted = guest.boot()
    assert booted.state.startswith("ready ")
    assert len(booted.called("apt-get", "[update]")) == 2
    assert booted.called("sleep [10]")


@pytest.mark.parametrize(
    ("missing", "step", "what"),
    [
        ("docker", "docker", "Docker is not in the boot image and could not be installed: "),
        ("nvidia-ctk", "toolkit", "NVIDIA's container toolkit is not in the boot image and could not be installed: "),
    ],
)
def test_what_cannot_be_installed_is_said_and_the_boot_goes_on(
    guest: Guest, missing: str, step: str, what: str
) -> None:
    guest.lacks(missing)
    guest.set("no-network")
    booted = guest.boot()
    assert booted.code == 0
    assert booted.state == f"failed {step} {what}E: Unable to fetch some archives"
    assert booted.published[-1] == booted.state
    assert not booted.called("docker [pull]")


def test_an_image_of_another_family_is_told_apart(guest: Guest) -> None:
    guest.has -= {"docker", "apt-get"}
    booted = guest.boot()
    assert booted.state.endswith("could not be installed: this boot image has no apt-get")


def test_a_driver_that_comes_late_is_waited_for(guest: Guest) -> None:
    guest.set("driver-silent-for", "4")
    guest.set("driver-says", NO_DRIVER)
    booted = guest.boot()
    assert booted.state.startswith("ready ")
    assert booted.published[1] == "working driver waiting for the NVIDIA driver"
    assert len(booted.called("sleep [5]")) == 4
    # Meanwhile the image is on its way.
    assert f"glgpu: pulling {IMAGE}" in booted.said.partition("waiting for the NVIDIA driver")[0]


def test_a_driver_that_never_comes_is_said_with_the_kernels_own_word(guest: Guest) -> None:
    guest.set("driver-silent-for", "999")
    guest.set("driver-says", NO_DRIVER)
    guest.set(
        "kernel",
        "[    9.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  590.44.01\n"
        "[    9.2] NVRM: The NVIDIA GPU 0000:00:04.0 (PCI ID: 10de:1db1) is not supported by open nvidia.ko\n",
    )
    booted = guest.boot()
    assert booted.code == 0
    assert booted.state.startswith("failed driver the NVIDIA driver does not answer: NVIDIA-SMI has failed because")
    assert "the kernel: The NVIDIA GPU 0000:00:04.0 (PCI ID: 10de:1db1) is not supported" in booted.state
    assert len(booted.called("sleep [5]")) == 36


def test_libraries_that_do_not_fit_the_driver_are_not_waited_for(guest: Guest) -> None:
    guest.set("driver-silent-for", "999")
    guest.set(
        "driver-says", "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.1\n"
    )
    booted = guest.boot()
    assert booted.state.startswith(
        "failed driver the NVIDIA driver does not answer: Failed to initialize NVML: Driver/"
    )
    assert not booted.called("sleep")


def test_a_driver_that_the_image_brings_along_is_installed(guest: Guest) -> None:
    guest.lacks("nvidia-smi")
    installer = guest.folder / "root/opt/deeplearning/install-driver.sh"
    installer.parent.mkdir(parents=True)
    folder = shlex.quote(str(guest.folder))
    installer.write_text(f"#!/bin/sh\nmv {folder}/later/nvidia-smi {folder}/bin/nvidia-smi\n")
    installer.chmod(0o755)
    booted = guest.boot()
    assert booted.state.startswith("ready ")
    assert "working driver installing the NVIDIA driver that the boot image brings along" in booted.published


def test_an_image_without_any_driver_is_not_waited_for(guest: Guest) -> None:
    guest.lacks("nvidia-smi")
    booted = guest.boot()
    assert booted.state == "failed driver the boot image has no NVIDIA driver: there is no nvidia-smi"
    assert not booted.called("sleep")


def test_a_private_image_is_left_to_the_job(guest: Guest) -> None:
    guest.set("private")
    booted = guest.boot()
    assert (booted.code, booted.state.partition(" ")[0]) == (0, "ready")
    assert "glgpu: pull: Error response from daemon: pull access denied" in booted.said


def test_an_image_name_is_a_word_and_never_a_command(guest: Guest) -> None:
    name = "x; : >$PWD/pwned $(: >pwned) `: >pwned` 'y"
    guest.set("metadata", f"1 {name}")
    booted = guest.boot()
    assert booted.called("docker [pull]") == [f"docker [pull] [-q] [--] [{name}]"]
    assert not list(guest.folder.rglob("pwned"))


def test_a_vm_without_gpu_needs_neither_driver_nor_toolkit(guest: Guest) -> None:
    guest.lacks("nvidia-ctk", "nvidia-smi")
    guest.set("metadata", f"0 {IMAGE}")
    booted = guest.boot()
    assert booted.state.startswith("ready ")
    assert not booted.called("apt-get")
    assert booted.called("docker [pull]")


def test_a_policy_against_guest_attributes_does_not_stop_the_boot(guest: Guest) -> None:
    guest.set("attributes-blocked")
    booted = guest.boot()
    assert (booted.code, booted.state.partition(" ")[0]) == (0, "ready")


def test_an_image_without_curl_gets_it_before_it_is_needed(guest: Guest) -> None:
    guest.lacks("curl")
    booted = guest.boot()
    assert booted.position("[install]", "[curl]") < booted.position("attributes/glgpu-startup")
    assert booted.published[-1] == booted.state == "ready boot the VM has what a training needs"
    assert booted.called("docker [pull]")


def test_a_vm_that_glgpu_did_not_bring_up_pulls_nothing(guest: Guest) -> None:
    (guest.folder / "metadata").unlink()
    booted = guest.boot()
    assert (booted.code, booted.state.partition(" ")[0]) == (0, "ready")
    assert not booted.called("docker [pull]")


def test_no_account_of_roots_is_used_for_the_pull() -> None:
    """What a boot image has in root's Docker settings is nobody's to lend."""
    assert b'export DOCKER_CONFIG="$folder/docker"' in resource_text("vm/startup.sh")
