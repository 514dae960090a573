"""The command line: parse, read settings once, call one stage, turn a failure into a message and an exit code."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from glgpu import __version__

# Everything else is imported where it is used: `glgpu --help` has to answer at once.
if TYPE_CHECKING:
    from glgpu.console import Console
    from glgpu.processes import Interrupts
    from glgpu.run_names import Kind, RunName
    from glgpu.steps.context import Run

IMPORTED_OBJECTS = 20_000
"""New objects before the garbage collector looks at them; the default of 700 is for programs that import less."""


class Commands(click.Group):
    """Commands in the order of a run's life."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added."""
        del ctx
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="glgpu")
def cli() -> None:
    """A GitLab push trains on a Compute Engine GPU, and nothing is left behind.

    Example: `glgpu rehearse` plays a whole pipeline on this machine, without cloud or GitLab.
    """


def doorman(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a console and signals, and turn its failure into a message and an exit code."""

    @wraps(command)
    def guarded(**options: Any) -> None:
        from glgpu.errors import Failure
        from glgpu.processes import Interrupts
        from glgpu.settings import process_environment
        from glgpu.wiring import make_console

        console = make_console(process_environment())
        interrupts = Interrupts()
        interrupts.install()
        try:
            try:
                command(console=console, interrupts=interrupts, **options)
            finally:
                interrupts.seen.set()  # what is left is the last word: no signal disturbs it
        except Failure as failure:
            console.failure(failure)
            sys.exit(failure.exit_code)
        except click.ClickException:
            raise  # click's own: wrong usage
        except click.Abort:
            console.say("glgpu: ended at the keyboard; without one, give the answers as options (see --help)")
            sys.exit(19)
        except Exception as error:
            import traceback

            from glgpu.console import bug

            console.failure(bug(error, traceback.format_exc()))
            sys.exit(1)

    return guarded


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that reads glgpu.yml."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."
    )(command)
    return click.option("--config", metavar="FILE", help="Path of glgpu.yml in the repository.  [default: glgpu.yml]")(
        command
    )


def staged(console: Console, stage: Callable[[Run], None], **options: Any) -> None:
    """Wire a run, play one stage on it, and clear its scratch folder away.

    After a signal to a job the folder stays: it holds the key with which the job's after_script gets in.
    """
    from glgpu.errors import ErrorClass, Failure
    from glgpu.settings import process_environment
    from glgpu.wiring import clear_scratch, make_run

    run = make_run(console, process_environment(), Path.cwd(), **options)
    keep = False
    try:
        stage(run)
    except Failure as failure:
        keep = failure.klass is ErrorClass.INTERRUPTED and run.job.in_ci
        run.record.add("failed", failure=failure.klass, cause=failure.cause, exit_code=failure.exit_code)
        raise
    finally:
        if not keep:
            clear_scratch(run)


@cli.command()
@click.option("--home", metavar="GROUP/PROJECT", help="Where your copy of glgpu lives on your GitLab.")
@click.option("--ref", default="main", show_default=True, help="Branch or tag of it.")
@click.option("--image", help="Job image.  [default: the one that the home's pipeline builds]")
@click.option("--google-project", help="Google Cloud project.")
@click.option("--train-image", help="Container image in which the training runs.")
@click.option("--command", help="Command of the training.")
@click.option("--outputs", help="Files and folders that it leaves, by comma.")
@click.option("--folder", default=".", show_default=True, help="The repository that shall use glgpu.")
@click.option("--gitlab", metavar="URL", help="Your GitLab.  [default: CI_SERVER_URL, or that of the remote origin]")
@click.option("--project", metavar="GROUP/PROJECT", help="Where the repository is on it.  [default: likewise]")
@click.option(
    "--schedule",
    type=click.Choice(["yes", "no"]),
    help="Whether to make the cleanup schedule also if jobs of yours run on it.  [default: asks]",
)
@doorman
def init(
    console: Console,
    interrupts: Interrupts,
    folder: str,
    gitlab: str | None,
    project: str | None,
    ref: str,
    schedule: str | None,
    **answers: str | None,
) -> None:
    """Make a repository use glgpu; overwrites nothing.

    Writes glgpu.yml and the include, and makes the schedule that cleans up where GLGPU_GITLAB_TOKEN allows it.

    Example: glgpu init --home group/glgpu --google-project my-dl
    """
    from glgpu.settings import process_environment
    from glgpu.stages.init import Answers
    from glgpu.stages.init import init as stage
    from glgpu.wiring import make_gitlab

    del interrupts

    def ask(question: str, default: str) -> str:
        return str(click.prompt(question, default=default or None))

    # A script is not asked whether it means what it does.
    agreed = schedule or (None if sys.stdin.isatty() else "yes")
    there = partial(make_gitlab, console, process_environment(), Path(folder), server=gitlab, project=project)
    stage(Path(folder), Answers(ref=ref, schedule=agreed, **answers), ask, there, console.say)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Everything found, good ones too, as JSON.")
@click.option("--list-checks", is_flag=True, help="Every check: what it asks and what it needs.")
@settings_options
@doorman
def doctor(
    console: Console,
    interrupts: Interrupts,
    as_json: bool,
    list_checks: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Find now what would go wrong later.

    Changes nothing. Works in a job and on a laptop.

    Example: glgpu doctor --set machine.spot=never
    """
    from glgpu.settings import process_environment
    from glgpu.stages import doctor as stage
    from glgpu.wiring import make_sources

    del interrupts
    if list_checks:
        stage.list_checks(console, as_json=as_json)
        return
    sources = make_sources(console, process_environment(), Path.cwd(), config=config, overrides=overrides)
    found = stage.doctor(sources)
    (stage.show_json if as_json else stage.show)(console, found)
    sys.exit(stage.exit_code(found))


@cli.command()
@click.option("--gpu", "names", multiple=True, metavar="NAME", help="Only this GPU; may be repeated.")
@click.option("--region", "regions", multiple=True, metavar="REGION", help="Only this region; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
@settings_options
@doorman
def gpus(
    console: Console,
    interrupts: Interrupts,
    names: tuple[str, ...],
    regions: tuple[str, ...],
    as_json: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Which GPUs there are, what they cost, and where the project may have them.

    Without Google credentials the prices are estimates, and zones and limits are left out. Regions are those of
    glgpu.yml, if there is one, unless --region names others.

    Example: glgpu gpus --gpu nvidia-l4 --region europe-west4
    """
    from glgpu.settings import process_environment
    from glgpu.stages.gpus import gpus as stage
    from glgpu.stages.gpus import show, show_json
    from glgpu.wiring import make_console, offer_sources

    del interrupts
    talk = make_console(process_environment(), errors=True) if as_json else console
    with offer_sources(talk, process_environment(), Path.cwd(), config=config, overrides=overrides) as sources:
        market = stage(*sources, names=names, regions=regions)
    (show_json if as_json else show)(console, market)


@cli.command()
@settings_options
@doorman
def provision(console: Console, interrupts: Interrupts, config: str | None, overrides: tuple[str, ...]) -> None:
    """Bring up the run's VM and leave it ready.

    Example: glgpu provision --set machine.spot=never
    """
    from glgpu.stages.provision import provision as stage

    del interrupts
    staged(console, stage, config=config, overrides=overrides)


@cli.command()
@settings_options
@doorman
def authorize(console: Console, interrupts: Interrupts, config: str | None, overrides: tuple[str, ...]) -> None:
    """Bring this commit onto the run's VM.

    train does it by itself.

    Example: glgpu authorize --set code=deploy-key
    """
    from glgpu.stages.authorize import authorize as stage

    del interrupts
    staged(console, stage, config=config, overrides=overrides)


@cli.command()
@settings_options
@doorman
def train(console: Console, interrupts: Interrupts, config: str | None, overrides: tuple[str, ...]) -> None:
    """Train on the VM and bring the weights home.

    Example: glgpu train --set "train.command=python train.py --epochs 3"
    """
    from glgpu.stages.train import train as stage

    del interrupts
    staged(console, stage, config=config, overrides=overrides)


def talks_aside(console: Console) -> Console:
    """A console that leaves standard output to what the command itself prints; it knows the same secrets."""
    from glgpu.settings import process_environment
    from glgpu.wiring import make_console

    talk = make_console(process_environment(), errors=True)
    talk.masker = console.masker
    return talk


RUN_OPTION = click.option(
    "--run", "run_id", metavar="RUN", help="The run: a pipeline's number, as `glgpu status` shows."
)


@cli.group(cls=Commands)
def notebook() -> None:
    """A private JupyterLab on a GPU, for as long as it is used.

    Example: glgpu notebook open
    """


@notebook.command("start")
@click.option("--fresh", is_flag=True, help="Begin without what you have saved on this branch.  [env: GLGPU_FRESH]")
@settings_options
@doorman
def notebook_start(
    console: Console, interrupts: Interrupts, fresh: bool, config: str | None, overrides: tuple[str, ...]
) -> None:
    """Start the notebook of this pipeline; ends as soon as it answers.

    The job `start notebook` calls it. What you have saved on this branch is taken up.

    Example: glgpu notebook start --fresh
    """
    from glgpu.stages.notebook_start import start as stage

    del interrupts

    def begin(run: Run) -> None:
        stage(run, fresh=fresh or run.job.variables.get("GLGPU_FRESH") == "true")

    staged(console, begin, config=config, overrides=overrides, kind="notebook")


@notebook.command("open")
@click.argument("run_id", required=False, metavar="[RUN]")
@click.option("--no-browser", is_flag=True, help="Only say where the notebook is.")
@settings_options
@doorman
def notebook_open(
    console: Console,
    interrupts: Interrupts,
    run_id: str | None,
    no_browser: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Open a notebook in the browser of this machine; Ctrl-C closes it again.

    RUN is a pipeline's number; without it the only notebook of this branch, or of yours, is meant. Nobody who may not
    log in to the VM can get at it. The connection comes back by itself, at the same address.

    Example: glgpu notebook open
    """
    import webbrowser

    from glgpu.settings import process_environment
    from glgpu.stages.notebook_open import open_notebook
    from glgpu.wiring import visiting

    del interrupts
    variables = process_environment()
    with visiting(console, variables, Path.cwd(), run=run_id, config=config, overrides=overrides) as visitor:
        open_notebook(visitor, None if no_browser else webbrowser.open)


@notebook.command("stop")
@click.option("--cloud-only", is_flag=True, help="What a job that failed to start one can still do.")
@settings_options
@doorman
def notebook_stop(
    console: Console, interrupts: Interrupts, cloud_only: bool, config: str | None, overrides: tuple[str, ...]
) -> None:
    """End this pipeline's notebook: its work comes home, then all of it goes, and that is proved.

    One that is gone is no failure.

    Example: glgpu notebook stop
    """
    from glgpu.notebook import KIND
    from glgpu.stages.destroy import destroy_cloud_only, end_notebook

    del interrupts
    chosen = destroy_cloud_only if cloud_only else end_notebook
    staged(console, chosen, config=config, overrides=overrides, kind=KIND, needs_settings=False)


@notebook.command("status")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@settings_options
@doorman
def notebook_status(
    console: Console, interrupts: Interrupts, as_json: bool, config: str | None, overrides: tuple[str, ...]
) -> None:
    """Which notebooks run, whose they are, since when they are idle, and what ends them.

    Asks each VM. `glgpu status` shows them among everything else, and asks none.

    Example: glgpu notebook status --json
    """
    from glgpu.settings import process_environment
    from glgpu.stages.notebook_status import notebook_status as stage
    from glgpu.wiring import visiting

    del interrupts
    talk = talks_aside(console) if as_json else console
    with visiting(talk, process_environment(), Path.cwd(), run=None, config=config, overrides=overrides) as visitor:
        stage(visitor, visitor.run.google_time, json_to=console if as_json else None)


@notebook.command("extend")
@click.argument("duration")
@RUN_OPTION
@settings_options
@doorman
def notebook_extend(
    console: Console,
    interrupts: Interrupts,
    duration: str,
    run_id: str | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Give a notebook more time, within its hard end.

    DURATION is written like 2h, 90m or 1h30m, and counts from the soft end that it has.

    Example: glgpu notebook extend 2h
    """
    from glgpu.lifetime import parse_duration
    from glgpu.settings import process_environment
    from glgpu.stages.notebook_extend import extend
    from glgpu.wiring import visiting

    del interrupts
    seconds = parse_duration(duration)
    with visiting(
        console, process_environment(), Path.cwd(), run=run_id, config=config, overrides=overrides
    ) as visitor:
        extend(visitor, seconds)


@cli.command()
@click.option("--cloud-only", is_flag=True, help="What a cancelled job can still do: save, delete, be gone.")
@click.option("--branch", is_flag=True, help="Every run of this kind on this branch.")
@settings_options
@doorman
def destroy(
    console: Console,
    interrupts: Interrupts,
    cloud_only: bool,
    branch: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """End the run: save, remove all, prove it.

    Example: glgpu destroy --branch
    """
    from glgpu.stages.destroy import destroy as stage
    from glgpu.stages.destroy import destroy_branch, destroy_cloud_only
    from glgpu.wiring import under_name

    del interrupts
    if cloud_only and branch:
        raise click.UsageError("--cloud-only and --branch exclude each other")

    def every(run: Run) -> None:
        def named(name: RunName) -> Run:
            return under_name(run, name)

        destroy_branch(run, named)

    chosen = destroy_cloud_only if cloud_only else every if branch else stage
    staged(console, chosen, config=config, overrides=overrides, needs_settings=False)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--older-than", metavar="DURATION", help="Leave alone what is younger, 2h for example.")
@click.option("--json", "as_json", is_flag=True, help="The table as JSON.")
@settings_options
@doorman
def cleanup(
    console: Console,
    interrupts: Interrupts,
    dry_run: bool,
    older_than: str | None,
    as_json: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Remove what is left of runs that are over.

    Looks at everything of this GitLab in the cloud project: VMs, stopped ones too, disks, firewall rules, and in the
    own GitLab project deploy keys, Terraform states and environments.

    Example: glgpu cleanup --dry-run
    """
    from glgpu.lifetime import parse_duration
    from glgpu.settings import process_environment
    from glgpu.stages.cleanup import cleanup as stage
    from glgpu.wiring import make_console, under_name

    del interrupts
    seconds = parse_duration(older_than) if older_than else 0.0
    talk = make_console(process_environment(), errors=True) if as_json else console

    def sweep(run: Run) -> None:
        stage(
            run,
            run.google_time,
            lambda name: under_name(run, name),
            older_than=seconds,
            dry_run=dry_run,
            json_to=console if as_json else None,
        )

    staged(talk, sweep, config=config, overrides=overrides, needs_settings=False)


@cli.command()
@settings_options
@doorman
def collect(console: Console, interrupts: Interrupts, config: str | None, overrides: tuple[str, ...]) -> None:
    """Bring home what detached trainings of this project have left.

    Takes those that are over, checks what their VMs have saved, and removes VM, disk, rules, key, token and state. The
    scheduled cleanup does it too. Outputs of RUN land in outputs/glgpu/RUN/.

    Example: glgpu collect
    """
    from glgpu.stages.collect import collect as stage
    from glgpu.wiring import under_name

    del interrupts

    def bring(run: Run) -> None:
        stage(run, run.google_time, lambda name: under_name(run, name))

    staged(console, bring, config=config, overrides=overrides, needs_settings=False)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@settings_options
@doorman
def status(
    console: Console, interrupts: Interrupts, as_json: bool, config: str | None, overrides: tuple[str, ...]
) -> None:
    """What is alive now, for whom, since when, what it has cost, and what will end it.

    Tells of every VM of glgpu's in the cloud project, stopped ones too, and of disks without a VM.

    Example: glgpu status --json
    """
    from glgpu.settings import process_environment
    from glgpu.stages.status import status as stage
    from glgpu.wiring import make_console

    del interrupts
    talk = make_console(process_environment(), errors=True) if as_json else console

    def look(run: Run) -> None:
        stage(run, run.google_time, json_to=console if as_json else None)

    staged(talk, look, config=config, overrides=overrides, needs_settings=False)


@cli.command()
@RUN_OPTION
@click.option("-f", "--follow", is_flag=True, help="Stay until the training ends.")
@click.option("-n", "--last", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.  [default: all]")
@settings_options
@doorman
def logs(
    console: Console,
    interrupts: Interrupts,
    run_id: str | None,
    follow: bool,
    last: int | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """What a run's training has printed, from wherever you are.

    Without --run and GLGPU_RUN the only living run of this project or branch is meant. Secrets that this machine
    knows are masked.

    Example: glgpu logs -f -n 20
    """
    from glgpu.settings import process_environment
    from glgpu.stages.logs import logs as stage
    from glgpu.wiring import visiting

    del interrupts
    variables = process_environment()
    talk = talks_aside(console)
    with visiting(talk, variables, Path.cwd(), run=run_id, config=config, overrides=overrides) as visitor:
        stage(visitor, sys.stdout.buffer, follow=follow, last=last)


HOST_ENTRY = "-"
"""What `glgpu ssh --config` gets without a file."""


@cli.command()
@RUN_OPTION
@click.option("--kind", type=click.Choice(["train", "notebook"]), help="Of what kind the run is.  [default: any]")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."
)
@click.option(
    "--config",
    metavar="[FILE]",
    is_flag=False,
    flag_value=HOST_ENTRY,
    help="Without FILE: write a Host entry for plain ssh and VS Code. With it: path of glgpu.yml, as everywhere.",
)
@click.argument("words", nargs=-1, metavar="[-- COMMAND...]")
@doorman
def ssh(
    console: Console,
    interrupts: Interrupts,
    run_id: str | None,
    kind: Kind | None,
    words: tuple[str, ...],
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """A shell on a run's VM, or one command there and its exit code.

    Without --run and GLGPU_RUN the only living run of this project or branch is meant. The door is opened for this
    machine's address and closed behind it, and the VM's host key is the one that was pinned when it booted.

    With --config alone a Host entry is written below ~/.ssh/glgpu instead, and the door stays open.

    Example: glgpu ssh -- nvidia-smi
    """
    from glgpu.settings import process_environment
    from glgpu.stages.ssh import ssh as stage
    from glgpu.stages.ssh import write_host
    from glgpu.wiring import visiting

    del interrupts
    variables = process_environment()
    if config == HOST_ENTRY:
        if words:
            raise click.UsageError("--config without a file writes a Host entry, and runs nothing")
        folder = Path.home() / ".ssh/glgpu"
        with visiting(console, variables, Path.cwd(), run=run_id, overrides=overrides, keep_in=folder) as visitor:
            write_host(visitor, folder, kind)
        return
    talk = talks_aside(console)
    with visiting(talk, variables, Path.cwd(), run=run_id, config=config, overrides=overrides) as visitor:
        code = stage(visitor, words, kind)
    sys.exit(code)


@cli.command()
@click.argument("run", required=False)
@click.option("--to", default="outputs", show_default=True, metavar="DIR", help="Where everything is put.")
@click.option("--json", "as_json", is_flag=True, help="What was fetched, as JSON.")
@click.option("--gitlab", metavar="URL", help="The GitLab.  [default: CI_SERVER_URL, or that of the remote origin]")
@click.option("--project", metavar="GROUP/PROJECT", help="The project on it.  [default: likewise]")
@settings_options
@doorman
def fetch(
    console: Console,
    interrupts: Interrupts,
    run: str | None,
    to: str,
    as_json: bool,
    gitlab: str | None,
    project: str | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Get everything of a run: artifacts, and what was too big for them.

    RUN is the number of its pipeline; in a job, its own by default. What was cut is joined, every file is checked, and
    what is there already is not got again. Needs GLGPU_GITLAB_TOKEN (a token of your own with scope read_api will do),
    and in a job of the same project nothing.

    Example: glgpu fetch 1234 --to weights-of-1234
    """
    from glgpu.settings import process_environment
    from glgpu.stages.fetch import fetch as stage
    from glgpu.wiring import make_console, make_origin

    del interrupts
    talk = make_console(process_environment(), errors=True) if as_json else console
    origin = make_origin(
        talk,
        process_environment(),
        Path.cwd(),
        run=run,
        server=gitlab,
        project=project,
        config=config,
        overrides=overrides,
    )
    stage(origin, Path(to), json_to=console if as_json else None)


@cli.command()
@settings_options
@doorman
def run(console: Console, interrupts: Interrupts, config: str | None, overrides: tuple[str, ...]) -> None:
    """The whole life cycle from a laptop: provision, train, destroy.

    Example: glgpu run --set machine.zones=europe-west1-b
    """
    from glgpu.life_cycle import whole_life

    def give_up() -> bool:
        if not sys.stdin.isatty():
            return True
        try:
            if click.confirm("End the training and tear everything down?", default=True):
                return True
        except click.Abort:
            return True  # nobody is there to answer any more
        interrupts.rearm()
        return False

    staged(console, lambda one: whole_life(one, give_up), config=config, overrides=overrides)


@cli.command()
@click.argument("file", default="-", type=click.File("rb"))
@click.option("--json", "as_json", is_flag=True, help="class, cause, remedy, exit_code and retry as JSON.")
@doorman
def explain(console: Console, interrupts: Interrupts, file: BinaryIO, as_json: bool) -> None:
    """Say what an error text means and what to do.

    FILE holds what Terraform, gcloud, Docker, SSH, git or NVIDIA said, with whatever stands around it; by default
    standard input. Secrets in it are masked.

    Example: terraform apply 2>&1 | glgpu explain
    """
    from glgpu.settings import process_environment
    from glgpu.stages.explain import explain as stage

    del interrupts
    stage(console, file, process_environment(), as_json=as_json)


@cli.command()
@click.argument("path", required=False, type=click.Path(exists=True, file_okay=False))
@click.option("--fault", "faults", multiple=True, metavar="NAME", help="Let this go wrong; may be repeated.")
@click.option("--list-faults", is_flag=True, help="Every fault with the exit code that it has to end with.")
@click.option("--defect", "defects", multiple=True, metavar="NAME", help="With --serve: something for doctor to find.")
@click.option("--list-defects", is_flag=True, help="Every defect with the checks of doctor that find it.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
@click.option("--image", help="Container image to train in, instead of what PATH asks for.")
@click.option("--keep", is_flag=True, help="Keep the rehearsal's folder, to look at.")
@click.option("--clean", is_flag=True, help="Reap what a killed rehearsal left behind.")
@click.option("--notebook", is_flag=True, help="Play a notebook instead: started, opened, worked in, stopped.")
@click.option("--serve", is_flag=True, help="Only run the stand-ins; prints one line of JSON.")
@doorman
def rehearse(console: Console, interrupts: Interrupts, **options: Any) -> None:
    """Play a whole pipeline here, without cloud.

    PATH is the folder of a repository with a glgpu.yml; by default the example is played.

    Example: glgpu rehearse --fault train-fails
    """
    from glgpu.errors import ErrorClass, Failure

    del interrupts
    try:
        from glgpu.rehearsal.command import rehearse as play
    except ImportError as error:
        raise Failure(
            ErrorClass.TOOL_MISSING,
            f"rehearsals need more than glgpu alone: {error}",
            "in a checkout of glgpu: ./ci/rehearse, or pip install '.[rehearsal]'",
        ) from None
    sys.exit(play(console, **options))


def main() -> None:
    """The console script."""
    # What a job's process does, besides waiting, is importing hundreds of modules that stay: the collector would look
    # through them over and over, and once more at the end, which took a second of each job.
    gc.set_threshold(IMPORTED_OBJECTS)
    try:
        cli(prog_name="glgpu")
    finally:
        gc.freeze()
        # A reader that has gone away would turn the exit code into 120 at the interpreter's end.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
