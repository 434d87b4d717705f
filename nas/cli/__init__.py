"""The command line: arguments to calls, printing, exit codes. No logic, and no heavy import before a command runs."""

from __future__ import annotations

import signal
import sys

import click

from nas.cli.base import Group
from nas.cli.models import latency, space, yolo
from nas.cli.runs import doctor, export, front, status, train
from nas.cli.search import search
from nas.errors import InputError, NasError
from nas.storage import masked

EXIT_CODES = """\b
Exit codes: 0 a front was found; 1 a bug of nas; 2 bad input; 3 nothing feasible;
4 stopped itself; 5 device or cluster unreachable; 130 interrupted, resumable."""


@click.group(cls=Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="yolo-placement-search", prog_name="nas")
def cli() -> None:
    """Neural architecture search over block placements in YOLO detectors."""


for command in (search, status, front, export, train, latency, space, yolo, doctor):
    cli.add_command(command)


def main() -> None:
    """The console script: prints errors in one or two lines and exits with their code."""
    try:
        code = cli.main(standalone_mode=False)  # click returns what a command gave to `ctx.exit`
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as help_asked:
        click.echo(help_asked.format_message())
        sys.exit(0)
    except click.ClickException as error:
        click.echo(f"nas: {masked(error.format_message())}", err=True)  # it may repeat what was typed
        sys.exit(InputError.exit_code)
    except NasError as error:
        click.echo(f"nas: {masked(str(error))}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("nas: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
