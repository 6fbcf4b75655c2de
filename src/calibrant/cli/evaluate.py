"""``calibrant evaluate``: model or answer table in, calibration report out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from calibrant.cli.options import (
    config_option,
    loading_options,
    model_options,
    refuse_unused,
    seed_option,
    server_options,
)

DEFAULT_FOLDER = "runs/evaluate"
BASE = "base"  # folder inside the run folder: answers of an adapter's base model
# Options that can change an answer table, so that a run folder is of one choice of them.
LOCAL_RESULT = ("dtype", "gguf_file", "quantize")
SERVER_RESULT = ("tokenizer", "top_logprobs")


@click.command("evaluate")
@click.argument("model", nargs=-1)
@click.option("--questions", help="File or Hub id[:split] of labelled questions.")
@click.option(
    "--answers",
    multiple=True,
    help="Answers instead of a model: run folder, answers.parquet, table of probabilities (.csv, "
    ".parquet), or lm-eval samples; more files may follow.",
)
@click.option(
    "--lm-eval-metric",
    type=click.Choice(["acc", "acc_norm", "acc_bytes", "acc_mutual_info"]),
    default="acc",
    show_default=True,
    help="Whose scores to read from lm-eval samples.",
)
@click.option("--limit", type=click.IntRange(1), help="Ask only a random sample of this size.")
@click.option("--skip-invalid", is_flag=True, help="Leave out bad rows, and say which.")
@click.option(
    "--compare-base", is_flag=True, help="Ask an adapter's base model too, and compare the two."
)
@model_options
@loading_options
@server_options
@click.option(
    "--output-dir",
    help=f"Run folder.  [default: {DEFAULT_FOLDER} for a model; none is written for --answers]",
)
@seed_option
@config_option
def command(
    model: tuple[str, ...],
    answers: tuple[str, ...],
    lm_eval_metric: Any,
    output_dir: str | None,
    seed: int,
    **asked: Any,
) -> None:
    """Measure the calibration of MODEL on labelled questions, or of answers that are there.

    MODEL is a Hub id, a folder, or the folder of a PEFT adapter; with --server its name there.

    \b
    calibrant evaluate MODEL --questions test.jsonl
    calibrant evaluate NAME --server http://localhost:8000/v1 --questions test.jsonl
    calibrant evaluate --answers runs/evaluate/answers.parquet
    calibrant evaluate --answers probabilities.csv
    calibrant evaluate --answers samples_*.jsonl
    """
    from rich.console import Console

    from calibrant.diagnosis.report import evaluate
    from calibrant.report.folder import write_evaluation
    from calibrant.report.tables import report_table, task_table
    from calibrant.scoring.processes import Processes

    asking = len(model) == 1 and asked["questions"] is not None and not answers
    if not asking and (not answers or asked["questions"] is not None):
        raise click.UsageError("expected MODEL with --questions, or --answers alone")
    if answers and (asked["limit"] or asked["skip_invalid"] or asked["compare_base"]):
        raise click.UsageError(
            "--limit, --skip-invalid and --compare-base go with --questions, not --answers"
        )
    refuse_unused(served=asked["server"] is not None)
    folder: Path | None = None
    processes = Processes.join()
    if asked["server"] is not None and processes.world > 1:
        raise click.UsageError(
            "--server needs one process: it sends --concurrency requests at once"
        )
    if asking:
        table, title, folder = _ask(
            output_dir or DEFAULT_FOLDER, seed, processes, model=model[0], **asked
        )
    else:
        sources = (*answers, *model)  # the shell makes several words of samples_*.jsonl
        table, title = _read(sources, lm_eval_metric)
        if output_dir is not None and processes.rank == 0:
            settings = {"answers": list(sources), "lm_eval_metric": lm_eval_metric, "seed": seed}
            folder = _keep(table, settings, output_dir)
    if processes.rank > 0:
        return
    report = evaluate(table, seed=seed)
    console = Console()
    console.print(report_table(report, title=title).to_rich())
    more = [task_table(table, seed=seed)] if len(set(table.tasks)) > 1 else []
    if folder is not None and asked["compare_base"]:
        more.append(_compared(table, folder, model[0], seed))
    for part in more:
        console.print(part.to_rich())
    if folder is not None:
        write_evaluation(folder, report, title=title, more=more)
        click.echo(f"Written to {folder}: answers.parquet, report.md, report.json")


def _ask(
    output_dir: str,
    seed: int,
    processes: Any,
    *,
    model: str,
    questions: str,
    limit: int | None,
    skip_invalid: bool,
    prompt: Any,
    server: str | None = None,
    compare_base: bool = False,
    **how: Any,
) -> tuple[Any, str, Path]:
    """Answer table of the run folder, made now unless it is there already."""
    from calibrant.questions import load_questions
    from calibrant.runs import answers_at, open_run, set_name, versions

    loaded = load_questions(questions, skip_invalid=skip_invalid, limit=limit, seed=seed)
    if processes.rank == 0:
        for line in (*loaded.warnings, *loaded.skipped):
            click.echo(f"note: {line}", err=True)
    of_result = SERVER_RESULT if server else LOCAL_RESULT
    settings = {
        "model": model,
        "questions": questions,
        "limit": limit,
        "skip_invalid": skip_invalid,
        "prompt": prompt.to_json(),
        **({"server": server} if server else {}),
        **{name: how.get(name) for name in of_result},
        "seed": seed,
    }
    data = {"n": len(loaded), "fingerprint": loaded.fingerprint}
    folder = Path(output_dir)
    if processes.rank == 0:
        if processes.world > 1:
            click.echo(f"note: {processes.world} processes share the questions", err=True)
        open_run(folder, _config(settings, data, versions()))

    network = _Network(model, how)

    def ask(at: Path, *, base: bool = False) -> Any:
        from calibrant.scoring.local import score

        if server:
            return _ask_server(server, model, loaded, prompt, at, **how)
        return score(
            *network.get(base=base), loaded, prompt=prompt, partial=at, processes=processes
        )

    if compare_base:
        answers_at(folder / BASE / "answers.parquet", partial(ask, base=True), processes)
    table = answers_at(folder / "answers.parquet", ask, processes)
    return table, f"{model}, {prompt}, {set_name(questions)}", folder


class _Network:
    """A model loaded here when it is first asked, an adapter's base model before the adapter."""

    def __init__(self, model: str, how: dict[str, Any]) -> None:
        loading = ("dtype", "device", "gguf_file", "device_map", "quantize", "trust_remote_code")
        self.model = model
        self.how = {name: how[name] for name in loading if name in how}
        self.base: tuple[Any, Any] | None = None

    def get(self, *, base: bool) -> tuple[Any, Any]:
        from calibrant.errors import InputError
        from calibrant.scoring.models import load_model, with_adapter

        if not base and self.base is None:
            return load_model(self.model, **self.how)
        if not (Path(self.model) / "adapter_config.json").is_file():
            raise InputError(f"{self.model}: is no PEFT adapter; expected one for --compare-base")
        if base:
            self.base = load_model(self.model, adapter=False, **self.how)
            return self.base
        network, tokenizer = self.base or (None, None)
        self.base = None  # the adapter is folded into it now
        return with_adapter(network, self.model), tokenizer


