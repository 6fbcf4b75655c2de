"""Answer tables from ``lm-eval --log_samples`` files: no model is loaded.

A row of such a file holds one question: the log-likelihood of every continuation (as text), the
right answer and lm-eval's own metrics. What the right answer *is*, the log does not say: lm-eval
writes an index, a letter and an option's text alike as a string. It is settled by the metrics
beside it: a reading under which the log's own accuracy comes out, question by question, is the one
lm-eval used. No table leaves here that contradicts the log.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable, padded
from calibrant.errors import InputError, shown
from calibrant.files import read_json
from calibrant.questions import LETTERS

Metric = Literal["acc", "acc_norm", "acc_bytes", "acc_mutual_info"]

_FILE_NAME = re.compile(r"samples_(?P<task>.+?)(_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+))?\.jsonl")
_ROUNDED = (
    "lm-eval rounded these log-probabilities to {dtype}, as it does for a model loaded so: near "
    "options become equal. Run it again with --model_args …,softmax_dtype=float32."
)
_UNMATCHED = (
    "The right answers are letters, but the options are texts: lm-eval matched none of them and "
    "logged accuracy 0. The letters were read as positions here."
)


def harness_logs(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of a folder of lm-eval output: of each task the newest, by the date in its name.

    Raises
    ------
    InputError
        If there are none, or of several models.
    """
    newest: dict[str, Path] = {}
    found = sorted(Path(folder).rglob("samples_*.jsonl"), key=lambda path: _parts(path)[1])
    for path in found:
        newest[_parts(path)[0]] = path
    places = sorted({str(path.parent) for path in found})
    if len(places) != 1:
        raise InputError(
            f"{folder}: holds lm-eval samples in {len(places)} folders ({', '.join(places[:5])}); "
            "expected those of one model: give its folder, or the files"
        )
    return sorted(newest.values())


def read_harness_log(path: str | os.PathLike[str], *, metric: Metric = "acc") -> AnswerTable:
    r"""Read the answer table of one task from a file that ``lm-eval --log_samples`` wrote.

    Rows of the filter ``none`` are read. With ``L_k`` the log-likelihood of option k, the scores
    are those whose largest lm-eval's metric of that name calls the answer:

    ===================  ===================================================================
    ``acc``              ``L_k``
    ``acc_norm``         ``L_k / characters of option k``
    ``acc_bytes``        ``L_k / UTF-8 bytes of option k``
    ``acc_mutual_info``  ``L_k − log P(option k | nothing)``, where the task logged both
    ===================  ===================================================================

    Parameters
    ----------
    path : ``samples_TASK_DATE.jsonl``; TASK is read off the name.

    Returns
    -------
    AnswerTable
        ids are ``TASK:doc_id``; ``option_mass`` is NaN. Where lm-eval logged ``metric``, the
        table's ``correct`` equals it in every row. ``provenance["notes"]`` has what to beware of.

    Raises
    ------
    InputError
        If a row cannot be read, is no multiple-choice question with one right option, or no
        reading of the right answers gives lm-eval's own metrics. The message names file and line.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "samples_sums_2026-01-31T12-00-00.000000.jsonl")
    >>> row = {"doc_id": 0, "target": "B", "filter": "none", "acc": 1.0,
    ...        "filtered_resps": [["-2.5", "False"], ["-0.5", "True"]],
    ...        "arguments": {"gen_args_0": {"arg_0": "1 + 1 =", "arg_1": " A"},
    ...                      "gen_args_1": {"arg_0": "1 + 1 =", "arg_1": " B"}}}
    >>> _ = path.write_text(json.dumps(row) + "\n")
    >>> table = read_harness_log(path)
    >>> table.ids, table.logprobs.tolist(), table.labels.tolist()
    (('sums:0',), [[-2.5, -0.5]], [1])
    """
    if metric not in get_args(Metric):
        raise InputError(f"metric {metric!r}, expected one of {', '.join(get_args(Metric))}")
    path = Path(path)
    task, date = _parts(path)
    rows = list(_rows(path))
    run, delimiter = _results(path, task, date)
    scores = [_scores(row, metric, delimiter) for row in rows]
    labels, unmatched = _labels(rows)
    table = AnswerTable(
        ids=tuple(f"{task}:{row.doc_id}" for row in rows),
        logprobs=padded(scores),
        labels=labels,
        n_options=np.array([len(row.likelihoods) for row in rows]),
        option_mass=np.full(len(rows), np.nan),
        tasks=(task,) * len(rows),
        groups=tuple(row.group for row in rows),
        provenance={
            "source": "lm-eval",
            "metric": metric,
            "task": task,
            "notes": [
                *(_ROUNDED.format(dtype=dtype) for dtype in _rounded_to(rows)),
                *([_UNMATCHED] if unmatched else []),
            ],
            **run,
        },
    )
    for row, correct in zip(rows, table.correct, strict=True):
        logged = row.metrics.get(metric, correct)
        if logged != correct and not unmatched:
            raise row.error(
                f"lm-eval logged {metric} {logged:g}, its log-likelihoods give {int(correct)}; "
                "expected an untouched log, beside its results_DATE.json if the task has a "
                "target_delimiter of its own"
            )
    return table


