"""Tables of option probabilities that other programs wrote, as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrant.answers import ROW_SUM_TOLERANCE, AnswerTable, padded
from calibrant.errors import InputError
from calibrant.questions import LETTERS, first_twin
from calibrant.unpacking import Parquet, open_unpacked

FILE_TYPES = (".csv", ".csv.gz", ".parquet")
_COLUMN = re.compile(r"(?P<stem>p|prob|logprob)_(?P<option>\d+|[A-Z])")
EXPECTED = (
    "a column label, and for each option a column p_0, p_1, … or prob_A, prob_B, … of "
    "probabilities, or logprob_0, … or logprob_A, … of natural log-probabilities"
)


def read_table(path: str | os.PathLike[str]) -> AnswerTable:
    """Read an answer table from a CSV or Parquet file of probabilities.

    Columns, in any order; others are ignored:

    * ``label``: the right option, a 0-based index or a letter.
    * ``p_0``, ``p_1``, … or ``prob_0``, … or ``prob_A``, ``prob_B``, …: probabilities, in [0, 1],
      with sum 1 within 1e-3; or ``logprob_0``, … or ``logprob_A``, …: natural log-probabilities,
      at most 0, which need not be normalised (``-inf`` is probability 0). The names say which:
      numbers are never looked at to tell. Empty cells at the end of a row are fewer options.
    * ``id`` (optional, unique; without it the line or row number) and ``task`` (optional). In CSV
      an apostrophe that keeps a spreadsheet from taking the id for a formula is no part of it.

    Raises
    ------
    InputError
        Naming file, line (CSV, the header is line 1) or row (Parquet, from 1) and column.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "sums.csv")
    >>> _ = path.write_text("id,label,prob_A,prob_B,prob_C\\nq1,B,.2,.8,\\nq2,0,.5,.3,.2\\n")
    >>> table = read_table(path)
    >>> table.labels.tolist(), table.n_options.tolist(), table.confidence.round(6).tolist()
    ([1, 0], [2, 3], [0.8, 0.5])
    """
    path = Path(path)
    unit = "row" if path.suffix == ".parquet" else "line"
    rows = _parquet_rows(path) if unit == "row" else _csv_rows(path)
    try:
        _, header = next(rows)
        columns = _columns(path, header)
        places: dict[str, int] = {}  # id -> where
        scores, labels, tasks = [], [], []
        for number, cells in rows:
            row = _Row(f"{path}: {unit} {number}", columns, cells)
            name = row.text("id") or str(number)
            if unit == "line":
                name = without_guard(name)
            if name in places:
                raise row.error("id", f"{name!r} is also the id of {unit} {places[name]}")
            places[name] = number
            scores.append(row.scores())
            labels.append(row.label(len(scores[-1])))
            tasks.append(row.text("task"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not places:
        raise InputError(f"{path}: has a header and no rows; expected at least one question")
    try:
        return AnswerTable(
            ids=tuple(places),
            logprobs=padded(scores),
            labels=np.array(labels),
            n_options=np.array([len(values) for values in scores]),
            option_mass=np.full(len(scores), np.nan),
            tasks=tuple(tasks),
            groups=tuple(places),
            provenance={"source": path.name, "kind": columns.kind},
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def no_formula(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would take for a formula; numbers stay.

    A formula begins with =, +, - or @, in East Asian spreadsheets also in their full width. Text
    that has such an apostrophe already gets another, so that `without_guard` takes back what was.

    Examples
    --------
    >>> no_formula("=1+1"), no_formula("-0.25"), no_formula("\uff1d1+1"), no_formula("'=1")
    ("'=1+1", '-0.25', "'＝1+1", "''=1")
    """
    bare = text.lstrip("'").lstrip()
    if not bare.startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def without_guard(text: str) -> str:
    """Take off the apostrophe that `no_formula` put there.

    Examples
    --------
    >>> without_guard("'=1+1"), without_guard("'tis"), without_guard("''=1")
    ('=1+1', "'tis", "'=1")
    """
    return text[1:] if text.startswith("'") and no_formula(text[1:]) == text else text


@dataclass(frozen=True)
class _Columns:
    """Where things stand: column names by position, and the option columns in order."""

    at: dict[str, int]
    options: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "log-probabilities" if self.options[0].startswith("logprob") else "probabilities"


