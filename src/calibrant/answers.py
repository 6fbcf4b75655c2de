"""The answer table: what a model said about each question, and all that later steps need.

Everything that needs a model produces an `AnswerTable`; metrics, diagnosis, post-hoc calibration
and reports need only the table.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrant.errors import InputError
from calibrant.files import json_text, replacing
from calibrant.questions import first_twin
from calibrant.unpacking import Parquet

FORMAT_VERSION = 2  # a table without orders is written as version 1, which it is
_METADATA_KEY = b"calibrant"
_MOST_CELLS = 1 << 28  # questions times options of the longest one, 2 GB of scores
ROW_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class AnswerTable:
    r"""Option log-probabilities of N questions with up to K options each.

    The model's probability of option k of question i is
    ``p[i, k] = softmax(logprobs[i, :n_options[i]])[k]``: rows need not be normalised.

    Attributes
    ----------
    ids : tuple of N str, unique.
    logprobs : (N, K) float64, K the largest ``n_options``. Natural-log scores of the options.
        Columns from ``n_options[i]`` on are padding and hold ``-inf``; a real option holds
        ``-inf`` where its probability is 0.
    labels : (N,) int64. Index of the right option, ``0 <= labels[i] < n_options[i]``.
    n_options : (N,) int64, at least 2.
    option_mass : (N,) float64 in [0, 1]. Vocabulary probability on the options' tokens together
        (letter prompts); NaN where it has no meaning (cloze prompts, foreign tables).
    tasks : tuple of N str. Data set or subject of each question, "" if none.
    groups : tuple of N str. Equal for exact duplicates of one question (text and option set); the
        bootstrap resamples groups.
    provenance : JSON-able dict. Model, prompt format, data fingerprint, versions.
    orders : (N, K) int64, or None where every question was asked once, its options in their own
        order. ``orders[i, j]`` is the option shown at position j (letter j) in row i, -1 for
        padding. ``logprobs`` and ``labels`` stay in the question's own order. Rows of one question
        have the ids ``q#0``, ``q#1``, …; `calibrant.permutations` aggregates them.

    Raises
    ------
    InputError
        If shapes disagree, ids repeat, a label is out of range, a score is NaN or ``+inf``, or
        a row has no finite score. The message names the first bad row.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.7, 0.3], [0.2, 0.8]], [0, 0])
    >>> table.confidence.tolist(), table.correct.tolist()
    ([0.7, 0.8], [True, False])
    """

    ids: tuple[str, ...]
    logprobs: NDArray[np.float64]
    labels: NDArray[np.int64]
    n_options: NDArray[np.int64]
    option_mass: NDArray[np.float64]
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    orders: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        scores = np.array(self.logprobs, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
            raise InputError(
                f"answer table: logprobs have shape {scores.shape}, expected (N, K) with N >= 1 "
                "questions and K >= 2 options"
            )
        n, width = scores.shape
        for name in ("ids", "labels", "n_options", "option_mass", "tasks", "groups"):
            if len(getattr(self, name)) != n:
                raise InputError(
                    f"answer table: {name} has {len(getattr(self, name))} entries, expected {n}, "
                    "one per row of logprobs"
                )
        labels = _whole_numbers(self.labels, "labels")
        n_options = _whole_numbers(self.n_options, "n_options")
        mass = np.array(self.option_mass, dtype=np.float64)
        ids = tuple(self.ids)
        self._refuse_first(
            (n_options < 2) | (n_options > width), "n_options", n_options, f"2 to {width}"
        )
        self._refuse_first(
            (labels < 0) | (labels >= n_options), "label", labels, "0 to n_options - 1"
        )
        width = int(n_options.max())
        scores = scores[:, :width]
        padding = np.arange(width)[None, :] >= n_options[:, None]  # (N, K)
        scores[padding] = -np.inf
        bad = (np.isnan(scores) | (scores == np.inf)).any(axis=1)
        self._refuse_first(bad, "logprobs", scores, "numbers below +inf")
        self._refuse_first(
            ~np.isfinite(scores).any(axis=1), "logprobs", scores, "at least one finite score"
        )
        bad_mass = (mass < 0) | (mass > 1 + 1e-6)
        self._refuse_first(bad_mass, "option_mass", mass, "0 to 1, or NaN where unknown")
        if (twice := first_twin(ids)) is not None:
            raise InputError(f"answer table: id {twice!r} occurs more than once; expected unique")
        orders = None if self.orders is None else _checked_orders(self.orders, ids, n_options)
        for array in (scores, labels, n_options, mass, orders):
            if array is not None:
                array.setflags(write=False)
        set_ = object.__setattr__
        set_(self, "ids", ids)
        set_(self, "logprobs", scores)
        set_(self, "labels", labels)
        set_(self, "n_options", n_options)
        set_(self, "option_mass", mass)
        set_(self, "tasks", tuple(self.tasks))
        set_(self, "groups", tuple(self.groups))
        set_(self, "orders", orders)

    def _refuse_first(self, bad: Any, what: str, values: Any, expected: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"answer table: row {row} (id {self.ids[row]!r}): {what} is "
                f"{np.asarray(values)[row].tolist()}, expected {expected}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        low, high = int(self.n_options.min()), int(self.n_options.max())
        options = f"{low}" if low == high else f"{low}-{high}"
        return f"<AnswerTable: {len(self)} questions, {options} options>"

    # -- what the model believes ------------------------------------------------------------

    def probs(self) -> NDArray[np.float64]:
        """Option probabilities, (N, K) float64; rows sum to 1, padding columns are exactly 0."""
        shifted = self.logprobs - self.logprobs.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        probs: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return probs

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Probability of the predicted option, (N,) float64."""
        top: NDArray[np.float64] = self.probs().max(axis=1)
        return top

    @property
    def predictions(self) -> NDArray[np.int64]:
        """Index of the most probable option, the first on ties, (N,) int64."""
        top: NDArray[np.int64] = self.logprobs.argmax(axis=1)
        return top

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the predicted option is the right one, (N,) bool."""
        hits: NDArray[np.bool_] = self.predictions == self.labels
        return hits

    @property
    def questions(self) -> tuple[str, ...]:
        """Id of the question each row asks, N str: the row's own id, without ``#p`` if permuted."""
        if self.orders is None:
            return self.ids
        return tuple(name.rpartition("#")[0] for name in self.ids)

    def refuse_permutations(self) -> None:
        """Raise `InputError` if several rows ask one question: metrics count questions, not rows.

        Examples
        --------
        >>> table = AnswerTable.from_probs([[0.7, 0.3], [0.6, 0.4]], [0, 0], ids=["q#0", "q#1"])
        >>> replace(table, orders=[[0, 1], [1, 0]]).refuse_permutations()
        Traceback (most recent call last):
        ...
        calibrant.errors.InputError: answer table: 2 rows ask 1 question with its options in
        different orders; expected one row per question: aggregate them with
        calibrant.permutations.average(table)
        """
        n = len(set(self.questions))
        if n < len(self):
            raise InputError(
                f"answer table: {len(self)} rows ask {n} question{'s' * (n > 1)} with "
                f"{'their' if n > 1 else 'its'} options in different orders; expected one row per "
                "question: aggregate them with calibrant.permutations.average(table)"
            )

    # -- making tables ----------------------------------------------------------------------

    @classmethod
    def from_probs(
        cls,
        probs: ArrayLike,
        labels: ArrayLike,
        *,
        ids: Sequence[str] | None = None,
        n_options: ArrayLike | None = None,
        tasks: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> AnswerTable:
        """Build a table from probabilities that come from anywhere.

        Parameters
        ----------
        probs : (N, K) floats in [0, 1], rows sum to 1 within 1e-3; columns from ``n_options[i]``
            on must be 0.
        labels : (N,) integers.
        ids, tasks, groups : N strings each; by default row numbers, "", and one group per row.

        Raises
        ------
        InputError
            On NaN, a negative number, a bad row sum or a bad label, naming the first bad row.
        """
        p = np.asarray(probs, dtype=np.float64)
        if p.ndim != 2:
            raise InputError(f"probabilities have shape {p.shape}, expected (N, K)")
        n, width = p.shape
        options = np.full(n, width) if n_options is None else _whole_numbers(n_options, "n_options")
        wrong = ~((p >= 0) & (p <= 1 + ROW_SUM_TOLERANCE)).all(axis=1)  # also catches NaN
        wrong |= ~(np.abs(p.sum(axis=1) - 1) <= ROW_SUM_TOLERANCE)
        if len(options) == n:
            wrong |= ((np.arange(width)[None, :] >= options[:, None]) & (p != 0)).any(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"row {row}: probabilities {p[row].tolist()}, expected numbers in [0, 1] that sum "
                "to 1 over the question's options and are 0 beyond them (logits are not accepted "
                "here)"
            )
        names = tuple(ids) if ids is not None else tuple(str(i) for i in range(n))
        with np.errstate(divide="ignore"):
            logprobs = np.log(p)
        return cls(
            ids=names,
            logprobs=logprobs,
            labels=_whole_numbers(labels, "labels"),
            n_options=options,
            option_mass=np.full(n, np.nan),
            tasks=tuple(tasks) if tasks is not None else ("",) * n,
            groups=tuple(groups) if groups is not None else names,
            provenance=provenance or {},
        )

    def with_logprobs(self, logprobs: ArrayLike, **provenance: Any) -> AnswerTable:
        """Build the same questions with other option scores, as a calibrator gives them."""
        return replace(
            self,
            logprobs=np.asarray(logprobs, dtype=np.float64),
            provenance={**self.provenance, **provenance},
        )

    def select(self, rows: ArrayLike) -> AnswerTable:
        """Build the table of some rows, by index or boolean mask, in the order given."""
        index = np.asarray(rows)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        return AnswerTable(
            ids=tuple(self.ids[i] for i in index),
            logprobs=self.logprobs[index],
            labels=self.labels[index],
            n_options=self.n_options[index],
            option_mass=self.option_mass[index],
            tasks=tuple(self.tasks[i] for i in index),
            groups=tuple(self.groups[i] for i in index),
            provenance=self.provenance,
            orders=None if self.orders is None else self.orders[index],
        )

    @classmethod
    def pool(cls, tables: Sequence[AnswerTable]) -> AnswerTable:
        """Put the questions of several tables into one, in the order given.

        The provenance keeps what all tables agree on, and every note once.

        Raises
        ------
        InputError
            If there is no table, a question id is in two of them, or one holds permutations.

        Examples
        --------
        >>> a = AnswerTable.from_probs([[0.7, 0.3]], [0], ids=["q1"], tasks=["law"])
        >>> b = AnswerTable.from_probs([[0.2, 0.3, 0.5]], [2], ids=["q2"], tasks=["art"])
        >>> table = AnswerTable.pool([a, b])
        >>> table.tasks, table.n_options.tolist()
        (('law', 'art'), [2, 3])
        """
        if not tables:
            raise InputError("no answer tables to pool; expected at least one")
        for table in tables:
            table.refuse_permutations()
        names = [name for table in tables for name in table.ids]
        if len(set(names)) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise InputError(
                f"question id {twice!r} is in two answer tables; expected ids that differ over all "
                "tables to be pooled (in a file without ids a row's line is its id)"
            )
        width = max(table.logprobs.shape[1] for table in tables)
        padding = [(0, 0), (0, 0)]
        scores = []
        for table in tables:
            padding[1] = (0, width - table.logprobs.shape[1])
            scores.append(np.pad(table.logprobs, padding, constant_values=-np.inf))
        first, *others = [table.provenance for table in tables]
        missing = object()
        shared = {
            key: value
            for key, value in first.items()
            if all(other.get(key, missing) == value for other in others)
        }
        notes = dict.fromkeys(note for t in tables for note in t.provenance.get("notes", ()))
        return cls(
            ids=tuple(names),
            logprobs=np.concatenate(scores),
            labels=np.concatenate([table.labels for table in tables]),
            n_options=np.concatenate([table.n_options for table in tables]),
            option_mass=np.concatenate([table.option_mass for table in tables]),
            tasks=tuple(name for table in tables for name in table.tasks),
            groups=tuple(name for table in tables for name in table.groups),
            provenance=shared | ({"notes": list(notes)} if notes else {}),
        )

    def align(self, other: AnswerTable) -> tuple[AnswerTable, AnswerTable]:
        """Cut both tables to the questions they share, in this table's order.

        Raises
        ------
        InputError
            If they share none, or a shared id has another label or number of options.

        Examples
        --------
        >>> a = AnswerTable.from_probs([[0.7, 0.3], [0.2, 0.8]], [0, 1], ids=["q1", "q2"])
        >>> b = AnswerTable.from_probs([[0.6, 0.4], [0.5, 0.5]], [1, 0], ids=["q2", "q3"])
        >>> [table.ids for table in a.align(b)]
        [('q2',), ('q2',)]
        """
        where = {name: i for i, name in enumerate(other.ids)}
        mine = [i for i, name in enumerate(self.ids) if name in where]
        if not mine:
            raise InputError(
                f"the two answer tables share no question id (first ids {self.ids[0]!r} and "
                f"{other.ids[0]!r}); expected tables of the same questions"
            )
        a, b = self.select(mine), other.select([where[self.ids[i]] for i in mine])
        differ = np.flatnonzero((a.labels != b.labels) | (a.n_options != b.n_options))
        if differ.size:
            row = int(differ[0])
            raise InputError(
                f"question {a.ids[row]!r} has label {a.labels[row]} of {a.n_options[row]} options "
                f"in one table and {b.labels[row]} of {b.n_options[row]} in the other; expected "
                "the same question"
            )
        return a, b

    # -- files ------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write Parquet: one row per question, provenance in the file's metadata.

        The file appears complete or not at all.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        mass = pa.array(self.option_mass, mask=np.isnan(self.option_mass))
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "option_logprobs": _lists(self.logprobs, self.n_options),
            "option_mass": mass,
            "label": pa.array(self.labels, pa.int64()),
            "task": pa.array(self.tasks, pa.string()),
            "group": pa.array(self.groups, pa.string()),
        }
        if self.orders is not None:
            columns["order"] = _lists(self.orders, self.n_options)
        table = pa.table(columns)
        # An older calibrant would take permuted rows for questions: it must refuse them.
        version = 1 if self.orders is None else FORMAT_VERSION
        notes = {"format_version": version, "provenance": self.provenance}
        table = table.replace_schema_metadata(
            {_METADATA_KEY: json_text(notes, indent=None).encode()}
        )
        with replacing(path) as draft:
            pq.write_table(table, draft)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AnswerTable:
        """Read a table that `save` wrote.

        Raises
        ------
        InputError
            If the file is not such a table, or a newer version of calibrant wrote it.
        """
        try:
            file = Parquet(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file, expected an answer table") from None
        provenance = _provenance_of(path, file.metadata.get(_METADATA_KEY))
        expected = _expected_columns()
        table = file.table([name for name in file.names if name in expected])
        _check_columns(path, table)
        try:
            return cls._of_arrow(table, provenance)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def _of_arrow(cls, table: Any, provenance: dict[str, Any]) -> AnswerTable:
        import pyarrow as pa

        logprobs, n_options = _matrix(table.column("option_logprobs"), -np.inf)
        orders = None
        if "order" in table.column_names:
            orders = _matrix(table.column("order"), -1)[0].astype(np.int64)
        mass = table.column("option_mass").cast(pa.float64())
        return cls(
            ids=tuple(table.column("id").to_pylist()),
            logprobs=logprobs,
            labels=table.column("label").to_numpy(),
            n_options=n_options,
            option_mass=mass.to_numpy(),  # null becomes NaN
            tasks=tuple(table.column("task").to_pylist()),
            groups=tuple(table.column("group").to_pylist()),
            provenance=provenance,
            orders=orders,
        )


def _provenance_of(path: str | os.PathLike[str], metadata: bytes | None) -> dict[str, Any]:
    """Provenance in a file's metadata, if this version can read the file."""
    if metadata is None:
        raise InputError(f"{path}: Parquet, but not an answer table written by calibrant")
    try:
        notes = json.loads(metadata)
        version, provenance = notes["format_version"], notes["provenance"]
        usable = type(version) is int and version >= 1 and isinstance(provenance, dict)
    except (ValueError, RecursionError, TypeError, KeyError):
        usable, version = False, 1
    if type(version) is int and version > FORMAT_VERSION:
        raise InputError(
            f"{path}: answer table format {version}, this version reads up to {FORMAT_VERSION}; "
            "upgrade calibrant"
        )
    if not usable:
        raise InputError(
            f"{path}: its metadata are damaged; expected an answer table written by calibrant"
        )
    return dict(provenance)


def _expected_columns() -> dict[str, tuple[str, Callable[[Any], bool]]]:
    """Columns that `save` writes: what they hold, and whether an Arrow type is that."""
    from pyarrow import types

    def is_list(of: Any) -> Callable[[Any], bool]:
        return lambda kind: types.is_list(kind) and of(kind.value_type)

    return {
        "id": ("strings", types.is_string),
        "option_logprobs": ("lists of decimal numbers", is_list(types.is_floating)),
        "option_mass": ("decimal numbers", types.is_floating),
        "label": ("whole numbers", types.is_integer),
        "task": ("strings", types.is_string),
        "group": ("strings", types.is_string),
        "order": ("lists of whole numbers", is_list(types.is_integer)),
    }


def _check_columns(path: str | os.PathLike[str], table: Any) -> None:
    """Refuse a table whose columns are not of the types that `save` writes."""
    expected = _expected_columns()
    if missing := set(expected) - {"order"} - set(table.column_names):
        raise InputError(f"{path}: answer table lacks the column(s) {sorted(missing)}")
    for name, (what, fits) in expected.items():
        if name not in table.column_names:
            continue
        column = table.column(name)
        nulls = column.null_count and name != "option_mass"
        if table.column_names.count(name) > 1 or nulls or not fits(column.type):
            found = f"{column.type} with {column.null_count} missing"
            raise InputError(f"{path}: column {name} holds {found}, expected {what}")


def _checked_orders(
    values: Any, ids: tuple[str, ...], n_options: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Orders cut to (N, K), each row a permutation of its question's options and then -1."""
    n, width = len(ids), int(n_options.max())
    orders = np.array(values)
    if orders.ndim != 2 or len(orders) != n or orders.shape[1] < width or orders.dtype.kind != "i":
        raise InputError(
            f"answer table: orders have shape {orders.shape} of {orders.dtype}, expected "
            f"({n}, {width}) integers"
        )
    orders = orders[:, :width].astype(np.int64)
    position = np.arange(width)[None, :]
    orders[position >= n_options[:, None]] = -1
    expected = np.where(position < n_options[:, None], position, width)
    found = np.sort(np.where(orders < 0, width, orders), axis=1)
    bad = (found != expected).any(axis=1)
    bad |= np.array(["#" not in name for name in ids])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"answer table: row {row} (id {ids[row]!r}): order is {orders[row].tolist()}, expected "
            f"a permutation of 0 to {n_options[row] - 1}, and an id like 'question#0'"
        )
    return orders


def is_answer_table(path: str | os.PathLike[str]) -> bool:
    """Whether `AnswerTable.save` wrote this Parquet file, by its metadata.

    Raises
    ------
    InputError
        If it is no Parquet file.
    """
    return _METADATA_KEY in Parquet(path).metadata


def _lists(values: NDArray[Any], lengths: NDArray[np.int64]) -> Any:
    """Arrow column of each row's first ``lengths[i]`` values."""
    import pyarrow as pa

    held = np.arange(values.shape[1])[None, :] < lengths[:, None]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values[held]))


