"""``calibrant evaluate``: model or answer table in, calibration report out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import click

from calibrant.cli.options import (
    PLACE,
    Number,
    choices_option,
    config_option,
    loading_options,
    model_options,
    permutations_option,
    refuse_unused,
    refuse_with_answers,
    seed_option,
    server_options,
)
from calibrant.cli.terminal import terminal_options
from calibrant.progress import note

DEFAULT_FOLDER = "runs/evaluate"
BASE = "base"  # folder inside the run folder: answers of an adapter's base model
# Options that can change an answer table, so that a run folder is of one choice of them.
LOCAL_RESULT = ("dtype", "gguf_file", "quantize")
SERVER_RESULT = ("tokenizer", "top_logprobs")

# Asks questions; the folder keeps what is finished of an interrupted run.
_Ask = Callable[[Any, Path], Any]


@click.command("evaluate")
@click.argument("model", nargs=-1, type=PLACE)
@click.option("--questions", type=PLACE, help="File or Hub id[:split] of labelled questions.")
@click.option(
    "--answers",
    type=PLACE,
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
@choices_option
@model_options
@loading_options
@server_options
@permutations_option
@click.option(
    "--debias",
    type=Number(0, 1, min_open=True),
    metavar="SHARE",
    help="Ask this share of the questions in cyclic orders to estimate how likely each letter is "
    "whatever the option, and divide that out of all answers (PriDe).",
)
@click.option(
    "--show-prompts",
    type=click.IntRange(1),
    metavar="N",
    help="Print the text of N questions with the tokens of the answers in ⟦…⟧, and stop.",
)
@click.option(
    "--output-dir",
    type=PLACE,
    help=f"Run folder.  [default: {DEFAULT_FOLDER} for a model; none is written for --answers]",
)
@seed_option
@config_option
@terminal_options
def command(
    model: tuple[str, ...],
    answers: tuple[str, ...],
    lm_eval_metric: Any,
    output_dir: str | None,
    seed: int,
    show_prompts: int | None,
    **asked: Any,
) -> dict[str, Any] | None:
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
    from calibrant.report.tables import report_table, subject_table
    from calibrant.scoring.processes import ALONE, Processes

    asking = len(model) == 1 and asked["questions"] is not None and not answers
    if not asking and (not answers or (model and asked["questions"] is not None)):
        raise click.UsageError(
            "expected MODEL with --questions, or --answers alone, or with the --questions they "
            "answer"
        )
    if answers:
        refuse_with_answers()
    if asked["debias"] is not None and asked["permutations"] is not None:
        raise click.UsageError("expected --permutations or --debias, not both")
    refuse_unused(served=asked["server"] is not None)
    if show_prompts is not None:
        if not asking:
            raise click.UsageError("--show-prompts goes with MODEL and --questions")
        if asked["server"] is not None and asked["tokenizer"] is None:
            raise click.UsageError("--show-prompts with --server needs the model's --tokenizer")
        _show(show_prompts, seed, model=model[0], **asked)
        return None
    folder: Path | None = None
    processes = Processes.join() if asking else ALONE
    if asked["server"] is not None and processes.world > 1:
        raise click.UsageError(
            "--server needs one process: it sends --concurrency requests at once"
        )
    if asking:
        table, title, folder, texts = _ask(
            output_dir or DEFAULT_FOLDER, seed, processes, model=model[0], **asked
        )
    else:
        sources = (*answers, *model)  # the shell makes several words of samples_*.jsonl
        table, title = _read(sources, lm_eval_metric)
        texts = texts_for(asked["questions"], table, asked["choices"])
        if output_dir is not None and processes.rank == 0:
            settings = {"answers": list(sources), "lm_eval_metric": lm_eval_metric, "seed": seed}
            folder = _keep(table, settings, output_dir)
    if processes.rank > 0:
        return None
    report = evaluate(table, seed=seed, show_progress=True)
    console = Console()
    console.print(report_table(report, title=title).to_rich())
    more, subjects, base = [], None, None
    if len(set(table.tasks)) > 1:
        subjects = subject_table({"this model": table}, seed=seed)
        console.print(subjects.to_rich())
    if folder is not None and asked["compare_base"]:
        base, change = _compared(table, folder, model[0], seed)
        more.append(change)
    for part in more:
        console.print(part.to_rich())
    finding = report.finding()
    console.print(f"{finding}\n", style="bold", markup=False, highlight=False)
    if folder is not None:
        write_evaluation(
            folder, report, title=title, answers=table, questions=texts, base=base,
            subjects=subjects, more=more,
        )  # fmt: skip
        click.echo(f"Written to {folder}: report.html, answers.parquet, report.md, report.json")
    return {
        "finding": finding._asdict(),
        "report": report.to_dict(),
        **({"change": base[1].to_dict()} if base else {}),
        "output_dir": None if folder is None else str(folder),
    }


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
    choices: tuple[str, ...] = (),
    permutations: str | int | None = None,
    debias: float | None = None,
    server: str | None = None,
    compare_base: bool = False,
    **how: Any,
) -> tuple[Any, str, Path, Any]:
    """Answer table of the run folder, made now unless it is there already; and its questions."""
    from calibrant.runs import (
        nothing_left_of_a_failure,
        open_run,
        set_name,
        versions,
        weights_of,
    )

    loaded = _load(questions, limit, skip_invalid, choices, seed, quiet=processes.rank > 0)
    of_result = SERVER_RESULT if server else LOCAL_RESULT
    settings = {
        "model": model,
        "questions": questions,
        "limit": limit,
        "skip_invalid": skip_invalid,
        "choices": list(choices) or None,
        "prompt": prompt.to_json(),
        "permutations": permutations,
        "debias": debias,
        **({"server": server} if server else {}),
        **{name: how.get(name) for name in of_result},
        "seed": seed,
    }
    data = {"n": len(loaded), "fingerprint": loaded.fingerprint}
    folder = Path(output_dir)
    if processes.rank == 0:
        if processes.world > 1:
            note(f"note: {processes.world} processes share the questions")
        weights = {} if server else weights_of(model)
        open_run(folder, _config(settings, data, versions()) | weights)
        if (folder / "answers.parquet").exists():
            note(f"note: {folder} has these answers already: nothing is asked anew")
    network = _Network(model, how)

    def answers(at: Path, *, base: bool = False) -> Any:
        if server:
            ask = _served(server, model, prompt, **how)
        else:
            ask = _loaded(network, prompt, processes, base=base)
        return _answers(ask, loaded, prompt, at, processes, permutations, debias, seed)

    with nothing_left_of_a_failure(folder):
        if compare_base:
            answers(folder / BASE, base=True)
        return answers(folder), f"{model}, {prompt}, {set_name(questions)}", folder, loaded


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


def _compared(table: Any, folder: Path, model: str, seed: int) -> tuple[Any, Any]:
    """Answers of the adapter's base model with the verdict, also kept as JSON; and its table."""
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.verdict import verdict
    from calibrant.report.tables import difference_table

    before = AnswerTable.load(folder / BASE / "answers.parquet")
    judged = verdict(before, table, seed=seed)
    judged.save(folder / BASE / "change.json")
    change = difference_table(judged, name="adapter", before="base model", after=model)
    return (before, judged), change


