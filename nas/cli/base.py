"""What the commands share: how they understand what is typed, options, and printing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from nas.errors import did_you_mean

if TYPE_CHECKING:
    from nas.api import Run


class Command(click.Command):
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


class Group(click.Group):
    """Commands with "did you mean" for a mistyped one."""

    command_class = Command
    group_class = type

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no command '{args[0]}'; {did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class LatencyGroup(Group):
    """A group whose first argument may be a model or a run: then it means `measure`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["measure", *args]
        return super().parse_args(ctx, args)


blocks_option = click.option(
    "--blocks", multiple=True, metavar="FILE", help="Python file with blocks of your own; its code runs. Repeatable."
)
allow_noisy_option = click.option(
    "--allow-noisy", is_flag=True, help="Take latencies of a machine that is not quiet too, marked and with wider intervals."
)


def show_run(run: Run) -> None:
    from nas.review.record import duration  # noqa: PLC0415
    from nas.review.table import rich_table  # noqa: PLC0415

    show(rich_table(run.records, run.summary))
    summary = run.summary
    took = f"{duration(summary.wall_seconds)}, {duration(summary.device_seconds)} of device time"
    click.echo(f"{summary.tally} in {took}; stopped: {summary.stopped_because}")
    if summary.predictions:
        click.echo(f"predicted latencies (~) are {summary.predictions}")
    for name in ("pareto.html", "pareto.png", "front.csv", "winner.yaml", "winner.pt"):
        if (run.folder / name).is_file():
            click.echo(f"  {run.folder / name}")


def show(table: Any) -> None:
    from rich.console import Console  # noqa: PLC0415

    # A pipe has no width of its own: the table then takes what it needs.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
