"""What is done with a run: `nas front`, `nas export`, `nas train`, `nas doctor`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from nas.cli.base import Command, blocks_option, show, show_run
from nas.errors import InputError

if TYPE_CHECKING:
    from nas.api import Repriced


@click.command(cls=Command)
@click.argument("run", required=False)
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--target", help="Of another device or runtime: what was trained is priced there, nothing is trained.")
@click.option("--max-latency", metavar="TIME", help="With --target: the limit there.  [default: the run's]")
@click.option("--sensitivity", is_flag=True, help="After a search with --imitate: what each block costs in each slot.")
@blocks_option
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
        show(heat_table(found.sensitivity))
    elif form == "table":
        show_run(found)
    else:
        click.echo((found.folder / f"front.{form}").read_text(encoding="utf-8"), nl=False)


@click.command(cls=Command)
@click.argument("run", required=False)
@click.option("--pick", required=True, help="knee, fastest, best, an architecture id or a trial number.")
def export(run: str | None, pick: str) -> None:
    """Write the model YAML of one architecture of RUN, which trains in Ultralytics as it is, and its weights where they
    are kept (of the front and the baseline)."""
    from nas import api  # noqa: PLC0415

    written = api.load(run).export(pick)
    for path in written:
        click.echo(path)
    if len(written) == 1:
        click.echo("its weights are not kept: those of the front and the baseline are", err=True)


@click.command(cls=Command)
@click.argument("run", required=False)
@click.option("--pick", help="knee, fastest, best, an architecture id or a trial number.  [default: the winner]")
@click.option("--epochs", type=int, default=100, show_default=True, help="Of Ultralytics' trainer.")
@click.option("--random-init", is_flag=True, help="Begin with drawn weights, not with those that the run kept.")
@click.option("--device", help="As Ultralytics takes it: cpu, 0, 0,1.")
@blocks_option
def train(run: str | None, **options: Any) -> None:
    """Train an architecture of RUN, or that of a model YAML in a run's folder, in full, through Ultralytics' trainer, on
    from the weights that the search has given it.

    At the end stand its mAP on val and its latency, and the baseline's.
    """
    from nas.finish import finish  # noqa: PLC0415

    for line in finish(run, **options, say=click.echo).lines:
        click.echo(line)


@click.command(cls=Command)
@click.argument("run", required=False)
@click.option("--data", metavar="YAML", help="Look at this dataset too.  [default: that of a RUN that is named]")
@click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster.  [default: RAY_ADDRESS]")
@click.option("--repair", is_flag=True, help="Mend what can be mended without harm, and say so.")
@click.pass_context
def doctor(ctx: click.Context, run: str | None, data: str | None, address: str | None, repair: bool) -> None:
    """Check packages, GPU, targets, Ray, disks, data, and RUN (the latest run where none is named), in about ten seconds.

    Changes nothing without --repair, and never a run that a search holds. Exit code 0: no fault; 2: of data, store or disk;
    5: of a device, a package or a cluster.
    """
    from nas.doctor.examine import examine  # noqa: PLC0415
    from nas.doctor.finding import conclusion  # noqa: PLC0415

    findings = []
    for finding in examine(run, data=data, address=address, repair=repair):
        findings.append(finding)
        for line in finding.lines:
            click.echo(line)
    sentence, code = conclusion(findings)
    click.echo(sentence)
    ctx.exit(code)


@click.command(cls=Command)
@click.argument("run", required=False)
@click.option("--watch", is_flag=True, help="Go on until the search ends, or until Ctrl-C.")
def status(run: str | None, watch: bool) -> None:
    """Say how RUN goes (the latest where none is named), from another terminal or host; the search does not notice."""
    from nas.status import follow  # noqa: PLC0415

    for lines in follow(run, watch=watch):
        click.echo("\n".join(lines))


def _show_repriced(repriced: Repriced, form: str) -> None:
    from nas.review.suggested import suggested_table  # noqa: PLC0415
    from nas.review.table import rich_table  # noqa: PLC0415

    for note in repriced.notes:
        click.echo(f"note: {note}", err=True)
    if form != "table":
        click.echo((repriced.folder / f"front.{form}").read_text(encoding="utf-8"), nl=False)
        return
    show(rich_table(repriced.records, repriced.summary))
    if repriced.suggestions is not None:
        if repriced.suggestions.found:
            show(suggested_table(repriced.suggestions.found, repriced.skeleton))
        click.echo(str(repriced.suggestions))
    for name in ("pareto.html", "pareto.png", "front.csv", "suggested.csv", "winner.yaml", "winner.pt"):
        if (repriced.folder / name).is_file():
            click.echo(f"  {repriced.folder / name}")