def _load(
    questions: str, limit: Any, skip_invalid: bool, choices: Any, seed: int, *, quiet: bool = False
) -> Any:
    from calibrant.questions import load_questions

    loaded = load_questions(
        questions, skip_invalid=skip_invalid, limit=limit, seed=seed, choices=choices or None
    )
    for line in () if quiet else (*loaded.warnings, *loaded.skipped):
        note(f"note: {line}")
    return loaded


def texts_for(source: str | None, table: Any, choices: Any = ()) -> Any:
    """Give the questions behind answers that were there already, or None."""
    from calibrant.errors import InputError
    from calibrant.questions import load_questions

    if source is None:
        return None
    questions = load_questions(source, choices=choices or None)
    if not matches(table, questions):
        raise InputError(
            f"{source}: lacks questions that the answers are to, or has other right answers; "
            "expected the file they were asked from"
        )
    return questions


def matches(table: Any, questions: Any) -> bool:
    """Whether a table answers some of these questions: each id is there, with that right answer."""
    right = {q.id: q.answer for q in questions}
    return all(right.get(i) == k for i, k in zip(table.questions, table.labels, strict=True))


def _answers(
    ask: _Ask,
    questions: Any,
    prompt: Any,
    folder: Path,
    processes: Any,
    permutations: str | int | None,
    share: float | None,
    seed: int,
) -> Any:
    """One answer per question, in the folder; those in several orders are kept beside it."""
    from calibrant.permutations import (
        average,
        debias,
        estimation_sample,
        in_every_order,
        letter_prior,
    )
    from calibrant.runs import answers_at

    def permuted(part: Any, orders: str | int) -> Any:
        prompt.check_lists_options()

        def make(partial: Path) -> Any:
            return in_every_order(lambda rows: ask(rows, partial), part, orders, seed)

        return answers_at(folder / "permutations.parquet", make, processes)

    def make(partial: Path) -> Any:
        if permutations is not None:
            return average(permuted(questions, permutations))
        if share is None:
            return ask(questions, partial)
        rows = estimation_sample([len(q.choices) for q in questions], share, seed)
        prior = letter_prior(permuted(questions.select(rows), "cyclic"))
        return debias(ask(questions, partial), prior)

    return answers_at(folder / "answers.parquet", make, processes)