def _columns(path: Path, header: Sequence[str]) -> _Columns:
    found: dict[str, dict[str, str]] = {}  # stem -> option -> column
    for name in header:
        if match := _COLUMN.fullmatch(name):
            found.setdefault(match["stem"], {})[match["option"]] = name
    if not any(header):
        raise InputError(f"{path}: is empty, expected {EXPECTED}")
    if (twin := first_twin(filter(None, header))) is not None:
        raise InputError(f"{path}: column {twin!r} occurs twice in the header")
    if len(found) != 1 or "label" not in header:
        what = (
            f"options as {' and '.join(found)}"
            if len(found) > 1
            else f"the columns {_listed(header)}"
        )
        raise InputError(f"{path}: has {what}; expected {EXPECTED}, and only one of these kinds")
    ((stem, columns),) = found.items()
    letters = any(option in LETTERS for option in columns)
    names = list(LETTERS) if letters else [str(k) for k in range(len(columns))]
    expected = [f"{stem}_{name}" for name in names[: len(columns)]]
    there = set(header)
    if missing := [name for name in expected if name not in there]:
        raise InputError(
            f"{path}: column {missing[0]!r} is missing, found {_listed(list(columns.values()))}; "
            "options are counted from 0 or A without a gap"
        )
    if len(expected) < 2:
        raise InputError(f"{path}: has one option column, {expected[0]}; expected two or more")
    return _Columns({name: i for i, name in enumerate(header)}, tuple(expected))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


@dataclass(frozen=True)
class _Row:
    """One row: its cells by column name, read or refused."""

    place: str
    columns: _Columns
    cells: Sequence[Any]

    def error(self, column: str, message: str) -> InputError:
        return InputError(f"{self.place}, column {column}: {message}")

    def cell(self, column: str) -> Any:
        return self.cells[self.columns.at[column]]

    def text(self, column: str) -> str:
        if column not in self.columns.at or self.cell(column) is None:
            return ""
        return str(self.cell(column))

    def scores(self) -> list[float]:
        """Log-probabilities of the row's options."""
        cells = [self.cell(column) for column in self.columns.options]
        while cells and cells[-1] in (None, ""):
            cells.pop()
        if len(cells) < 2:
            raise self.error(self.columns.options[1], "is empty, expected two options or more")
        named = list(zip(self.columns.options, cells, strict=False))
        numbers = [self._number(column, cell) for column, cell in named]
        if self.columns.kind == "log-probabilities":
            return numbers
        if abs(math.fsum(numbers) - 1) > ROW_SUM_TOLERANCE:
            raise InputError(
                f"{self.place}: the probabilities {numbers} have the sum "
                f"{math.fsum(numbers):.6g}; expected 1 within {ROW_SUM_TOLERANCE:g}"
            )
        return [math.log(p) if p > 0 else -math.inf for p in numbers]

    def _number(self, column: str, cell: Any) -> float:
        low, high, kind = 0.0, 1.0, "a probability from 0 to 1"
        if self.columns.kind == "log-probabilities":
            low, high, kind = -math.inf, 0.0, "a log-probability, at most 0 (logits are not)"
        try:
            number = float(cell)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high + ROW_SUM_TOLERANCE:
            raise self.error(column, f"{cell!r}, expected {kind}")
        return number

    def label(self, n_options: int) -> int:
        """Index of the right option."""
        value = self.cell("label")
        if isinstance(value, str):
            letter = value in LETTERS and len(value) == 1
            digits = value.isascii() and value.isdigit() and len(value) < 9
            index = LETTERS.find(value) if letter else int(value) if digits else -1
        else:
            whole = type(value) is int or (isinstance(value, float) and value.is_integer())
            index = int(value) if whole else -1
        if not 0 <= index < n_options:
            last = n_options - 1
            raise self.error(
                "label", f"{value!r}, expected 0 to {last} or A to {LETTERS[min(last, 25)]}"
            )
        return index


_Rows = Iterator[tuple[int, Sequence[Any]]]


def _csv_rows(path: Path) -> _Rows:
    """Header first; then rows that have as many cells, with the line each begins in."""
    with io.TextIOWrapper(open_unpacked(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = [name.strip() for name in next(reader, [])]
        yield 1, header
        start = reader.line_num + 1
        for cells in reader:
            number, start = start, reader.line_num + 1
            if cells and len(cells) != len(header):
                raise InputError(
                    f"{path}: line {number}: {len(cells)} cells, expected {len(header)} as in the "
                    "header"
                )
            if cells:
                yield number, [cell.strip() for cell in cells]


def _parquet_rows(path: Path) -> _Rows:
    """Column names first; then rows of values, numbered from 1."""
    file = Parquet(path)
    names = [n for n in file.names if n in ("id", "label", "task") or _COLUMN.fullmatch(n)]
    yield 0, names or file.names
    for number, row in enumerate(file.rows(names), start=1):
        yield number, [row[name] for name in names]
