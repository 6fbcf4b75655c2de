"""``calibrant collapse``: what each stage of alignment did to a model's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from calibrant.cli.options import (
    PLACE,
    config_option,
    model_options,
    output_option,
    permutations_option,
    seed_option,
)
from calibrant.cli.terminal import terminal_options
from calibrant.progress import note

STAGES = "stages"  # folder inside the run folder: one run folder per model asked


@click.command("collapse")
@click.option(
    "--base", type=PLACE, required=True, help="The stage to compare with: MODEL, run or answers."
)
@click.option(
    "--aligned", type=PLACE, multiple=True, required=True, help="A later stage (repeatable)."
)
@click.option(
    "--questions", type=PLACE, help="File or Hub id[:split] of labelled questions, to ask models."
)
@click.option("--limit", type=click.IntRange(1), help="Ask only a random sample of this size.")
@click.option("--skip-invalid", is_flag=True, help="Leave out bad rows, and say which.")
@model_options
@permutations_option
@output_option("runs/collapse")
@seed_option
@config_option
@terminal_options
def command(
    base: str, aligned: tuple[str, ...], output_dir: str, seed: int, **asked: Any
) -> dict[str, Any] | None:
    """Show what alignment did: over-confidence, sharpening, drift and letter bias.

    Each stage is a run folder, a file of answers (Parquet, CSV, lm-eval samples), or a MODEL, which
    needs --questions. Stages are compared on the questions they share with the base. Asked with
    --permutations cyclic, letters are told from options: letter prior, flip rate.

    \b
    calibrant collapse --base runs/base --aligned runs/sft --aligned runs/dpo
    calibrant collapse --base BASE_MODEL --aligned DPO_MODEL --questions test.jsonl
    calibrant collapse --base A --aligned B --questions test.jsonl --permutations cyclic
    """
    from rich.console import Console

    from calibrant.cli.evaluate import _read
    from calibrant.diagnosis.collapse import STEPS, collapse
    from calibrant.progress import measuring
    from calibrant.report.collapse import (
        collapse_content,
        collapse_table,
        in_words,
        letter_table,
        write_collapse,
    )
    from calibrant.runs import holds_answers, nothing_left_of_a_failure, open_run, versions
    from calibrant.scoring.processes import ALONE, Processes

    sources = (base, *aligned)
    models = [source for source in sources if not holds_answers(source)]
    if models and asked["questions"] is None:
        raise click.UsageError(
            f"{models[0]}: holds no answers; to ask it as a model, give --questions"
        )
    names = _names(sources)
    settings = {"base": base, "aligned": list(aligned), "seed": seed, **_plain(asked)}
    config = {"command": "collapse", "settings": settings, "versions": versions()}
    folder, processes = Path(output_dir), Processes.join() if models else ALONE
    if processes.rank == 0:
        open_run(folder, config)
    with nothing_left_of_a_failure(folder):
        tables = {
            name: _asked(source, folder / STAGES / _slug(name), seed, processes, asked)
            if source in models
            else _in_every_order(Path(source), _read((source,), "acc")[0])
            for name, source in zip(names, sources, strict=True)
        }
        if processes.rank > 0:
            return None
        first = tables[names[0]]
        with measuring("measuring", STEPS * len(tables)):
            reports = {
                name: collapse(None if name == names[0] else first, table, seed=seed)
                for name, table in tables.items()
            }
    console = Console()
    console.print(collapse_table(reports).to_rich())
    console.print(letter_table(reports).to_rich())
    for name in names[1:]:
        label, reason = in_words(reports[names[0]], reports[name])
        console.print(f"{name}: {label}: {reason}\n", style="bold", markup=False, highlight=False)
    write_collapse(folder, tables=tables, reports=reports)
    click.echo(f"Written to {folder}: report.html, report.md, collapse.json, collapse.png")
    return {**collapse_content(reports), "output_dir": str(folder)}


def _names(sources: Sequence[str]) -> list[str]:
    """Short names of the stages: the last part of the path, or all of it where that is not unique.

    A file that every run folder has is called by its folder.
    """
    from calibrant.errors import InputError

    paths = [Path(source) for source in sources]
    short = [
        p.parent.name if p.name == "answers.parquet" else p.stem if p.is_file() else p.name
        for p in paths
    ]
    counts = Counter(short)
    names = [a if a and counts[a] == 1 else b for a, b in zip(short, sources, strict=True)]
    if len(set(map(_slug, names))) < len(names):
        raise InputError(f"stages {', '.join(names)}: expected each once, with different names")
    return names


def _slug(name: str) -> str:
    """Name of a stage as one of a folder, all of it."""
    from calibrant.runs import set_name

    return set_name(name.replace("/", "-"))


def _plain(asked: dict[str, Any]) -> dict[str, Any]:
    """Give the options as config.yaml can hold them; the device changes nothing in the result."""
    plain = {name: value for name, value in asked.items() if name != "device"}
    return {**plain, "prompt": asked["prompt"].to_json()}


def _asked(source: str, folder: Path, seed: int, processes: Any, asked: dict[str, Any]) -> Any:
    """Answers of a model, asked for now unless they are in the folder."""
    from calibrant.cli.evaluate import _ask

    if processes.rank == 0:
        note(f"scoring {source}")
    return _in_every_order(folder, _ask(str(folder), seed, processes, model=source, **asked)[0])


def _in_every_order(folder: Path, answers: Any) -> Any:
    """Give the rows behind averaged answers, where each question was asked in several orders."""
    from calibrant.answers import AnswerTable
    from calibrant.permutations import one_row_each

    path = folder / "permutations.parquet"
    if not path.is_file():
        return answers
    table = AnswerTable.load(path)
    # Of --debias only a sample of the questions was asked in several orders.
    return table if len(one_row_each(table)) == len(answers) else answers
