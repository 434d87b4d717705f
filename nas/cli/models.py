"""What is asked of single models and spaces: `nas latency`, `nas space`, `nas yolo`."""

from __future__ import annotations

import sys
from typing import Any

import click

from nas.cli.base import Command, Group, LatencyGroup, allow_noisy_option, blocks_option, show


@click.group(cls=LatencyGroup)
def latency() -> None:
    """Measure the latency of a model: `nas latency yolo11n.yaml`, `nas latency RUN --pick knee`."""


@latency.command("measure")
@click.argument("what", metavar="YAML|RUN")
@click.option("--target", help="See the README.  [default: auto; of a run its own]")
@click.option("--imgsz", metavar="SIZE", help="640, or height x width: 384x640.  [default: 640; of a run its own]")
@click.option("--pick", help="Of a run: knee, fastest, best, an architecture id or a trial number.  [default: its winner]")
@allow_noisy_option
@blocks_option
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
@blocks_option
def latency_probes(out: str, **options: Any) -> None:
    """Write models to measure on another device, and the program that does so there with numpy and onnxruntime alone.

    What it writes, jetson.csv say, is a target: nas search --target table:jetson.csv
    """
    from nas import api  # noqa: PLC0415

    for line in api.probes(out, say=click.echo, **options):
        click.echo(line)


@click.group(cls=Group)
def space() -> None:
    """Check and show search spaces."""


@space.command("check")
@click.argument("file", required=False)
@blocks_option
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
@blocks_option
def spaceshow_run(file: str, params: bool, blocks: tuple[str, ...]) -> None:
    """List the slots of a search space (or of a model YAML) and what each may hold."""
    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.review.params_table import params_table  # noqa: PLC0415
    from nas.review.space_table import slots_table  # noqa: PLC0415
    from nas.space.reader import find_space, read_space, whole_skeleton  # noqa: PLC0415
    from nas.space.skeleton import is_model  # noqa: PLC0415

    load_blocks(*blocks)
    shown = whole_skeleton(file) if is_model(file) else read_space(find_space(file))
    if not params:
        show(slots_table(shown))
        return
    from nas.yolo.counts import count  # noqa: PLC0415  (torch)

    show(params_table(shown, count))


@click.command(cls=Command, context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@blocks_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def yolo(arguments: tuple[str, ...], blocks: tuple[str, ...]) -> None:
    """Ultralytics' own command line, with the blocks of nas registered and its models (`nas space show NAME`) known by name."""
    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.space.skeleton import shipped_model  # noqa: PLC0415

    sys.argv = ["yolo", *map(shipped_model, arguments)]  # Ultralytics reads it while it is imported
    from nas.yolo.command import entrypoint  # noqa: PLC0415

    load_blocks(*blocks)
    entrypoint()
