"""provision: a VM with its GPU ready, or a reason why not, before anything else costs money."""

from __future__ import annotations

from glgpu.disk import cannot_write
from glgpu.errors import ErrorClass, Failure
from glgpu.run_record import write_atomically
from glgpu.steps.before_buying import check_before_buying
from glgpu.steps.bring_up import standing
from glgpu.steps.context import Run
from glgpu.steps.ready import make_ready, new_vm

DOTENV = "glgpu.env"


def provision(run: Run) -> None:
    """Bring up the run's VM and leave it ready for train.

    Raises:
        Failure: CONFIG before anything is bought; else what stood in the way.
    """
    check_before_buying(run)
    if run.forge.destroy_is_over(run.job.run):
        raise Failure(
            ErrorClass.USAGE,
            "this pipeline has ended and its destroy job will not run again: a VM brought up now would be nobody's",
            "start a new pipeline, or retry its train job, which brings up a VM and sees to its end",
        )
    with run.console.section("provision", f"A VM for {run.name}"):
        instance = standing(run)
        if instance is None:
            instance = new_vm(run)
        else:
            run.console.say(f"the VM of this run is there, in {instance.zone}: taking it over")
            make_ready(run, instance)
    if not run.job.in_ci:
        run.console.say(f"for the next command of this run: export GLGPU_RUN={run.job.run}")
        return
    lines = {"GLGPU_INSTANCE": instance.name, "GLGPU_ZONE": instance.zone, "GLGPU_GOOGLE_PROJECT": run.cloud.project}
    if run.settings.storage.bucket:
        # destroy reads no glgpu.yml, and a VM that is gone tells it nothing: only so it finds the state.
        lines["GLGPU_STORAGE_BUCKET"] = run.settings.storage.bucket
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    path = run.job.project_dir / DOTENV
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise cannot_write(error, path) from None