def _parts(path: Path) -> tuple[str, str]:
    """Task and date of a file's name."""
    match = _FILE_NAME.fullmatch(path.name)
    return (match["task"], match["date"] or "") if match else (path.stem, "")


# -- rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """One question of the log, of K options.

    ``unconditional`` is empty, or has one number for each option; ``in_context`` is whether the
    options are in the contexts and one text follows all, as in Winogrande; ``group`` is equal for
    questions with the same prompt and option set; ``metrics`` are lm-eval's own numbers.
    """

    place: str
    doc_id: int
    target: str
    options: tuple[str, ...]
    likelihoods: tuple[float, ...]
    unconditional: tuple[float, ...]
    in_context: bool
    group: str
    metrics: dict[str, float]

    def error(self, message: str) -> InputError:
        return InputError(f"{self.place}: {message}")


def _rows(path: Path) -> Iterator[_Row]:
    filters: set[str] = set()
    lines: dict[int, str] = {}  # doc_id -> where it was read
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                place = f"{path}: line {number}"
                values = _object(line, place)
                filters.add(str(values.get("filter", "none")))
                if values.get("filter", "none") != "none":
                    continue
                row = _row(values, place)
                if row.doc_id in lines:
                    raise row.error(
                        f"doc_id {row.doc_id} is also in {lines[row.doc_id]}; expected each once"
                    )
                lines[row.doc_id] = f"line {number}"
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not lines:
        what = f"only the filter(s) {', '.join(sorted(filters))}" if filters else "no row"
        raise InputError(f"{path}: holds {what}; expected rows of the filter 'none'")


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: invalid JSON ({error}), expected a row of lm-eval") from None
    if not isinstance(values, dict):
        raise InputError(f"{place}: expected a JSON object, a row of lm-eval --log_samples")
    return values


def _is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: half a surrogate pair cannot."""
    return text.encode(errors="ignore").decode() == text


