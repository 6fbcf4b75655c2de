"""``calibrant predict``: a restored model's probabilities for new questions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from calibrant.cli.options import PLACE, SHARE, choices_option, config_option, seed_option
from calibrant.cli.terminal import terminal_options
from calibrant.progress import note


@click.command("predict")
@click.argument("run", type=PLACE)
@click.option(
    "--questions", type=PLACE, required=True, help="File or Hub id[:split]; answers are not needed."
)
@click.option(
    "--output", type=PLACE, required=True, help="File to write: .csv, .jsonl or .parquet."
)
@click.option(
    "--max-risk",
    type=SHARE,
    help="Mark as answered only what is wrong at most so often, by the run's own test questions.",
)
@click.option(
    "--level",
    type=SHARE,
    default=0.95,
    show_default=True,
    help="How sure --max-risk is to hold.",
)
@click.option("--limit", type=click.IntRange(1), help="Ask only a random sample of this size.")
@click.option("--skip-invalid", is_flag=True, help="Leave out bad rows, and say which.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps …")
@choices_option
@seed_option
@config_option
@terminal_options
def command(
    run: str,
    questions: str,
    output: str,
    max_risk: float | None,
    level: float,
    limit: int | None,
    skip_invalid: bool,
    device: str,
    choices: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """Write the calibrated probabilities of the restored model in RUN for new questions.

    RUN is one method's folder in a run of `calibrant restore`.

    \b
    calibrant predict runs/restore/cft --questions new.jsonl --output predictions.csv
    calibrant predict runs/restore/cft --questions new.jsonl --output p.csv --max-risk .05
    """
    from calibrant.predictions import check_output, write_predictions
    from calibrant.questions import load_questions
    from calibrant.runs import load
    from calibrant.scoring.journal import Journal

    path = check_output(output)
    restored = load(run, device=device)
    threshold = None
    if max_risk is not None:
        threshold = _threshold(restored.held_out(), max_risk, level)
    asked = load_questions(
        questions,
        choices=choices or None,
        labelled=False,
        skip_invalid=skip_invalid,
        limit=limit,
        seed=seed,
    )
    for line in (*asked.warnings, *asked.skipped):
        note(f"note: {line}")
    partial = Path(f"{path}.partial")
    probs = restored.predict_proba(asked, partial=partial)
    write_predictions(path, asked, probs, threshold=threshold)
    Journal(partial).remove()
    found: dict[str, Any] = {"output": str(path), "predictions": len(asked)}
    of_them = ""
    if threshold is not None:
        found["answered"] = int((probs.max(axis=1) > threshold).sum())
        found["threshold"] = threshold if math.isfinite(threshold) else None
        of_them = f", {found['answered']:,} of them answered"
    click.echo(f"Written to {path}: {len(asked):,} predictions{of_them}")
    return found


def _threshold(held_out: Any, max_risk: float, level: float) -> float:
    from calibrant.errors import InputError
    from calibrant.metrics import threshold_at_risk

    found = threshold_at_risk(
        held_out.probs(), held_out.labels, n_options=held_out.n_options, risk=max_risk, level=level
    )
    if found.threshold == math.inf:
        raise InputError(
            f"--max-risk {max_risk:g}: no confidence threshold shows it on the run's {found.n:,} "
            "test questions; expected a larger risk, more test questions or a better model"
        )
    which = "all" if found.threshold == -math.inf else f"confidence above {found.threshold:.4f}"
    note(
        f"{which}: at most {max_risk:.3g} wrong, {level:.3g} sure "
        f"({found.wrong:,} of {found.n_answered:,} wrong among {found.n:,} test questions)"
    )
    return found.threshold
