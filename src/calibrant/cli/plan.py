"""``calibrant plan``: how many labelled questions it takes."""

from __future__ import annotations

from typing import Any

import click

from calibrant.cli.options import PLACE, SHARE, config_option, seed_option
from calibrant.cli.terminal import terminal_options


@click.command("plan")
@click.option("--ece-change", type=SHARE, help="Fall of conf-ECE to be shown.")
@click.option(
    "--ece-before",
    type=SHARE,
    help="conf-ECE before it.  [default: the change, so that 0 is left]",
)
@click.option("--tolerance", type=SHARE, help="conf-ECE to show a calibrated model to be within.")
@click.option(
    "--answers", type=PLACE, help="Run folder or answers of the model at hand, for its confidences."
)
@click.option(
    "--accuracy", type=SHARE, default=0.6, show_default=True, help="Without --answers: expected."
)
@click.option(
    "--options",
    "n_options",
    type=click.IntRange(2),
    default=4,
    show_default=True,
    help="Without --answers: options of a question.",
)
@click.option(
    "--power", type=SHARE, default=0.8, show_default=True, help="How often it is to be shown."
)
@seed_option
@config_option
@terminal_options
def command(
    ece_change: float | None,
    ece_before: float | None,
    tolerance: float | None,
    answers: str | None,
    accuracy: float,
    n_options: int,
    power: float,
    seed: int,
) -> dict[str, Any]:
    """Tell how many labelled questions show a change of conf-ECE, or that it is within a tolerance.

    By simulation, with the intervals of the verdict.

    \b
    calibrant plan --ece-change .03
    calibrant plan --ece-change .05 --ece-before .15 --answers runs/evaluate
    calibrant plan --tolerance .03 --accuracy .8
    """
    from calibrant.diagnosis.plan import plan
    from calibrant.runs import answers_in_domain

    if ece_change is None and tolerance is None:
        raise click.UsageError("expected --ece-change, --tolerance or both")
    if ece_before is not None and ece_change is None:
        raise click.UsageError("--ece-before goes with --ece-change")
    table = None
    if answers is not None:
        table = answers_in_domain(answers)
    of_model: dict[str, Any] = {
        "answers": table,
        "accuracy": accuracy,
        "n_options": n_options,
        "power": power,
        "seed": seed,
        "show_progress": True,
    }
    found: dict[str, Any] = {}
    if ece_change is not None:
        found["ece_change"] = plan(ece_change=ece_change, ece_before=ece_before, **of_model)
    if tolerance is not None:
        found["tolerance"] = plan(tolerance=tolerance, **of_model)
    for one in found.values():
        click.echo(one)
    return {name: one.to_dict() for name, one in found.items()}