def _loaded(network: _Network, prompt: Any, processes: Any, *, base: bool) -> _Ask:
    """Ask a model loaded here."""

    @cache
    def loaded() -> tuple[Any, Any]:
        return network.get(base=base)

    def ask(questions: Any, partial: Path) -> Any:
        from calibrant.scoring.local import score

        model, tokenizer = loaded()
        return score(
            model, tokenizer, questions, prompt=prompt, partial=partial, processes=processes
        )

    return ask


def _served(
    server: str,
    model: str,
    prompt: Any,
    *,
    tokenizer: str | None,
    api_key_env: str | None,
    top_logprobs: int,
    concurrency: int,
    timeout: float,
    **_: Any,
) -> _Ask:
    """Ask a model behind a server."""
    from calibrant.errors import InputError

    if api_key_env is not None and not os.environ.get(api_key_env):
        raise InputError(
            f"environment variable {api_key_env} is not set; expected the server's key in it"
        )

    def ask(questions: Any, partial: Path) -> Any:
        from calibrant.scoring.server import score_server

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

    return ask


def _show(
    n: int,
    seed: int,
    *,
    model: str,
    questions: str,
    prompt: Any,
    limit: int | None,
    skip_invalid: bool,
    choices: tuple[str, ...],
    gguf_file: str | None,
    tokenizer: str | None,
    trust_remote_code: bool,
    **_: Any,
) -> None:
    """Print the first prompts as the model would get them; no weights are loaded."""
    from calibrant.prompts import encode, resolved, show
    from calibrant.scoring.models import load_tokenizer

    loaded = _load(questions, limit, skip_invalid, choices, seed)
    tokens = load_tokenizer(
        tokenizer or model, gguf_file=gguf_file, trust_remote_code=trust_remote_code
    )
    settled = resolved(prompt, tokens, loaded)
    for encoded in encode(loaded[:n], tokens, settled):
        click.echo(f"--- question {encoded.id}, {settled}, {len(encoded.prefix)} tokens")
        click.echo(show(encoded, tokens) + "\n")


def _read(sources: tuple[str, ...], metric: Any) -> tuple[Any, str]:
    """Read the one table of a run folder, or pool those of several files or tasks; and its name."""
    from calibrant.answers import AnswerTable
    from calibrant.errors import InputError
    from calibrant.runs import one_table, read_answers

    tables: dict[str, AnswerTable] = {}
    for source in sources:
        found = read_answers(source, metric=metric)
        if len(found) > 1 and any("task" not in t.provenance for t in found.values()):
            raise one_table(source, found)
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
