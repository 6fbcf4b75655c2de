"""Files of predictions: what a restored model answers, for whatever comes after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibrant.errors import InputError
from calibrant.files import json_text, replacing, write_text
from calibrant.foreign import no_formula

if TYPE_CHECKING:
    from calibrant.questions import Question

FILE_TYPES = (".csv", ".jsonl", ".parquet")


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuse, before anything is computed, a file that `write_predictions` could not write.

    Raises
    ------
    InputError
        If its type is unknown, or its folder is not there or cannot be written.
    """
    path = Path(path)
    if path.suffix not in FILE_TYPES:
        raise InputError(f"{path}: unknown file type; expected one of {', '.join(FILE_TYPES)}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: {path.parent} is no folder that can be written to")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file")
    return path


def write_predictions(
    path: str | os.PathLike[str],
    questions: Sequence[Question],
    probs: NDArray[np.float64],
    *,
    threshold: float | None = None,
) -> None:
    """Write one row per question, by the file's name as CSV, JSON lines or Parquet.

    Columns: ``id``; ``prediction``, the 0-based index of the most probable option; ``confidence``,
    its probability; ``p_0``, ``p_1``, …, empty beyond the question's own options (JSON lines: one
    list ``probs``); ``answered``, whether the confidence is above the threshold, if there is
    one; ``label``, if every question has an answer: then `calibrant evaluate --answers` reads the
    CSV or Parquet file. In CSV an ``id`` that a spreadsheet would take for a formula (``=1+1``)
    begins with an apostrophe (`calibrant.foreign.no_formula`), which `calibrant.foreign.read_table`
    takes off again; the others keep it as it is.

    Parameters
    ----------
    probs : (N, K) float64, 0 beyond a question's own options.

    Raises
    ------
    InputError
        As `check_output`.
    """
    path = check_output(path)
    confidence = probs.max(axis=1)
    columns: dict[str, list[Any]] = {
        "id": [q.id for q in questions],
        "prediction": probs.argmax(axis=1).tolist(),
        "confidence": confidence.tolist(),
    }
    if threshold is not None:
        columns["answered"] = (confidence > threshold).tolist()
    if all(q.answer is not None for q in questions):
        columns["label"] = [q.answer for q in questions]
    rows = [row[: len(q.choices)] for q, row in zip(questions, probs.tolist(), strict=True)]
    if path.suffix == ".jsonl":
        columns["probs"] = rows
        cells = zip(*columns.values(), strict=True)
        lines = (json_text(dict(zip(columns, row, strict=True)), indent=None) for row in cells)
        write_text(path, "".join(f"{line}\n" for line in lines))
        return
    for k in range(probs.shape[1]):
        columns[f"p_{k}"] = [row[k] if k < len(row) else None for row in rows]
    if path.suffix == ".csv":
        columns["id"] = [no_formula(name) for name in columns["id"]]
    import pyarrow as pa

    table = pa.table(columns)
    with replacing(path) as draft:
        if path.suffix == ".csv":
            from pyarrow import csv

            csv.write_csv(table, draft)
        else:
            from pyarrow import parquet

            parquet.write_table(table, draft)