def _compared(table: Any, folder: Path, model: str, seed: int) -> Any:
    """Table of the change from the adapter's base model, also kept as JSON."""
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.verdict import verdict
    from calibrant.files import write_text
    from calibrant.report.tables import difference_table

    judged = verdict(AnswerTable.load(folder / BASE / "answers.parquet"), table, seed=seed)
    write_text(folder / BASE / "change.json", json.dumps(judged.to_dict(), indent=1) + "\n")
    return difference_table(judged, name="adapter", before="base model", after=model)


def _ask_server(
    server: str,
    model: str,
    questions: Any,
    prompt: Any,
    partial: Path,
    *,
    tokenizer: str | None,
    api_key_env: str | None,
    top_logprobs: int,
    concurrency: int,
    timeout: float,
    **_: Any,
) -> Any:
    from calibrant.errors import InputError
    from calibrant.scoring.server import score_server

    if api_key_env is not None and not os.environ.get(api_key_env):
        raise InputError(
            f"environment variable {api_key_env} is not set; expected the server's key in it"
        )
    loaded = None
    if tokenizer is not None:
        from calibrant.scoring.models import load_tokenizer

        loaded = load_tokenizer(tokenizer)
    return score_server(
        questions,
        server,
        model,
        prompt=prompt,
        tokenizer=loaded,
        api_key=os.environ[api_key_env] if api_key_env else None,
        top_logprobs=top_logprobs,
        concurrency=concurrency,
        timeout=timeout,
        partial=partial,
    )


def _read(sources: tuple[str, ...], metric: Any) -> tuple[Any, str]:
    """Read the one table of a run folder, or pool those of several files or tasks; and its name."""
    from calibrant.answers import AnswerTable
    from calibrant.errors import InputError
    from calibrant.runs import read_answers

    tables: dict[str, AnswerTable] = {}
    for source in sources:
        found = read_answers(source, metric=metric)
        if len(found) > 1 and any("task" not in t.provenance for t in found.values()):
            raise InputError(
                f"{source}: holds {len(found)} answer tables ({', '.join(found)}); expected one: "
                "give the Parquet file"
            )
        if twice := set(found) & set(tables):
            raise InputError(
                f"{source}: there is another table of {twice.pop()}; expected each once"
            )
        for name, table in found.items():
            tasks = table.tasks if any(table.tasks) else (name,) * len(table)
            tables[name] = replace(table, tasks=tasks) if len(sources) > 1 else table
    table = AnswerTable.pool(list(tables.values()))
    title = next(iter(tables)) if len(tables) == 1 else f"{len(tables)} tasks"
    model = table.provenance.get("model")
    return table, f"{model}, {title}" if model else title


def _keep(table: Any, settings: dict[str, Any], output_dir: str) -> Path:
    """Make a run folder of a table that came without one."""
    from calibrant.runs import open_run, versions

    data = {"n": len(table), "fingerprint": table.provenance.get("data_fingerprint")}
    folder = open_run(output_dir, _config(settings, data, versions()))
    table.save(folder / "answers.parquet")
    return folder


def _config(settings: Any, data: Any, versions: Any) -> dict[str, Any]:
    return {"command": "evaluate", "settings": settings, "data": data, "versions": versions}
