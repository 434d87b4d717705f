"""The command line: arguments to calls, printing, exit codes. No logic, and no heavy import before a command runs."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from nas.errors import InputError, NasError, did_you_mean

if TYPE_CHECKING:
    from nas.api import Repriced, Run

EXIT_CODES = """\b
Exit codes: 0 a front was found; 1 a bug of nas; 2 bad input; 3 nothing feasible;
4 stopped itself; 5 device or cluster unreachable; 130 interrupted, resumable."""


class _Command(click.Command):
    """A command that understands people who write `data=my.yaml` as Ultralytics wants it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = {flag for parameter in self.params for flag in parameter.opts}
        before = None
        for arg in args:
            name, equals, value = arg.partition("=")
            name = name.replace("_", "-")
            if equals and not arg.startswith("-") and f"--{name}" in flags and not str(before).startswith("--set"):
                raise click.UsageError(f"'{arg}' is not an option; did you mean --{name} {value}?", ctx)
            before = arg
        return super().parse_args(ctx, args)


class _Group(click.Group):
    """Commands with "did you mean" for a mistyped one."""

    command_class = _Command
    group_class = type

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no command '{args[0]}'; {did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class _LatencyGroup(_Group):
    """A group whose first argument may be a model or a run: then it means `measure`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["measure", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="yolo-placement-search", prog_name="nas")
def cli() -> None:
    """Neural architecture search over block placements in YOLO detectors."""


_blocks = click.option(
    "--blocks", multiple=True, metavar="FILE", help="Python file with blocks of your own; its code runs. Repeatable."
)
_allow_noisy = click.option(
    "--allow-noisy", is_flag=True, help="Take latencies of a machine that is not quiet too, marked and with wider intervals."
)


@cli.command()
@click.option("--data", metavar="YAML", help="Ultralytics dataset; without it the built-in set is used.")
@click.option("--budget", default="30min", show_default=True, help="64gpu-h, 30gpu-min, 2h, 30min or 20trials.")
@click.option("--max-latency", metavar="TIME", help="Hard limit, for example 2ms or 800us; what is slower is not trained.")
@click.option("--max-params", metavar="COUNT", help="Likewise on parameters, for example 3M.")
@click.option("--max-macs", metavar="COUNT", help="Likewise on the multiply-adds of one image, for example 4G.")
@click.option("--max-size", metavar="SIZE", help="Likewise on the exported file, for example 10MB.")
@click.option("--space", default="yolo11n-blocks", show_default=True, help="Search space YAML, or the name of a shipped one.")
@click.option("--target", default="auto", show_default=True, help="What latency is measured on: see the README.")
@_allow_noisy
@click.option("--imgsz", type=int, help="Side of the square input in pixels.  [default: 640; built-in set: 192]")
@click.option("--epochs", type=int, help="Length of a proxy training, to the highest rung.  [default: 5]")
@click.option("--rungs", type=int, help="Rungs of a training, each a third of the next; the promising climb.  [default: 1]")
@click.option("--confirm", type=int, help="Further seeds that the front is trained with in the end.  [default: 1]")
@click.option("--fraction", type=float, help="Share of the training images that proxies see.  [default: 1]")
@click.option(
    "--workers", type=int, help="Trials trained at once.  [default: one per GPU, else one per core, as memory allows]"
)
@click.option("--gpus-per-trial", type=float, default=1.0, show_default=True, help="0.25: four trials share a GPU.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--executor", default="local", show_default=True, help="local (processes of this host) or ray.")
@click.option(
    "--imitate/--from-scratch",
    default=False,
    help="Blocks learn from a teacher (--weights, or trained first), architectures begin assembled.  [default: from scratch]",
)
@click.option("--sampler", default="front", show_default=True, help="front, tpe or random: who proposes.")
@click.option("--weights", metavar="FILE", help="Checkpoint of the skeleton (.pt): what an architecture kept starts from it.")
@click.option("--seed", default=0, show_default=True, help="Of every random draw.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="lr0, batch, epochs or held_out.")
@_blocks
@click.option("--name", help="Folder under results/.  [default: search, search2, …]")
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with a run; --budget, --max-…, --workers, --executor and --allow-noisy may change.",
)
@click.option("--dry-run", is_flag=True, help="Say what there is to choose from and what the budget buys; train nothing.")
@click.option("--add-budget", metavar="BUDGET", help="With --resume: so much more.")
@click.option("-q", "--quiet", is_flag=True, help="Show the result only.")
@click.pass_context
def search(ctx: click.Context, /, **options: Any) -> None:
    """Search for the best architectures; files go to results/NAME.

    Ctrl-C lets running trials end and writes the front; a second Ctrl-C stops at once. Both can be resumed.
    """
    # This process computes little, and must not spin on the cores that its workers need.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from nas import api  # noqa: PLC0415  (a command pays for its own imports)
    from nas.config import parse_limits, parse_settings  # noqa: PLC0415
    from nas.review.progress import progress  # noqa: PLC0415
    from nas.runs.folder import command_line, resume_command  # noqa: PLC0415

    quiet, again, add, dry = (options.pop(name) for name in ("quiet", "resume", "add_budget", "dry_run"))
    settings = parse_settings(options.pop("settings"))
    named = {name: options.pop(name) for name in ("epochs", "rungs", "confirm", "fraction")}
    settings |= {name: value for name, value in named.items() if value is not None}
    view = progress(quiet=quiet)
    if again is None:
        if add is not None:
            raise InputError("--add-budget needs --resume RUN", "for a new search use --budget")
        if dry:
            del options["name"]
            click.echo("\n".join(api.dry_run(**options, **settings, progress=view)))
            return
        run = api.search(**options, **settings, command=command_line(), progress=view)
    else:
        if dry:
            raise InputError("--dry-run is for a new search", f"leave out --resume {again}")
        given = {k for k in options if ctx.get_parameter_source(k) is click.core.ParameterSource.COMMANDLINE}
        given |= set(settings)
        limits = {"max_latency", "max_params", "max_macs", "max_size"}
        if fixed := sorted(given - {"budget", "workers", "executor", "allow_noisy", "blocks"} - limits):
            flag = f"--{fixed[0].replace('_', '-')}"
            raise InputError(f"{flag} cannot change in a resumed run", "leave it out, or start a new run")
        changes = {k: options[k] for k in given - limits} | parse_limits(**{k: options[k] for k in given & limits})
        run = api.resume(again, add_budget=add, progress=view, **changes)
    _show(run)
    if run.stopped_because == "interrupted":
        click.echo(f"interrupted; go on with: {resume_command(run.folder)}", err=True)
        ctx.exit(130)
    if not run.front:
        click.echo("no feasible trial finished; give it more budget with --resume and --add-budget", err=True)
        ctx.exit(3)


@cli.command()
@click.argument("run", required=False)
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--target", help="Of another device or runtime: what was trained is priced there, nothing is trained.")
@click.option("--max-latency", metavar="TIME", help="With --target: the limit there.  [default: the run's]")
@click.option("--sensitivity", is_flag=True, help="After a search with --imitate: what each block costs in each slot.")
@_blocks
def front(
    run: str | None, form: str, target: str | None, max_latency: str | None, sensitivity: bool, blocks: tuple[str, ...]
) -> None:
    """Show the front of RUN (the latest run where none is named) and write its files anew.

    With --target the front is that of another target, and its files go to RUN/targets; the run's own stay as they are.
    """
    from nas import api  # noqa: PLC0415

    if target is not None:
        say = partial(click.echo, err=True)
        _show_repriced(api.reprice(run, target, max_latency=max_latency, blocks=blocks, say=say), form)
        return
    if max_latency is not None:
        raise InputError("--max-latency needs --target", "of a run, it changes with: nas search --resume RUN --max-latency …")
    found = api.load(run)
    try:
        found.report()
    except InputError as error:  # somebody else's run can still be looked at
        click.echo(f"note: {error.message}; showing what is known", err=True)
    if sensitivity:
        from nas.review.heat import heat_table  # noqa: PLC0415

        if not found.sensitivity:
            raise InputError(f"{found.folder} has no library of imitated blocks", "search with --imitate")
        _print(heat_table(found.sensitivity))
    elif form == "table":
        _show(found)
    else:
        click.echo((found.folder / f"front.{form}").read_text(encoding="utf-8"), nl=False)


@cli.command()
@click.argument("run", required=False)
@click.option("--pick", required=True, help="knee, fastest, best, an architecture id or a trial number.")
def export(run: str | None, pick: str) -> None:
    """Write the model YAML of one architecture of RUN, which trains in Ultralytics as it is, and its weights where they
    are kept (of the front and the baseline)."""
    from nas import api  # noqa: PLC0415

    for path in api.load(run).export(pick):
        click.echo(path)


@cli.command()
@click.argument("run", required=False)
@click.option("--pick", help="knee, fastest, best, an architecture id or a trial number.  [default: the winner]")
@click.option("--epochs", type=int, default=100, show_default=True, help="Of Ultralytics' trainer.")
@click.option("--random-init", is_flag=True, help="Begin with drawn weights, not with those that the run kept.")
@click.option("--device", help="As Ultralytics takes it: cpu, 0, 0,1.")
@_blocks
def train(run: str | None, **options: Any) -> None:
    """Train an architecture of RUN in full, through Ultralytics' trainer, on from the weights that the search has given it.

    At the end stand its mAP on val and its latency, and the baseline's.
    """
    from nas.finish import finish  # noqa: PLC0415

    for line in finish(run, **options).lines:
        click.echo(line)


@cli.group(cls=_LatencyGroup)
def latency() -> None:
    """Measure the latency of a model: `nas latency yolo11n.yaml`, `nas latency RUN --pick knee`."""


@latency.command("measure")
@click.argument("what", metavar="YAML|RUN")
@click.option("--target", help="See the README.  [default: auto; of a run its own]")
@click.option("--imgsz", metavar="SIZE", help="640, or height x width: 384x640.  [default: 640; of a run its own]")
@click.option("--pick", help="Of a run: knee, fastest, best, an architecture id or a trial number.  [default: its winner]")
@_allow_noisy
@_blocks
def latency_measure(what: str, **options: Any) -> None:
    """Measure a model YAML, also one of Ultralytics, by name or path, or a trial of a run; "measure" may be left out."""
    from nas.quote import quote  # noqa: PLC0415

    for line in quote(what, **options).lines:
        click.echo(line)


@latency.command("probes")
@click.option("--out", required=True, metavar="DIR", help="Folder to write.")
@click.option("--space", default="yolo11n-blocks", show_default=True, help="Search space YAML, or the name of a shipped one.")
@click.option("--imgsz", default="640", show_default=True, help="Side of the input, or height x width: 384x640.")
@click.option("--data", metavar="YAML", help="Dataset, for its number of classes.  [default: the skeleton's own]")
@click.option("--count", type=click.IntRange(8, 1000), default=40, show_default=True, help="How many models.")
@click.option("--seed", default=0, show_default=True, help="Of their choice.")
@_blocks
def latency_probes(out: str, **options: Any) -> None:
    """Write models to measure on another device, and the program that does so there with numpy and onnxruntime alone.

    What it writes, jetson.csv say, is a target: nas search --target table:jetson.csv
    """
    from nas import api  # noqa: PLC0415

    for line in api.probes(out, say=click.echo, **options):
        click.echo(line)


@cli.group()
def space() -> None:
    """Check and show search spaces."""


@space.command("check")
@click.argument("file", required=False)
@_blocks
@click.option("--imgsz", type=click.IntRange(32, 4096), default=640, show_default=True, help="For the memory of attention.")
def space_check(file: str | None, blocks: tuple[str, ...], imgsz: int) -> None:
    """Say every fault of a search space with its line, or that there is none; examine blocks of your own."""
    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.space.memory import attention_notes  # noqa: PLC0415
    from nas.space.reader import find_space, read_space  # noqa: PLC0415

    if file is None and not blocks:
        raise click.UsageError("nothing to check: name a search space, or --blocks FILE")
    own = load_blocks(*blocks)
    found = None if file is None else read_space(find_space(file))
    if found is not None:
        for note in (*found.notes, *attention_notes(found, imgsz)):
            click.echo(f"note: {note}")
        click.echo(f"{found.source}: fine; {found.size:,} architectures of {found.skeleton.name}")
    if own:
        from nas.blocks.exam import admit  # noqa: PLC0415  (torch)

        for report in admit(own, found):
            click.echo(f"{report.row}: fine; {report.checks} checks in {report.seconds:.1f} s")


@space.command("show")
@click.argument("file")
@click.option("--params", is_flag=True, help="Build the models and list their parameters instead.")
@_blocks
def space_show(file: str, params: bool, blocks: tuple[str, ...]) -> None:
    """List the slots of a search space (or of a model YAML) and what each may hold."""
    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.review.params_table import params_table  # noqa: PLC0415
    from nas.review.space_table import slots_table  # noqa: PLC0415
    from nas.space.reader import find_space, read_space, whole_skeleton  # noqa: PLC0415
    from nas.space.skeleton import is_model  # noqa: PLC0415

    load_blocks(*blocks)
    shown = whole_skeleton(file) if is_model(file) else read_space(find_space(file))
    if not params:
        _print(slots_table(shown))
        return
    from nas.yolo.counts import count  # noqa: PLC0415  (torch)

    _print(params_table(shown, count))


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@_blocks
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def yolo(arguments: tuple[str, ...], blocks: tuple[str, ...]) -> None:
    """Ultralytics' own command line, with the blocks of nas registered and its models (`nas space show NAME`) known by name."""
    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.space.skeleton import shipped_model  # noqa: PLC0415

    sys.argv = ["yolo", *map(shipped_model, arguments)]  # Ultralytics reads it while it is imported
    from nas.yolo.command import entrypoint  # noqa: PLC0415

    load_blocks(*blocks)
    entrypoint()


def _show_repriced(repriced: Repriced, form: str) -> None:
    from nas.review.suggested import suggested_table  # noqa: PLC0415
    from nas.review.table import rich_table  # noqa: PLC0415

    for note in repriced.notes:
        click.echo(f"note: {note}", err=True)
    if form != "table":
        click.echo((repriced.folder / f"front.{form}").read_text(encoding="utf-8"), nl=False)
        return
    _print(rich_table(repriced.records, repriced.summary))
    if repriced.suggestions is not None:
        if repriced.suggestions.found:
            _print(suggested_table(repriced.suggestions.found, repriced.skeleton))
        click.echo(str(repriced.suggestions))
    for name in ("pareto.html", "pareto.png", "front.csv", "suggested.csv", "winner.yaml", "winner.pt"):
        if (repriced.folder / name).is_file():
            click.echo(f"  {repriced.folder / name}")


def _show(run: Run) -> None:
    from nas.review.record import duration  # noqa: PLC0415
    from nas.review.table import rich_table  # noqa: PLC0415

    _print(rich_table(run.records, run.summary))
    summary = run.summary
    took = f"{duration(summary.wall_seconds)}, {duration(summary.device_seconds)} of device time"
    click.echo(f"{summary.tally} in {took}; stopped: {summary.stopped_because}")
    if summary.predictions:
        click.echo(f"predicted latencies (~) are {summary.predictions}")
    for name in ("pareto.html", "pareto.png", "front.csv", "winner.yaml", "winner.pt"):
        if (run.folder / name).is_file():
            click.echo(f"  {run.folder / name}")


def _print(table: Any) -> None:
    from rich.console import Console  # noqa: PLC0415

    # A pipe has no width of its own: the table then takes what it needs.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main() -> None:
    """The console script: prints errors in one or two lines and exits with their code."""
    try:
        code = cli.main(standalone_mode=False)  # click returns what a command gave to `ctx.exit`
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as help_asked:
        click.echo(help_asked.format_message())
        sys.exit(0)
    except click.ClickException as error:
        click.echo(f"nas: {error.format_message()}", err=True)
        sys.exit(InputError.exit_code)
    except NasError as error:
        click.echo(f"nas: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("nas: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
