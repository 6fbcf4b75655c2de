"""``calibrant compare``: runs, or all methods of a restoration, on the same questions."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrant.cli.options import PLACE, Number, config_option, seed_option
from calibrant.cli.terminal import terminal_options

if TYPE_CHECKING:
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.comparison import Comparison
    from calibrant.questions import Questions
    from calibrant.report.sections import Measured
    from calibrant.report.tables import Table

Tables = dict[str, dict[str, "AnswerTable"]]  # run -> test set -> answers


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=PLACE)
@click.option(
    "--baseline",
    help="Name of the run the others are compared with.  [default: the first, before]",
)
@click.option(
    "--tolerance",
    default=0.03,
    show_default=True,
    type=Number(0, 1),
    help="conf-ECE the verdict counts as calibrated.",
)
@click.option(
    "--questions", multiple=True, type=PLACE, help="Files of the questions, to show mistakes with."
)
@click.option("--output-dir", type=PLACE, help="Folder for reports and figures; none by default.")
@seed_option
@config_option
@terminal_options
def command(
    runs: tuple[str, ...],
    baseline: str | None,
    tolerance: float,
    questions: tuple[str, ...],
    output_dir: str | None,
    seed: int,
) -> dict[str, Any]:
    """Compare the first of RUNS with each of the others, paired on the questions they share.

    A run is a run folder, one method's folder in it, an answers.parquet, or the folder of a
    restoration, which stands for the model before and all its methods.

    \b
    calibrant compare runs/base runs/tuned
    calibrant compare runs/restore
    calibrant compare runs/restore --baseline temperature
    """
    from rich.console import Console

    from calibrant.errors import InputError
    from calibrant.report.comparison import change_table, value_table
    from calibrant.report.folder import DOMAINS
    from calibrant.report.tables import difference_table
    from calibrant.runs import run_folders, set_domains

    folders = run_folders(runs)
    if baseline is None:
        baseline = next(iter(folders))
    if baseline not in folders:
        raise InputError(f"--baseline {baseline!r}, expected one of {', '.join(folders)}")
    domains = set_domains(folders[baseline])
    titles = {s: f"{s}, {DOMAINS[d]}" for s, d in domains.items() if d in DOMAINS}
    tables = _tables(folders, baseline, domains)
    if len(folders) < 2:
        raise InputError(
            f"{runs[0]}: one run alone; expected a second one to compare with it, or the folder "
            "of a restoration"
        )
    texts = _texts(questions, tables)
    found = _compared(tables, baseline, tolerance, seed)
    shown: list[Table] = []
    for s, judged in found.verdicts.items():
        if len(found.runs) == 1:
            (after,) = found.runs
            shown.append(
                difference_table(judged[after], name=titles.get(s, s), before=baseline, after=after)
            )
        else:
            shown.append(value_table(found, s, title=titles.get(s, s)))
            shown.append(change_table(found, s, title=titles.get(s, s)))
    shown += _cost_table(folders)
    console = Console()
    for table in shown:
        console.print(table.to_rich())
    results = [
        {
            "set": s,
            "baseline": baseline,
            "run": run,
            **judged.to_dict(),
            "p_values": {  # JSON has no NaN
                metric: None if math.isnan(p) else p for metric, p in found.p_values[s][run].items()
            },
            "marks": found.marks[s][run],
        }
        for s, by_run in found.verdicts.items()
        for run, judged in by_run.items()
    ]
    if output_dir is not None:
        settings = {
            "runs": list(runs), "baseline": baseline, "tolerance": tolerance,
            "questions": list(questions), "seed": seed,
        }  # fmt: skip
        _write(output_dir, settings, found, tables, texts, shown, results)
    return {"comparisons": results, "output_dir": output_dir}


def _tables(folders: dict[str, str], baseline: str, domains: dict[str, str]) -> Tables:
    """Read every run's test sets, in the restoration's order; those of one domain also pooled."""
    from calibrant.diagnosis.comparison import pooled
    from calibrant.report.folder import DOMAINS
    from calibrant.runs import TRAIN, read_answers

    place = {s: i for i, s in enumerate(domains)}
    tables = {
        name: dict(sorted(read_answers(folder).items(), key=lambda part: place.get(part[0], 0)))
        for name, folder in folders.items()
    }
    if all(len(parts) == 1 for parts in tables.values()):  # one set each: the same one
        name = next(iter(tables[baseline]))
        tables = {run: {name: next(iter(parts.values()))} for run, parts in tables.items()}
    for parts in tables.values():
        if len(parts) > 1:  # else it is what the run is about
            parts.pop(TRAIN, None)
    for key in ("in", "out"):
        chosen = [s for s in tables[baseline] if domains.get(s) == key]
        if len(chosen) < 2:
            continue
        for parts in tables.values():
            if all(s in parts for s in chosen):
                parts[DOMAINS[key]] = pooled({s: parts[s] for s in chosen})
    return tables


def _texts(sources: tuple[str, ...], tables: Tables) -> dict[str, Questions]:
    """Questions of each test set that one of the files holds; every file must be of use."""
    from calibrant.cli.evaluate import matches
    from calibrant.errors import InputError
    from calibrant.questions import load_questions

    texts: dict[str, Questions] = {}
    for source in sources:
        questions = load_questions(source)
        sets = {s for parts in tables.values() for s in parts}
        fits = [
            s
            for s in sets
            if all(matches(parts[s], questions) for parts in tables.values() if s in parts)
        ]
        if not fits:
            raise InputError(
                f"{source}: no test set has all its questions there with the same right answers; "
                "expected the file that one was asked from"
            )
        texts |= dict.fromkeys(fits, questions)
    return texts


def _compared(tables: Tables, baseline: str, tolerance: float, seed: int) -> Comparison:
    from calibrant.diagnosis.comparison import compare
    from calibrant.diagnosis.verdict import STEPS
    from calibrant.progress import measuring

    others = {run: parts for run, parts in tables.items() if run != baseline}
    pairs = sum(s in tables[baseline] for parts in others.values() for s in parts)
    with measuring("comparing", STEPS * pairs):
        return compare(tables[baseline], others, name=baseline, tolerance=tolerance, seed=seed)


def _measured(found: Comparison, tables: Tables, seed: int) -> dict[str, dict[str, Measured]]:
    """Measure every run on every test set."""
    from calibrant.diagnosis.report import STEPS, evaluate
    from calibrant.progress import measuring
    from calibrant.report.sections import Measured

    runs = {s: (found.baseline, *by_run) for s, by_run in found.verdicts.items()}
    with measuring("measuring", STEPS * sum(map(len, runs.values()))):
        return {
            s: {run: Measured(tables[run][s], evaluate(tables[run][s], seed=seed)) for run in there}
            for s, there in runs.items()
        }


def _cost_table(folders: dict[str, str]) -> list[Table]:
    """Give the table of costs, none where no run has kept any."""
    from calibrant.errors import InputError
    from calibrant.files import read_json
    from calibrant.report.folder import cost_table

    costs: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        file = Path(folder) / "cost.json"
        if file.is_file():
            cost = read_json(file)
            if not isinstance(cost, dict) or not all(
                isinstance(value, int | float) and abs(value) <= sys.float_info.max
                for value in cost.values()
            ):
                raise InputError(f"{file}: expected a JSON object of numbers, the costs of a run")
            costs[name] = cost
    return [cost_table(costs)] if costs else []


def _write(
    output_dir: str,
    settings: dict[str, Any],
    found: Comparison,
    tables: Tables,
    texts: dict[str, Questions],
    shown: list[Table],
    results: list[dict[str, Any]],
) -> None:
    """Write the folder of a comparison."""
    from calibrant.files import write_json
    from calibrant.report.comparison import plot_changes, prepare_changes
    from calibrant.report.figures import save_figure
    from calibrant.report.folder import DOMAINS, write_comparison
    from calibrant.runs import open_run, versions

    folder = open_run(
        output_dir, {"command": "compare", "settings": settings, "versions": versions()}
    )
    write_json(folder / "report.json", results)
    write_comparison(
        folder,
        _measured(found, tables, settings["seed"]),
        found.verdicts,
        shown,
        title=f"{found.baseline} and {', '.join(found.runs)}, compared",
        questions=texts,
        tolerance=settings["tolerance"],
    )
    pools = [s for s in found.verdicts if s in DOMAINS.values()]
    drawn = prepare_changes(found, pools or list(found.verdicts)[:4])
    save_figure(plot_changes(drawn), folder / "changes")
    click.echo(f"Written to {folder}: report.html, report.md, report.json, changes.svg/.png")
