"""The command line: one small file per verb."""

from __future__ import annotations

import io
import os
import shlex
import sys
from importlib import import_module
from typing import Any

import click

from calibrant.errors import InputError, NonFiniteLossError, printable
from calibrant.version import __version__

# Verb -> one line for --help; the verb's module is imported only when it is called.
VERBS = {
    "collapse": "Show what alignment did to a model's answers, stage by stage.",
    "compare": "Compare two runs, paired on the same questions.",
    "completion": "Print the script that completes commands in a shell.",
    "demo": "The whole story in a laboratory whose truth is known, in minutes.",
    "diagnose": "Tell whether a model can be calibrated at its accuracy, and by what.",
    "evaluate": "Measure the calibration of a model, or of an answer table.",
    "export": "Write a fine-tuned model as one folder, its adapter merged.",
    "plan": "How many labelled questions it takes to show a calibration error or its change.",
    "predict": "Calibrated probabilities of a restored model for new questions.",
    "restore": "Restore a model's calibration; measure before and after.",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = import_module(f"calibrant.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(VERBS.items()))


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="calibrant")
def cli() -> None:
    """Measure, explain and restore the calibration of preference-aligned language models."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit 0 when done, 1 when it failed, 2 on wrong usage, 130 on Ctrl-C."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing about a user is sent
    given = sys.argv[1:] if arguments is None else arguments
    try:
        "".join(given).encode()
    except UnicodeEncodeError:
        click.echo(f"Error: {shlex.join(given)!a}: not UTF-8, expected text", err=True)
        return 2
    try:
        result: Any = cli.main(arguments, prog_name="calibrant", standalone_mode=False)
    except click.UsageError as error:
        _show(error)
        return 2
    except click.ClickException as error:
        _show(error)
        return 1
    except (InputError, NonFiniteLossError) as error:
        click.echo(printable(f"Error: {error}"), err=True)
        return 1
    except OSError as error:  # a full disk, a name too long, a network that is gone
        place = "" if error.filename is None else f"{error.filename}: "
        click.echo(printable(f"Error: {place}{error.strerror or error}"), err=True)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "peft", "accelerate", "datasets"):
            raise
        click.echo(
            f"Error: this needs {error.name}; install it with pip install 'calibrant[models]'",
            err=True,
        )
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "\nInterrupted. To go on from what is finished, give the same command again:\n"
            f"  {shlex.join(['calibrant', *given])}",
            err=True,
        )
        return 130
    return result if isinstance(result, int) else 0


def _show(error: click.ClickException) -> None:
    """Show an error as click does; what it quotes may hold anything."""
    text = io.StringIO()
    error.show(text)
    click.echo(printable(text.getvalue()), err=True, nl=False)
