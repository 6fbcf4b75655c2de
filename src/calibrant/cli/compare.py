"""``calibrant compare``: two runs on the same questions."""

from __future__ import annotations

import json
from typing import Any

import click

from calibrant.cli.options import config_option, seed_option
from calibrant.cli.terminal import terminal_options


@click.command("compare")
@click.argument("before")
@click.argument("after", nargs=-1, required=True)
@click.option(
    "--tolerance",
    default=0.03,
    show_default=True,
    help="conf-ECE the verdict counts as calibrated.",
)
@click.option("--questions", multiple=True, help="Files of the questions, to show mistakes with.")
@click.option("--output-dir", help="Folder for report.html and report.json; none by default.")
@seed_option
@config_option
@terminal_options
def command(
    before: str,
    after: tuple[str, ...],
    tolerance: float,
    questions: tuple[str, ...],
    output_dir: str | None,
    seed: int,
) -> dict[str, Any]:
    """Compare run BEFORE with each run AFTER, paired on the questions they share.

    A run is a run folder, one method's folder in it, or an answers.parquet.

    \b
    calibrant compare runs/base runs/tuned
    calibrant compare runs/restore/before runs/restore/cft
    """
    from rich.console import Console

    from calibrant.cli.evaluate import matches
    from calibrant.diagnosis.report import LARGE, evaluate
    from calibrant.diagnosis.verdict import verdict
    from calibrant.files import write_text
    from calibrant.progress import progress
    from calibrant.questions import load_questions
    from calibrant.report.folder import write_comparison
    from calibrant.report.sections import Measured
    from calibrant.report.tables import difference_table
    from calibrant.runs import open_run, pair_answers, read_answers, versions

    console = Console()
    first = read_answers(before)
    tables, results = [], []
    measured: dict[str, dict[str, Measured]] = {}
    verdicts: dict[str, dict[str, Any]] = {}
    pairs = [
        (run, name, a, b)
        for run in after
        for name, (a, b) in pair_answers(first, read_answers(run)).items()
    ]
    large = sum(len(a) for _, _, a, _ in pairs) >= LARGE
    with progress("comparing", len(pairs), "pairs", show=large) as advance:
        for run, name, a, b in pairs:
            judged = verdict(a, b, tolerance=tolerance, seed=seed)
            tables.append(difference_table(judged, name=name, before=before, after=run))
            results.append({"set": name, "before": before, "after": run, **judged.to_dict()})
            verdicts.setdefault(name, {})[run] = judged
            if output_dir is not None:
                runs = measured.setdefault(name, {})
                for where, answers in ((before, a), (run, b)):
                    if where not in runs:
                        runs[where] = Measured(answers, evaluate(answers, seed=seed))
            advance(1)
    for table in tables:
        console.print(table.to_rich())
    if output_dir is not None:
        settings = {
            "before": before, "after": list(after), "tolerance": tolerance,
            "questions": list(questions), "seed": seed,
        }  # fmt: skip
        folder = open_run(
            output_dir, {"command": "compare", "settings": settings, "versions": versions()}
        )
        write_text(folder / "report.json", json.dumps(results, indent=1) + "\n")
        sources = [load_questions(source) for source in questions]
        texts = {
            name: source
            for name, runs in measured.items()
            for source in sources
            if all(matches(one.answers, source) for one in runs.values())
        }
        write_comparison(
            folder,
            measured,
            verdicts,
            tables,
            title=f"{before} and {', '.join(after)}, compared",
            questions=texts,
            tolerance=tolerance,
        )
        click.echo(f"Written to {folder}: report.html, report.md, report.json")
    return {"comparisons": results, "output_dir": output_dir}