def _row(values: dict[str, Any], place: str) -> _Row:
    needed = ("doc_id", "target", "arguments", "filtered_resps")
    if missing := [name for name in needed if name not in values]:
        raise InputError(
            f"{place}: lacks {', '.join(missing)}; expected a row of lm-eval --log_samples"
        )
    if type(values["doc_id"]) not in (int, str) or not _is_text(str(values["doc_id"])):
        raise InputError(f"{place}: doc_id {shown(values['doc_id'])}, expected a number")
    try:
        given = values["arguments"]
        pairs = [given[f"gen_args_{i}"] for i in range(len(given))]
        contexts = tuple(str(pair["arg_0"]) for pair in pairs)
        options = tuple(pair["arg_1"] for pair in pairs)
        numbers = tuple(float(response[0]) for response in values["filtered_resps"])
        if not all(isinstance(option, str) for option in options):
            raise TypeError("generated text")
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{place}: arguments and filtered_resps are not those of a multiple-choice task "
            f"({error!r}); expected output_type multiple_choice: generated answers carry no "
            "option probabilities"
        ) from None
    if len(numbers) != len(options) or len(options) < 2:
        raise InputError(
            f"{place}: {len(options)} continuations and {len(numbers)} log-likelihoods; expected "
            "one for each of 2 or more options"
        )
    if any(np.isnan(number) or number == np.inf for number in numbers):
        raise InputError(
            f"{place}: filtered_resps: a log-likelihood is NaN or +inf; expected numbers"
        )
    k, half = len(options), len(options) // 2
    # Tasks with acc_mutual_info ask every option a second time, after nothing.
    if k % 2 == 0 and k >= 4 and options[:half] == options[half:] and not any(contexts[half:]):
        k = half if any(contexts[:half]) else k
    metrics = {}
    for name in get_args(Metric):
        if isinstance(value := values.get(name), int | float):
            if not 0 <= value <= 1:
                raise InputError(f"{place}: {name} {shown(value)}, expected a number from 0 to 1")
            metrics[name] = float(value)
    # Contexts may hold many examples; a hash of them is all that is kept.
    asked = sorted(set(contexts[:k]))
    content = json.dumps([asked, sorted(options[:k])]).encode()
    return _Row(
        place=place,
        doc_id=values["doc_id"],
        target=str(values["target"]),
        options=options[:k],
        likelihoods=numbers[:k],
        unconditional=numbers[k:],
        in_context=len(set(options[:k])) == 1 and len(asked) > 1,
        group=hashlib.blake2b(content, digest_size=16).hexdigest(),
        metrics=metrics,
    )


# -- scores -------------------------------------------------------------------------------------


def _scores(row: _Row, metric: Metric, delimiter: str = " ") -> NDArray[np.float64]:
    """Option scores of which ``metric`` takes the largest, (K,) float64."""
    likelihoods: NDArray[np.float64] = np.array(row.likelihoods)
    if metric == "acc":
        return likelihoods
    if metric == "acc_mutual_info":
        if not row.unconditional:
            raise row.error(
                "acc_mutual_info was asked for, but the options' log-likelihoods after an empty "
                "context are not here; expected a task that lists that metric"
            )
        ratio: NDArray[np.float64] = likelihoods - np.array(row.unconditional)
        return ratio
    texts = [option.removeprefix(delimiter) for option in row.options]
    lengths = [len(text.encode() if metric == "acc_bytes" else text) for text in texts]
    if row.in_context or 0 in lengths:
        raise row.error(f"{metric} is not defined: the continuations are not the options' texts")
    per_unit: NDArray[np.float64] = likelihoods / np.array(lengths)
    return per_unit


def _rounded_to(rows: Sequence[_Row]) -> Iterator[str]:
    """Name the 16-bit dtype that every number of the log is a number of, if one is."""
    numbers = np.array([n for row in rows for n in row.likelihoods if np.isfinite(n) and n != 0])
    if len(numbers) < 20:  # few numbers could be round by chance
        return
    single = numbers.astype(np.float32)
    if ((single == numbers) & (single.view(np.uint32) & 0xFFFF == 0)).all():
        yield "bfloat16"
    else:
        with np.errstate(over="ignore"):
            if (numbers.astype(np.float16) == numbers).all():
                yield "float16"


# -- right answers ------------------------------------------------------------------------------