def _matrix(column: Any, fill: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Undo `_lists`: values (N, K) and lengths (N,)."""
    lists = column.combine_chunks()
    lengths: NDArray[np.int64] = lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)
    values = _cells(len(lengths), max(2, lengths.max(initial=0)), fill)
    values[np.arange(values.shape[1])[None, :] < lengths[:, None]] = lists.flatten().to_numpy(
        zero_copy_only=False
    )
    return values, lengths


def padded(rows: Sequence[Sequence[float] | NDArray[np.float64]]) -> NDArray[np.float64]:
    """Make one (N, K) array of rows of scores, -inf beyond a row's own.

    Raises
    ------
    InputError
        If it would be too large: one row with very many options makes all rows as long.
    """
    values = _cells(len(rows), max(map(len, rows)), -np.inf)
    for row, scores in zip(values, rows, strict=True):
        row[: len(scores)] = scores
    return values


def _cells(n: int, width: int, fill: float) -> NDArray[np.float64]:
    if n * width > _MOST_CELLS:
        raise InputError(
            f"{n:,} questions of which one has {width:,} options; expected at most "
            f"{_MOST_CELLS:,} questions times options"
        )
    return np.full((n, width), float(fill))


def _whole_numbers(values: ArrayLike, what: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or not (
        np.issubdtype(array.dtype, np.integer)
        or (np.issubdtype(array.dtype, np.floating) and (array == np.floor(array)).all())
    ):
        raise InputError(f"{what}: shape {array.shape} of {array.dtype}, expected (N,) integers")
    return array.astype(np.int64)
