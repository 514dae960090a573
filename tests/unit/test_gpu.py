"""The gate before the training: GPUs on the VM, and inside the training image."""

from __future__ import annotations

import pytest

from fakes import IMAGE, INSIDE, Stage, done
from glgpu.errors import ErrorClass, Failure
from glgpu.steps.gpu import check_gpus, check_inside

OCI = (
    "docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime "
    "create failed: runc create failed: unable to start container process: error during container init: error running "
    "prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n"
)
TOO_OLD = OCI + (
    "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a newer "
    "version, or use an earlier cuda container: unknown"
)
TABLE = "| NVIDIA-SMI 550.144.03             Driver Version: 550.144.03     CUDA Version: 12.4     |\n"


def inside(stage: Stage) -> None:
    check_inside(stage.run, stage.machine, IMAGE, "pinned")


def test_the_driver_inside_the_image_is_said_and_recorded(stage: Stage) -> None:
    inside(stage)
    assert ("gpu-inside", "pinned") in stage.machine.calls
    assert f"GPU inside {IMAGE}: driver 580.95.05 (CUDA 13.0)" in stage.log
    assert stage.events() == ["gpu-seen-inside"]


def test_an_image_that_needs_a_newer_driver_is_told_with_both_versions(stage: Stage) -> None:
    stage.machine.said["gpu-inside"] = done("", 125, TOO_OLD)
    stage.machine.said["driver"] = done(TABLE)
    with pytest.raises(Failure) as caught:
        inside(stage)
    assert caught.value.exit_code == 16
    assert "needs CUDA 12.8 or newer; the VM has driver 550.144.03 (CUDA 12.4)" in caught.value.cause
    assert "CUDA 12.4 or older" in caught.value.remedy
    assert "machine.image" in caught.value.remedy


def test_a_host_that_does_not_say_its_driver_does_not_hide_the_mismatch(stage: Stage) -> None:
    stage.machine.said["gpu-inside"] = done("", 125, TOO_OLD)
    stage.machine.said["driver"] = done("", 9, "NVIDIA-SMI has failed")
    with pytest.raises(Failure, match=r"needs CUDA 12\.8 or newer") as caught:
        inside(stage)
    assert caught.value.klass is ErrorClass.DRIVER


@pytest.mark.parametrize(
    "said",
    [
        OCI + "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch: unknown",
        'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]]',
        "something that nobody has seen yet",
    ],
)
def test_any_other_refusal_is_the_drivers_too(stage: Stage, said: str) -> None:
    stage.machine.said["gpu-inside"] = done("", 125, said)
    with pytest.raises(Failure) as caught:
        inside(stage)
    assert caught.value.exit_code == 16


def test_an_image_without_nvidia_smi_is_left_to_its_program(stage: Stage) -> None:
    stage.machine.said["gpu-inside"] = done("", 127, 'exec: "nvidia-smi": executable file not found in $PATH: unknown')
    inside(stage)
    assert "leaves nvidia-smi out" in stage.log


def test_a_connection_that_breaks_is_not_the_drivers(stage: Stage) -> None:
    stage.machine.said["gpu-inside"] = done("", 255, "Connection reset by peer")
    with pytest.raises(Failure) as caught:
        inside(stage)
    assert caught.value.exit_code == 13


def test_a_connection_that_stays_broken_before_the_gpu_was_seen_is_not_the_drivers_either(stage: Stage) -> None:
    stage.machine.said["gpu"] = done("", 255, "Connection reset by peer")
    with pytest.raises(Failure) as caught:
        check_gpus(stage.run, stage.machine)
    assert caught.value.exit_code == 13


def test_a_head_that_reads_otherwise_is_no_failure(stage: Stage) -> None:
    stage.machine.said["gpu-inside"] = done("| a table of tomorrow |\n")
    inside(stage)
    assert f"GPU inside {IMAGE}: there" in stage.log
    assert INSIDE not in stage.log


def test_a_gpu_that_newer_drivers_left_behind_is_named_with_its_last_branch(stage: Stage) -> None:
    stage.set(machine={"gpu": ["nvidia-tesla-v100"]})
    stage.machine.said["gpu"] = done("", 127, "nvidia-smi: not found")
    with pytest.raises(Failure) as caught:
        check_gpus(stage.run, stage.machine)
    assert "branch that knows nvidia-tesla-v100 is 580, with NVIDIA's closed kernel modules" in caught.value.remedy
