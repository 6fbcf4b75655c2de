"""``calibrant evaluate``: model or answer table in, calibration report out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrant.cli.options import config_option, model_options, seed_option

DEFAULT_FOLDER = "runs/evaluate"


@click.command("evaluate")
@click.argument("model", required=False)
@click.option("--questions", help="File or Hub id[:split] of labelled questions.")
@click.option("--answers", help="An answers.parquet or run folder instead of a model.")
@click.option("--limit", type=click.IntRange(1), help="Ask only a random sample of this size.")
@click.option("--skip-invalid", is_flag=True, help="Leave out bad rows, and say which.")
@model_options
@click.option(
    "--output-dir",
    help=f"Run folder.  [default: {DEFAULT_FOLDER} for a model; none is written for --answers]",
)
@seed_option
@config_option
def command(answers: str | None, output_dir: str | None, seed: int, **asked: Any) -> None:
    """Measure the calibration of MODEL on labelled questions, or of an answer table.

    MODEL is a Hub id, a folder, or the folder of a PEFT adapter.

    \b
    calibrant evaluate MODEL --questions test.jsonl
    calibrant evaluate --answers runs/evaluate/answers.parquet
    """
    from rich.console import Console

    from calibrant.diagnosis.report import evaluate
    from calibrant.report.folder import write_evaluation
    from calibrant.report.tables import report_table

    given = (asked["model"] is not None, asked["questions"] is not None, answers is not None)
    if given not in ((True, True, False), (False, False, True)):
        raise click.UsageError("expected MODEL with --questions, or --answers alone")
    if answers is not None and (asked["limit"] or asked["skip_invalid"]):
        raise click.UsageError("--limit and --skip-invalid go with --questions, not --answers")
    folder: Path | None = None
    if answers is None:
        table, title, folder = _ask(output_dir or DEFAULT_FOLDER, seed, **asked)
    else:
        table, title = _read(answers)
        if output_dir is not None:
            folder = _keep(table, answers, output_dir, seed)
    report = evaluate(table, seed=seed)
    Console().print(report_table(report, title=title).to_rich())
    if folder is not None:
        write_evaluation(folder, report, title=title)
        click.echo(f"Written to {folder}: answers.parquet, report.md, report.json")


def _ask(
    output_dir: str,
    seed: int,
    *,
    model: str,
    questions: str,
    limit: int | None,
    skip_invalid: bool,
    prompt: Any,
    dtype: str,
    device: str,
    gguf_file: str | None,
) -> tuple[Any, str, Path]:
    """Answer table of the run folder, made now unless it is there already."""
    from calibrant.answers import AnswerTable
    from calibrant.questions import load_questions
    from calibrant.runs import open_run, set_name, versions

    loaded = load_questions(questions, skip_invalid=skip_invalid, limit=limit, seed=seed)
    for line in (*loaded.warnings, *loaded.skipped):
        click.echo(f"note: {line}", err=True)
    settings = {
        "model": model,
        "questions": questions,
        "limit": limit,
        "skip_invalid": skip_invalid,
        "prompt": prompt.to_json(),
        "dtype": dtype,
        "gguf_file": gguf_file,
        "seed": seed,
    }
    data = {"n": len(loaded), "fingerprint": loaded.fingerprint}
    folder = open_run(output_dir, _config(settings, data, versions()))
    title = f"{model}, {prompt}, {set_name(questions)}"
    path = folder / "answers.parquet"
    if path.exists():
        return AnswerTable.load(path), title, folder
    from calibrant.scoring.local import score
    from calibrant.scoring.models import load_model

    network, tokenizer = load_model(model, dtype=dtype, device=device, gguf_file=gguf_file)
    table = score(network, tokenizer, loaded, prompt=prompt)
    table.save(path)
    return table, title, folder


def _read(answers: str) -> tuple[Any, str]:
    """Read the one table of a file or run folder, and its name."""
    from calibrant.errors import InputError
    from calibrant.runs import read_answers

    tables = read_answers(answers)
    if len(tables) > 1:
        raise InputError(
            f"{answers}: holds {len(tables)} answer tables ({', '.join(tables)}); expected one: "
            "give the Parquet file"
        )
    ((title, table),) = tables.items()
    return table, title


def _keep(table: Any, answers: str, output_dir: str, seed: int) -> Path:
    """Make a run folder of a table that came without one."""
    from calibrant.runs import open_run, versions

    settings = {"answers": answers, "seed": seed}
    data = {"n": len(table), "fingerprint": table.provenance.get("data_fingerprint")}
    folder = open_run(output_dir, _config(settings, data, versions()))
    table.save(folder / "answers.parquet")
    return folder


def _config(settings: Any, data: Any, versions: Any) -> dict[str, Any]:
    return {"command": "evaluate", "settings": settings, "data": data, "versions": versions}