def _labels(rows: Sequence[_Row]) -> tuple[NDArray[np.int64], bool]:
    """Index of the right option of every row, and whether lm-eval itself matched none.

    Of the ways to read the target, the one that gives the log's own accuracies.
    """
    if rows[0].in_context:
        return np.array([_label_in_context(row) for row in rows]), False
    readings: dict[str, list[int]] = {}
    for name, read in (("an index", _as_index), ("an option's text", _as_text)):
        labels = [read(row) for row in rows]
        if None not in labels:
            readings[name] = [label for label in labels if label is not None]
    if not readings:
        return np.array([_as_letter(row) for row in rows]), True
    wrong = {name: _disagreement(rows, labels) for name, labels in readings.items()}
    fitting = {tuple(readings[name]) for name, row in wrong.items() if row is None}
    if len(fitting) == 1:
        return np.array(fitting.pop()), False
    if fitting:
        raise InputError(
            f"{rows[0].place}: target {rows[0].target!r} may be {' or '.join(readings)}, and the "
            "logged metrics do not tell; expected a log with the metric acc"
        )
    name, row = next(iter(wrong.items()))
    row = row or rows[0]
    raise row.error(
        f"target {row.target!r}, read as {name}, does not give the logged metrics {row.metrics}; "
        "expected a task with one right option and lm-eval's own metrics"
    )


def _disagreement(rows: Sequence[_Row], labels: Sequence[int]) -> _Row | None:
    """First row whose logged accuracies are not those of its label."""
    for row, label in zip(rows, labels, strict=True):
        for metric in ("acc", "acc_mutual_info"):  # these need no option lengths
            if metric in row.metrics and (metric == "acc" or row.unconditional):
                right = int(np.argmax(_scores(row, metric))) == label
                if row.metrics[metric] != right:
                    return row
    return None


def _as_index(row: _Row) -> int | None:
    text = row.target
    plain = text.isascii() and text.isdigit() and len(text) < 4
    return int(text) if plain and int(text) < len(row.options) else None


def _as_text(row: _Row) -> int | None:
    texts = [option.strip() for option in row.options]
    target = row.target.strip()
    return texts.index(target) if target in texts else None


def _as_letter(row: _Row) -> int:
    """Read a letter that names an option whose text is something else."""
    target = row.target.strip()
    label = LETTERS.find(target) if len(target) == 1 else -1
    unmatched = not any(row.metrics.values())  # lm-eval counts as wrong what it cannot match
    if not (unmatched and 0 <= label < len(row.options)):
        raise row.error(
            f"target {row.target!r} is neither an index, nor the text of one of the "
            f"{len(row.options)} options, nor its letter; expected one right option"
        )
    return label


def _label_in_context(row: _Row) -> int:
    """Read the right one of two options off lm-eval's verdict on the likelier one."""
    predicted = int(np.argmax(row.likelihoods))
    accuracy = row.metrics.get("acc")
    if len(row.options) != 2 or accuracy not in (0, 1):
        raise row.error(
            "the options are in the context, and the log does not say which is right; expected "
            "two options and the metric acc, or options as continuations"
        )
    return predicted if accuracy else 1 - predicted


# -- the run ------------------------------------------------------------------------------------


def _results(path: Path, task: str, date: str) -> tuple[dict[str, Any], str]:
    """Read the ``results_DATE.json`` beside the samples, if it is there.

    Returns
    -------
    Model and versions, for the provenance; and the ``target_delimiter`` between a context and an
    option's text, one blank unless the task says otherwise.
    """
    beside = path.with_name(f"results_{date}.json")
    if not date or not beside.is_file():
        return {}, " "
    try:
        results = read_json(beside)
        config = results["config"]
        run = {
            "model": results.get("model_name"),
            "model_args": config.get("model_args"),
            "dtype": str(config.get("model_dtype", "")).removeprefix("torch.") or None,
            "n_shot": results.get("n-shot", {}).get(task),
            "task_hash": results.get("task_hashes", {}).get(task),
            "versions": {
                "lm_eval": results.get("lm_eval_version"),
                "transformers": results.get("transformers_version"),
            },
        }
        delimiter = results.get("configs", {}).get(task, {}).get("target_delimiter", " ")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{beside}: cannot be read ({error!r}); expected the results lm-eval wrote with the "
            "samples"
        ) from error
    return run, str(delimiter)
