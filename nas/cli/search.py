"""`nas search`: arguments to calls."""

from __future__ import annotations

import os
from typing import Any

import click

from nas.cli.base import Command, allow_noisy_option, blocks_option, show, show_run
from nas.errors import InputError

SIMULATED = ("simulate", "accuracy", "latency", "features", "gpus", "faults", "rung_tau")
ALSO_SIMULATED = {"budget", "max_latency", "rungs", "confirm", "stop_when_flat", "sampler", "seed", "name", "quiet"}


@click.command(cls=Command)
@click.option("--data", metavar="YAML", help="Ultralytics dataset; without it the built-in set is used.")
@click.option("--budget", default="30min", show_default=True, help="64gpu-h, 30gpu-min, 2h, 30min or 20trials.")
@click.option("--max-latency", metavar="TIME", help="Hard limit, for example 2ms or 800us; what is slower is not trained.")
@click.option("--max-params", metavar="COUNT", help="Likewise on parameters, for example 3M.")
@click.option("--max-macs", metavar="COUNT", help="Likewise on the multiply-adds of one image, for example 4G.")
@click.option("--max-size", metavar="SIZE", help="Likewise on the exported file, for example 10MB.")
@click.option("--space", default="yolo11n-blocks", show_default=True, help="Search space YAML, or the name of a shipped one.")
@click.option("--target", default="auto", show_default=True, help="What latency is measured on: see the README.")
@allow_noisy_option
@click.option("--imgsz", type=int, help="Side of the square input in pixels.  [default: 640; built-in set: 192]")
@click.option("--epochs", type=int, help="Length of a proxy training, to the highest rung.  [default: 5]")
@click.option("--rungs", type=int, help="Rungs of a training, each a third of the next; the promising climb.  [default: 1]")
@click.option("--confirm", type=int, help="Further seeds that the front is trained with in the end.  [default: 1]")
@click.option("--fraction", type=float, help="Share of the training images that proxies see.  [default: 1]")
@click.option(
    "--workers", type=int, help="Trials trained at once.  [default: one per GPU, else one per core, as memory allows]"
)
@click.option(
    "--gpus-per-trial", type=float, default=1.0, show_default=True, help="0.25: four trials share a GPU; 2: each has two."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--executor", default="local", show_default=True, help="local (processes of this host) or ray; an --address means ray."
)
@click.option("--address", help="Train on this Ray cluster: auto (of this host), HOST:PORT or ray://HOST:PORT.")
@click.option(
    "--imitate/--from-scratch",
    default=None,
    help="Blocks learn from a teacher (--weights, or trained first), architectures begin assembled; or from scratch.  "
    "[default: imitate where the budget is one of time and pays for a teacher]",
)
@click.option("--sampler", default="front", show_default=True, help="front, tpe or random: who proposes.")
@click.option("--weights", metavar="FILE", help="Checkpoint of the skeleton (.pt): what an architecture kept starts from it.")
@click.option(
    "--from", "prior", metavar="RUN", help="Learn from a run of the same skeleton; its limit, device or data may differ."
)
@click.option(
    "--stop-when-flat",
    type=float,
    is_flag=False,
    flag_value=0.005,
    metavar="[SHARE]",
    help="End when another GPU-hour is expected to raise the hypervolume by less.  [0.005 where no share is given]",
)
@click.option("--seed", default=0, show_default=True, help="Of every random draw.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="lr0, batch, epochs or held_out.")
@blocks_option
@click.option(
    "--storage",
    metavar="URL",
    help="postgresql://user@host/database: keep the study there.  [default: study.db in the run's folder]",
)
@click.option("--name", help="Folder under results/.  [default: search, search2, …]")
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with a run; --budget, --max-…, --workers, --gpus-per-trial, --executor, --address, --storage and --allow-noisy "
    "may change.",
)
@click.option("--dry-run", is_flag=True, help="Say what there is to choose from and what the budget buys; train nothing.")
@click.option("--add-budget", metavar="BUDGET", help="With --resume: so much more.")
@click.option("--simulate", metavar="TABLE", help="Search a CSV of finished architectures in virtual time; nothing is trained.")
@click.option("--accuracy", metavar="COLUMN", help="With --simulate: to maximise.")
@click.option("--latency", metavar="COLUMN", help="With --simulate: to minimise, in ms.")
@click.option("--features", metavar="A,B,…", help="With --simulate: the space.  [default: all but the first, acc* and lat*]")
@click.option("--gpus", type=int, help="With --simulate: trials trained at once.  [default: 1]")
@click.option("--faults", metavar="FILE", help="With --simulate: what goes wrong, a YAML with fail, lose, leave.")
@click.option("--rung-tau", type=float, help="With --simulate: how rungs rank that are no column of the table.  [default: 0.7]")
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

    if options["simulate"] is not None:
        _simulate(ctx, **options)
        return
    if own := sorted(name for name in SIMULATED if options.pop(name) is not None):
        raise InputError(f"{_flag(own[0])} needs --simulate TABLE", "leave it out, or name the table")
    quiet, again, add, dry = (options.pop(name) for name in ("quiet", "resume", "add_budget", "dry_run"))
    settings = parse_settings(options.pop("settings"))
    named = {name: options.pop(name) for name in ("epochs", "rungs", "confirm", "fraction", "stop_when_flat")}
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
        free = {"budget", "workers", "gpus_per_trial", "executor", "allow_noisy", "address", "storage", "blocks"}
        if fixed := sorted(given - free - limits):
            raise InputError(f"{_flag(fixed[0])} cannot change in a resumed run", "leave it out, or start a new run")
        changes = {k: options[k] for k in given - limits} | parse_limits(**{k: options[k] for k in given & limits})
        run = api.resume(again, add_budget=add, progress=view, **changes)
    show_run(run)
    if run.stopped_because == "interrupted":
        click.echo(f"interrupted; go on with: {resume_command(run.folder)}", err=True)
        ctx.exit(130)
    if not run.front:
        click.echo("no feasible trial finished; give it more budget with --resume and --add-budget", err=True)
        ctx.exit(3)


def _simulate(ctx: click.Context, /, **options: Any) -> None:
    """A search over a table. Refuses whatever says how models are trained or measured."""
    from nas.review.progress import progress  # noqa: PLC0415
    from nas.review.table import rich_table  # noqa: PLC0415
    from nas.runs.folder import command_line  # noqa: PLC0415
    from nas.simulate.simulation import simulate  # noqa: PLC0415

    given = {name for name in options if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    if strange := sorted(given - ALSO_SIMULATED - {*SIMULATED}):
        raise InputError(f"{_flag(strange[0])} means nothing with --simulate", "leave it out: nothing is trained or measured")
    for name in ("accuracy", "latency"):
        if name not in given:
            raise InputError(f"--simulate needs --{name} COLUMN", "name a column of the table")
    told = {name: options[name] for name in given - {"simulate", "quiet", "features"}}
    if "features" in given:
        told["features"] = [name.strip() for name in options["features"].split(",")]
    found = simulate(options["simulate"], **told, command=command_line(), progress=progress(quiet=options["quiet"]))
    show(rich_table(found.records, found.summary))
    click.echo("\n".join(found.lines))
    for name in ("pareto.png", "front.csv", "trials.csv", "simulation.json"):
        if (found.folder / name).is_file():
            click.echo(f"  {found.folder / name}")
    if found.stopped_because == "interrupted":
        ctx.exit(130)
    if not found.front:
        ctx.exit(3)


def _flag(name: str) -> str:
    return "--from" if name == "prior" else f"--{name.replace('_', '-')}"
