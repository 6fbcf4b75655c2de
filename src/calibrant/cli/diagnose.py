"""``calibrant diagnose``: calibratable or not, with the evidence."""

from __future__ import annotations

from typing import Any

import click

from calibrant.cli.options import PLACE, SHARE, config_option, seed_option
from calibrant.cli.terminal import terminal_options


@click.command("diagnose")
@click.option(
    "--train", type=PLACE, required=True, help="The model's run on questions it was tuned on."
)
@click.option("--test", type=PLACE, required=True, help="Its run on fresh questions like them.")
@click.option(
    "--reference", type=PLACE, help="Another model's run, on questions it was not tuned on."
)
@click.option(
    "--target", type=PLACE, help="Run with the true probabilities of these questions, if known."
)
@click.option(
    "--margin",
    default=0.05,
    show_default=True,
    type=SHARE,
    help="Train accuracy above the critical accuracy that is still called calibratable.",
)
@click.option("--questions", type=PLACE, help="File of the test questions, to show mistakes with.")
@click.option(
    "--output-dir", type=PLACE, help="Folder for report.html and regime.json; none by default."
)
@seed_option
@config_option
@terminal_options
def command(
    train: str,
    test: str,
    reference: str | None,
    target: str | None,
    margin: float,
    questions: str | None,
    output_dir: str | None,
    seed: int,
) -> dict[str, Any]:
    """Decide whether a model can be calibrated at its accuracy, and by what.

    A run is a run folder or a file of answers. Of a run with training questions among its sets,
    --train takes those and --test the test sets of their domain. A reference, say the model before
    tuning, brackets the critical accuracy. In a simulation, as in the run folder of `calibrant
    demo`, --target gives it: the verdict then compares with the truth, and Z tests train accuracy
    against it.

    \b
    calibrant diagnose --train runs/restore/cft --test runs/restore/cft
    calibrant diagnose --train train.parquet --test test.parquet --reference base.parquet
    """
    from rich.console import Console

    from calibrant.cli.evaluate import texts_for
    from calibrant.diagnosis.regime import STEPS, regime
    from calibrant.diagnosis.report import STEPS as EVALUATION
    from calibrant.diagnosis.report import evaluate
    from calibrant.progress import measuring
    from calibrant.report.regime import regime_table, write_regime
    from calibrant.report.sections import Measured
    from calibrant.runs import open_run, versions

    other = None if reference is None else _table(reference, "--reference")
    tuned, fresh = _table(train, "--train"), _table(test, "--test")
    truth = None if target is None else _target(target, (tuned, fresh))
    texts = texts_for(questions, fresh)
    with measuring("diagnosing", STEPS):
        report = regime(tuned, fresh, other, target_probs=truth, margin=margin, seed=seed)
    Console().print(regime_table(report).to_rich())
    if output_dir is not None:
        settings = {
            "train": train, "test": test, "reference": reference, "target": target,
            "margin": margin, "questions": questions, "seed": seed,
        }  # fmt: skip
        config = {"command": "diagnose", "settings": settings, "versions": versions()}
        folder = open_run(output_dir, config)

        given = {"test": fresh, "train": tuned, "reference": other}
        tables = {name: table for name, table in given.items() if table is not None}
        with measuring("measuring", EVALUATION * len(tables)):
            measured = {n: Measured(t, evaluate(t, seed=seed)) for n, t in tables.items()}
        write_regime(folder, report, **measured, questions=texts)
        click.echo(f"Written to {folder}: report.html, report.md, regime.json")
    return {**report.to_dict(), "output_dir": output_dir}


def _table(run: str, option: str) -> Any:
    """Give the one table meant: of several sets the training questions, or those of the domain."""
    from calibrant.runs import TRAIN, answers_in_domain, read_answers

    if option == "--train" and TRAIN in (tables := read_answers(run)):
        return tables[TRAIN]
    return answers_in_domain(run)


def _target(run: str, tables: tuple[Any, Any]) -> Any:
    """True probabilities of each table's questions, found by id among all sets of the run."""
    import numpy as np

    from calibrant.errors import InputError
    from calibrant.runs import read_answers

    known = {
        name: row
        for table in read_answers(run).values()
        for name, row in zip(table.ids, table.probs(), strict=True)
    }
    found = []
    for table in tables:
        if missing := [name for name in table.ids if name not in known]:
            raise InputError(
                f"--target {run}: lacks {len(missing)} questions ({missing[0]!r}, …); expected the "
                "true probabilities of every train and test question"
            )
        target = np.zeros_like(table.logprobs)
        for row, name in zip(target, table.ids, strict=True):
            width = min(len(row), len(known[name]))
            row[:width] = known[name][:width]
        found.append(target)
    return tuple(found)
