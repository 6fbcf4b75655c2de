"""Multiple-choice questions: load, validate, sample, split, and keep train and test apart.

Nothing is guessed. What cannot be read one way only stops with a message that names the file, the
line, the field and what was expected; what real data do contain (an option text twice, the same
question under two ids, control characters) is kept and counted in `Questions.warnings`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from calibrant.errors import InputError, shown
from calibrant.unpacking import Parquet, open_unpacked

MAX_OPTIONS = 26  # one letter each
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FILE_TYPES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
_FIELDS = ("id", "question", "choices", "answer", "subject")
# Names under which files of labelled texts have the question and the answer.
_TEXT_AND_LABEL = {"question": "text", "answer": "label"}
# C0 without tab, line feed and carriage return; DEL; C1.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_FILE_LIKE = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".gz", ".bz2", ".zst", ".zip"}
_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<config>[\w.-]+))?")

Row = Mapping[str, Any]
Columns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Question:
    """One question with 2 to 26 options, exactly one of them right, perhaps not known which.

    Attributes
    ----------
    id : non-empty str.
    question : non-blank str, kept as it is.
    choices : tuple of 2 to 26 non-blank str.
    answer : int, 0-based index into choices; None if the right option is not known.
    subject : str, "" if none.

    Raises
    ------
    InputError
        If a field is not as above; the message begins with the field's name.

    Examples
    --------
    >>> Question("q1", "2 + 2 = ?", ("3", "4"), 1).choices
    ('3', '4')
    >>> Question("q1", "2 + 2 = ?", ("3", "4"), 2)
    Traceback (most recent call last):
    ...
    calibrant.errors.InputError: answer: 2 is out of range, expected 0 to 1 (0-based, 2 options)
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    subject: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.choices, tuple):
            if not isinstance(self.choices, list):
                raise InputError(
                    f"choices: {_show(self.choices)}, expected a list of {_K_TEXT} strings"
                )
            object.__setattr__(self, "choices", tuple(self.choices))
        _check_text("id", self.id)
        _check_text("question", self.question)
        n = len(self.choices)
        if not 2 <= n <= MAX_OPTIONS:
            raise InputError(f"choices: {n} option{'s' * (n != 1)}, expected {_K_TEXT}")
        for k, text in enumerate(self.choices):
            _check_text("choices", text, k)
        if self.answer is not None and type(self.answer) is not int:  # True is not an index
            raise InputError(
                f"answer: {_show(self.answer)}, expected an integer from 0 to {n - 1} or a letter "
                f"from A to {LETTERS[n - 1]}"
            )
        if self.answer is not None and not 0 <= self.answer < n:
            raise InputError(
                f"answer: {self.answer} is out of range, expected 0 to {n - 1} "
                f"(0-based, {n} options)"
            )
        if not isinstance(self.subject, str):
            raise InputError(f"subject: {_show(self.subject)}, expected a string")
        if not self.subject.isascii():
            _check_unicode("subject", self.subject)

    @property
    def label(self) -> int:
        """The answer of a question whose answer is known.

        Raises
        ------
        InputError
            If it is not.
        """
        if self.answer is None:
            raise InputError(
                f"question {self.id!r} has no answer; expected labelled questions (only "
                "predictions do without)"
            )
        return self.answer


_K_TEXT = f"2 to {MAX_OPTIONS}"


def _check_text(field: str, text: object, k: int | None = None) -> None:
    if isinstance(text, str) and text.isascii() and not text.isspace() and text:
        return  # the common case, fast
    where = field if k is None else f"{field}: option {k} (0-based)"
    if not isinstance(text, str):
        raise InputError(f"{where}: {_show(text)}, expected a string")
    if not text.strip():
        raise InputError(f"{where}: is empty, expected text")
    _check_unicode(where, text)


def _check_unicode(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start} is not valid Unicode (an invalid UTF-8 byte or half "
            "a surrogate pair), expected UTF-8 text"
        ) from None


def _show(value: object) -> str:
    try:
        text = json.dumps(value, default=repr)
    except RecursionError:  # only just not too deep to be read
        text = shown(value)
    names = {bool: "boolean", type(None): "nothing", dict: "object", float: "decimal number"}
    kind = names.get(type(value), type(value).__name__)
    return f"{text if len(text) <= 60 else text[:57] + '...'} is of type {kind}"


# -- many questions -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Questions(Sequence[Question]):
    """An immutable sequence of questions with unique ids.

    Attributes
    ----------
    items : tuple of N `Question`.
    name : where they come from: a path or a Hub id with its split.
    skipped : tuple of str, one message per row that ``skip_invalid`` left out.

    Raises
    ------
    InputError
        If an id occurs twice.

    Examples
    --------
    >>> questions = Questions([Question("a", "1 + 1 = ?", ("1", "2"), 1),
    ...                        Question("b", "1 + 2 = ?", ("2", "3", "3"), 1)], name="sums")
    >>> questions
    <Questions: 2 from sums, 2-3 options>
    >>> questions[1:].warnings
    ("1 question has an option text more than once (first: id 'b')",)
    """

    items: tuple[Question, ...]
    name: str = "questions"
    skipped: tuple[str, ...] = ()

    def __init__(
        self, items: Iterable[Question], name: str = "questions", skipped: Iterable[str] = ()
    ) -> None:
        set_ = object.__setattr__
        set_(self, "items", tuple(items))
        set_(self, "name", name)
        set_(self, "skipped", tuple(skipped))
        if (twin := first_twin(question.id for question in self.items)) is not None:
            raise InputError(f"{name}: id {twin!r} occurs more than once")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Questions: ...
    def __getitem__(self, index: int | slice) -> Question | Questions:
        if isinstance(index, slice):
            return Questions(self.items[index], self.name, self.skipped)
        return self.items[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Questions) and self.items == other.items

    def __hash__(self) -> int:
        return hash(self.items)

    def __repr__(self) -> str:
        counts = {len(question.choices) for question in self.items} or {0}
        low, high = min(counts), max(counts)
        options = f"{low}" if low == high else f"{low}-{high}"
        return f"<Questions: {len(self)} from {self.name}, {options} options>"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of ids, texts, options, answers and subjects, in order."""
        digest = hashlib.sha256()
        for q in self.items:
            line = json.dumps([q.id, q.question, q.choices, q.answer, q.subject])
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """`question_key` of each question: N str, equal for exact duplicates."""
        return tuple(question_key(question) for question in self.items)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What is odd but kept, and how many rows were skipped: a tuple of str, () if nothing."""
        twice, control, same = [], [], []
        first: dict[str, Question] = {}
        for q, key in zip(self.items, self.groups, strict=True):
            if len(set(q.choices)) < len(q.choices):
                twice.append(q.id)
            if any(_CONTROL.search(text) for text in (q.question, *q.choices)):
                control.append(q.id)
            if (earlier := first.setdefault(key, q)) is not q:
                same.append((q, earlier))
        notes = []
        if self.skipped:
            notes.append(f"{len(self.skipped)} invalid {_rows(len(self.skipped))} skipped")
        if twice:
            notes.append(
                f"{_count(twice, 'has', 'have')} an option text more than once "
                f"(first: id {twice[0]!r})"
            )
        if same:
            notes.append(
                f"{_count(same, 'repeats', 'repeat')} the text and options of another id "
                f"(first: {same[0][0].id!r} as {same[0][1].id!r})"
            )
        if contrary := [pair for pair in same if _contrary(*pair)]:
            notes.append(
                f"{_count(contrary, 'repeats', 'repeat')} another with a different right answer "
                f"(first: {contrary[0][0].id!r} and {contrary[0][1].id!r})"
            )
        if control:
            notes.append(
                f"{_count(control, 'contains', 'contain')} control characters "
                f"(first: id {control[0]!r})"
            )
        return tuple(notes)

    def select(self, indices: Iterable[int]) -> Questions:
        """Take the questions at these 0-based positions, in the order given."""
        return Questions([self.items[int(i)] for i in indices], self.name, self.skipped)

    def sample(self, n: int, seed: int = 0) -> Questions:
        """Draw n questions at random without replacement, order kept; all of them if n >= N.

        Raises
        ------
        InputError
            If n is below 1.
        """
        if n < 1:
            raise InputError(f"a sample of {n} questions was asked for, expected at least 1")
        if n >= len(self):
            return self
        return self.select(sorted(random.Random(seed).sample(range(len(self)), n)))


def _contrary(a: Question, b: Question) -> bool:
    if a.answer is None or b.answer is None:
        return False
    return _normalise(a.choices[a.answer]) != _normalise(b.choices[b.answer])


def _rows(n: int) -> str:
    return "row" if n == 1 else "rows"


def _count(what: Sequence[object], one: str, many: str) -> str:
    return f"1 question {one}" if len(what) == 1 else f"{len(what)} questions {many}"


# -- the same question? ---------------------------------------------------------------------


def question_key(question: Question) -> str:
    """Identify a question by text and option set: 32 hex digits, equal for duplicates.

    Text is compared after NFKC, case folding and collapsing white space; the order of the options,
    their repetition, the id, the subject and the answer do not count.

    Examples
    --------
    >>> a = Question("a", "What  is H2O?", ("Water", "Salt"), 0)
    >>> b = Question("b", "what is H₂O?", ("salt", "water"), 1)
    >>> question_key(a) == question_key(b)
    True
    """
    options = sorted({_normalise(text) for text in question.choices})
    # A normalised text holds no line feed, so the joined form is unambiguous.
    content = "\n".join([_normalise(question.question), *options])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _normalise(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().split())
    safe = text if len(text) < _LONG else _few_marks(text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", safe).casefold())
    return " ".join(folded.split())


_LONG = 1000  # characters up to which even nothing but marks is normalised at once
_MARKS = 30  # that may stand in a row; Unicode's Stream-Safe Text Format (UAX 15)


def _few_marks(text: str) -> str:
    """Part longer rows of combining marks: putting n in order takes normalize n² steps."""
    parted, row = [], 0
    for character in text:
        row = row + 1 if unicodedata.combining(character) else 0
        if row > _MARKS:
            parted.append("\u034f")  # joins graphemes, is not seen, and is no mark
            row = 1
        parted.append(character)
    return "".join(parted)


def drop_overlap(train: Questions, *others: Questions) -> tuple[Questions, int]:
    """Drop from train every question that occurs in another set by text and option set.

    Returns
    -------
    (Questions, int)
        What is left of train, in order, and how many questions were dropped.
    """
    taken = {key for other in others for key in other.groups}
    keep = [i for i, key in enumerate(train.groups) if key not in taken]
    dropped = len(train) - len(keep)
    return (train.select(keep) if dropped else train), dropped


def split_questions(
    questions: Questions, fraction: float, seed: int = 0
) -> tuple[Questions, Questions]:
    """Split at random into (rest, part), with ``part`` about ``fraction`` of the questions.

    Exact duplicates stay on one side, subjects keep their shares to within a question or so, and
    both sides keep the order of the input.

    Raises
    ------
    InputError
        If fraction is not between 0 and 1, or one side would be empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"split fraction is {fraction}, expected a number between 0 and 1")
    members: dict[str, list[int]] = {}
    for i, key in enumerate(questions.groups):
        members.setdefault(key, []).append(i)
    strata: dict[str, list[list[int]]] = {}
    for group in members.values():
        strata.setdefault(questions[group[0]].subject, []).append(group)
    rng = random.Random(seed)
    subjects = list(strata)
    rng.shuffle(subjects)
    part: list[int] = []
    seen = 0
    for subject in subjects:  # systematic sampling along shuffled groups of shuffled strata
        rng.shuffle(strata[subject])
        for group in strata[subject]:
            seen += len(group)
            if int(seen * fraction + 0.5) > len(part):
                part.extend(group)
    if not 0 < len(part) < len(questions):
        raise InputError(
            f"{questions.name}: {len(questions)} questions ({len(members)} distinct) cannot be "
            f"split with fraction {fraction}: one side would be empty"
        )
    chosen = set(part)
    rest = [i for i in range(len(questions)) if i not in chosen]
    return questions.select(rest), questions.select(sorted(part))


# -- loading --------------------------------------------------------------------------------


def load_questions(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: Columns | None = None,
    choices: Sequence[str] | None = None,
    labelled: bool = True,
    skip_invalid: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Questions:
    """Load and validate questions from a file or from the Hugging Face Hub.

    Every row has ``question`` (str), ``choices`` (2 to 26 str), ``answer`` (a 0-based integer, or
    the option's letter as a string) and, if wanted, ``id`` (str or integer; without one the line
    number serves) and ``subject``. Other fields are ignored.

    * ``.jsonl``, ``.jsonl.gz``: one object per line; lines end at a line feed and nowhere else.
    * ``.csv``, ``.csv.gz``: a header row; the options in columns ``choice_1``, ``choice_2``, ... or
      ``A``, ``B``, ... (empty cells at the end: fewer options), or as a JSON list in ``choices``.
      Digits in ``answer`` are the 0-based index.
    * ``.parquet``: ``choices`` a list of strings, or option columns as in CSV. Parquet and ``.gz``
      are unpacked no further than `calibrant.unpacking` allows.
    * ``owner/name[/config][:split]``: a Hub data set, read with `datasets`. cais/mmlu,
      openlifescienceai/medmcqa, allenai/openbookqa, allenai/ai2_arc (config ARC-Easy or
      ARC-Challenge) and tau/commonsense_qa are known; others need the fields above or ``columns``.

    Parameters
    ----------
    split : the split of a Hub data set, if ``source`` does not name it.
    columns : ``{field: column}`` where the columns have other names; ``choices`` may be a list of
        columns, one per option.
    choices : label words that all questions share, for files of labelled texts, which have no
        options of their own. The text is then taken from ``question`` or else ``text``, the answer,
        a label word or its 0-based index, from ``answer`` or else ``label``.
    labelled : False reads questions to be predicted, whose answers may be missing or empty; one
        that is there is still checked.
    skip_invalid : leave out invalid rows and list them in ``Questions.skipped``.
    limit : keep a random sample of so many questions (first rows would be biased: data sets are
        ordered by subject), drawn with ``seed``.

    Raises
    ------
    InputError
        Naming file, line, field and what was expected.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "sums.csv")
    >>> _ = path.write_text("question,A,B,answer\\n1 + 1 = ?,2,3,A\\n")
    >>> load_questions(path)[0]
    Question(id='2', question='1 + 1 = ?', choices=('2', '3'), answer=0, subject='')
    >>> path = pathlib.Path(tempfile.mkdtemp(), "films.csv")
    >>> _ = path.write_text("text,label\\nDull.,negative\\n")
    >>> load_questions(path, choices=["positive", "negative"])[0]
    Question(id='2', question='Dull.', choices=('positive', 'negative'), answer=1, subject='')
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1")
    if columns is not None:
        _check_columns(columns)
    rows, name, unit = _open(source, split, columns)
    if choices is not None:
        rows = _labelled_rows(rows, _checked_labels(choices), labelled)
    questions, skipped = _validated(rows, name, unit, skip_invalid, labelled)
    loaded = Questions(questions, name, skipped)
    return loaded if limit is None else loaded.sample(limit, seed)


# A reader yields (line or row number from 1, row); a row that cannot be read is an InputError.
_Rows = Iterator[tuple[int, Row | InputError]]


def _open(
    source: str | os.PathLike[str], split: str | None, columns: Columns | None
) -> tuple[_Rows, str, str]:
    text = os.fspath(source)
    path = Path(text).expanduser()
    extension = next((e for e in FILE_TYPES if path.name.lower().endswith(e)), "")
    if not extension and not path.exists() and isinstance(source, str):
        hub = _hub_parts(text, split)
        if hub is not None:
            return _hub_rows(*hub, columns)
    if split is not None:
        raise InputError(f"{text}: a split ({split!r}) belongs to a Hub data set, not to a file")
    if not path.exists():
        raise InputError(
            f"{text}: no such file, and not a Hub data set id either "
            "(owner/name:split); expected questions as " + ", ".join(FILE_TYPES)
        )
    if path.is_dir():
        raise InputError(f"{text}: is a folder, expected a file: " + ", ".join(FILE_TYPES))
    if not extension:
        raise InputError(f"{text}: unknown file type, expected one of " + ", ".join(FILE_TYPES))
    if extension == ".parquet":
        return _parquet_rows(path, columns), text, "row"
    data = _read(path, compressed=extension.endswith(".gz"))
    if extension.startswith(".jsonl"):
        return _jsonl_rows(data, columns), text, "line"
    return _csv_rows(data, text, columns), text, "line"


def _read(path: Path, compressed: bool) -> bytes:
    try:
        with open_unpacked(path) as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not compressed and data.startswith(b"\x1f\x8b"):
        raise InputError(f"{path}: is gzip-compressed, expected a name that ends in .gz")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise InputError(f"{path}: is empty, expected at least one question")
    return data


def _jsonl_rows(data: bytes, columns: Columns | None) -> _Rows:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line and not line.isspace():
            yield number, _caught(_json_row, line, columns)


def _caught(make: Callable[..., Row], *arguments: Any) -> Row | InputError:
    try:
        return make(*arguments)
    except InputError as error:
        return error


def _json_row(line: bytes, columns: Columns | None) -> Row:
    try:
        row = json.loads(line.decode(), object_pairs_hook=_no_twins)
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte {error.start} is not valid UTF-8 ({error.reason}), expected UTF-8 text"
        ) from None
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(
            f"invalid JSON at character {error.pos} ({error.msg}), expected one object per line"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; nesting without end
        raise InputError(f"invalid JSON ({error}), expected one object per line") from None
    if not isinstance(row, dict):
        raise InputError(f"{_show(row)}, expected a JSON object")
    return row if columns is None else _renamed(row, columns)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        twin = first_twin(name for name, _ in pairs)
        raise InputError(f"{twin}: the field occurs twice in one object, expected once")
    return row


def _csv_rows(data: bytes, name: str, columns: Columns | None) -> _Rows:
    # Invalid bytes become lone surrogates, which validation finds and reports with their line.
    text = data.decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        plan = _option_columns(header, columns, name)
        start = reader.line_num + 1
        for cells in reader:
            number, start = start, reader.line_num + 1
            if cells:
                yield number, _caught(_csv_row, header, cells, plan, columns)
    except csv.Error as error:  # past a quoting error the rows cannot be told apart any more
        raise InputError(
            f"{name}: line {reader.line_num}: invalid CSV ({error}), expected comma-separated "
            'cells, quotes inside a cell doubled ("")'
        ) from error


def _csv_row(
    header: list[str], cells: list[str], plan: list[str] | None, columns: Columns | None
) -> Row:
    if len(cells) != len(header):
        raise InputError(f"{len(cells)} cells, expected {len(header)} as in the header")
    row = _renamed(dict(zip(header, cells, strict=True)), columns, plan)
    for field in ("id", "subject"):
        if row.get(field) == "":
            row[field] = None
    for field in ("answer", "label"):
        answer = row.get(field)
        if isinstance(answer, str) and answer.isascii() and answer.isdigit() and len(answer) < 9:
            row[field] = int(answer)
    if isinstance(choices := row.get("choices"), str):
        try:
            row["choices"] = json.loads(choices)
        except (ValueError, RecursionError):
            raise InputError(
                f"choices: {_show(choices)}, expected a JSON list of strings"
            ) from None
    return row


def _parquet_rows(path: Path, columns: Columns | None) -> _Rows:
    file = Parquet(path)
    plan = _option_columns(file.names, columns, str(path))
    wanted = {*_FIELDS, *_TEXT_AND_LABEL.values(), *(plan or ())}
    for source in (columns or {}).values():
        wanted.update([source] if isinstance(source, str) else source)
    number = 0
    for row in file.rows([name for name in file.names if name in wanted]):
        number += 1
        yield number, _caught(_renamed, row, columns, plan)
    if not number:
        raise InputError(f"{path}: is empty, expected at least one question")


def first_twin(names: Iterable[str]) -> str | None:
    """Return the first name that occurs again, None if all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _option_columns(header: Sequence[str], columns: Columns | None, name: str) -> list[str] | None:
    """Find the columns that hold one option each: None if the options are in one column."""
    if (twin := first_twin(header)) is not None:
        raise InputError(f"{name}: column {twin!r} occurs twice in the header")
    if columns is not None and "choices" in columns:
        return None
    numbered = [f"choice_{k}" for k in range(1, MAX_OPTIONS + 2)]
    styles = [[column for column in style if column in header] for style in (numbered, LETTERS)]
    found = [style for style in styles if style]
    if len(found) + ("choices" in header) > 1:
        raise InputError(
            f"{name}: options are given twice, expected only one of: a column choices, columns "
            "choice_1, choice_2, ..., columns A, B, ..."
        )
    if not found:
        return None
    expected = (numbered if found[0][0].startswith("choice") else list(LETTERS))[: len(found[0])]
    if found[0] != expected:
        missing = next(column for column in expected if column not in found[0])
        raise InputError(f"{name}: column {missing!r} is missing between the option columns")
    return found[0]


def _check_columns(columns: Columns) -> None:
    for field, source in columns.items():
        if field not in _FIELDS:
            raise InputError(
                f"columns: unknown field {field!r}, expected one of " + ", ".join(_FIELDS)
            )
        if not isinstance(source, str) and field != "choices":
            raise InputError(f"columns: {field} is {source!r}, expected the name of one column")


def _renamed(
    row: Row, columns: Columns | None, option_columns: Sequence[str] | None = None
) -> dict[str, Any]:
    out = {f: row[f] for f in (*_FIELDS, *_TEXT_AND_LABEL.values()) if f in row}
    sources: dict[str, str | Sequence[str]] = dict(columns or {})
    if option_columns is not None:
        sources["choices"] = option_columns
    for field, source in sources.items():
        names = [source] if isinstance(source, str) else list(source)
        for name in names:
            if name not in row:
                raise InputError(
                    f"{field}: column {name!r} is missing, found "
                    + (", ".join(map(str, row)) or "none")
                )
        values = [row[name] for name in names]
        if isinstance(source, str):
            out[field] = values[0]
        else:  # one option per column; empty cells at the end mean fewer options
            while values and values[-1] in (None, ""):
                values.pop()
            out[field] = values
    return out


def _checked_labels(choices: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(choices)
    if isinstance(choices, str) or len(set(labels)) != len(labels):
        raise InputError(f"choices: {choices!r}, expected different label words")
    Question("labels", "labels", labels, 0)  # checks number and text
    return labels


def _labelled_rows(rows: _Rows, labels: tuple[str, ...], required: bool) -> _Rows:
    for number, row in rows:
        if isinstance(row, InputError):
            yield number, row
        else:
            yield number, _caught(_labelled, row, labels, required)


def _labelled(row: Row, labels: tuple[str, ...], required: bool) -> Row:
    """Turn a row of text and label into fields."""
    if row.get("choices") is not None:
        raise InputError(
            f"choices: {_show(row['choices'])}, but all questions are to have the options "
            f"{list(labels)}; expected rows without options of their own"
        )
    fields: dict[str, Any] = {"id": row.get("id"), "subject": row.get("subject")}
    for field, name in _TEXT_AND_LABEL.items():
        value = row.get(field, row.get(name))
        if field == "answer" and value in (None, "") and not required:
            value = None
        elif value is None:
            raise InputError(f"{field}: is missing, expected a column {field} or {name}")
        fields[field] = value
    answer = fields["answer"]
    if type(answer) is int and str(answer) in labels and labels.index(str(answer)) != answer:
        raise InputError(
            f"answer: {answer} is the label of option {labels.index(str(answer))} and the 0-based "
            f"index of another, expected labels that are not numbers"
        )
    if isinstance(answer, str):
        if answer not in labels:
            raise InputError(f"answer: {json.dumps(answer)}, expected one of {list(labels)}")
        fields["answer"] = labels.index(answer)
    return {**fields, "choices": list(labels)}


def _validated(
    rows: _Rows, name: str, unit: str, skip_invalid: bool, labelled: bool
) -> tuple[list[Question], list[str]]:
    questions: list[Question] = []
    skipped: list[str] = []
    used: dict[str, int] = {}
    for number, row in rows:
        try:
            if isinstance(row, InputError):
                raise row
            question = _question(row, number, labelled)
            if question.id in used:
                raise InputError(
                    f"id: {question.id!r} is already the id of {unit} {used[question.id]}, "
                    "expected unique ids"
                )
        except InputError as error:
            message = f"{name}: {unit} {number}: {error}"
            if not skip_invalid:
                raise InputError(message) from None
            skipped.append(message)
            continue
        used[question.id] = number
        questions.append(question)
    if not questions:
        raise InputError(
            f"{name}: no valid question, expected at least one"
            + (f", all {len(skipped)} rows are invalid; the first: {skipped[0]}" if skipped else "")
        )
    return questions, skipped


def _question(row: Row, number: int, labelled: bool) -> Question:
    for field in ("question", "choices", "answer") if labelled else ("question", "choices"):
        if row.get(field) is None:
            what = "is null" if field in row else "is missing"
            raise InputError(f"{field}: {what}, expected " + _EXPECTED[field])
    name = row.get("id")
    if name is None:
        name = str(number)
    elif type(name) is int:
        name = str(name)
    choices, answer = row["choices"], row.get("answer")
    if answer == "" and not labelled:
        answer = None
    if isinstance(answer, str):
        answer = _letter_index(answer, choices)
    subject = row.get("subject")
    return Question(name, row["question"], choices, answer, "" if subject is None else subject)


_EXPECTED = {
    "question": "text",
    "choices": f"a list of {_K_TEXT} strings",
    "answer": "the 0-based index of the right option, or its letter",
}


def _letter_index(answer: str, choices: object) -> int:
    options: Sequence[object] = choices if isinstance(choices, (list, tuple)) else ()
    n = min(len(options), MAX_OPTIONS)
    index = LETTERS.find(answer.upper()) if len(answer) == 1 else -1
    if index < 0 or (n >= 2 and index >= n):
        raise InputError(
            f"answer: {json.dumps(answer)}, expected an integer from 0 to {max(n, 2) - 1} or a "
            f"letter from A to {LETTERS[max(n, 2) - 1]}"
        )
    if index < n and answer in options and options[index] != answer:
        raise InputError(
            f"answer: {answer!r} is the letter of option {index} and the text of option "
            f"{options.index(answer)}, expected the 0-based index, which has one meaning"
        )
    return index


# -- the Hub --------------------------------------------------------------------------------


def mmlu_row(row: Row) -> Row:
    """Turn a row of cais/mmlu into fields: it has them all but an id; answer is a class label."""
    return {field: row.get(field) for field in ("question", "choices", "answer", "subject")}


def medmcqa_row(row: Row) -> Row:
    """Turn a row of openlifescienceai/medmcqa into fields: opa..opd, 0-based cop, -1 if secret."""
    if row.get("cop") == -1:
        raise InputError("answer: cop is -1, this split has no public answers")
    return {
        "id": row.get("id"),
        "question": row.get("question"),
        "choices": [row.get(f"op{letter}") for letter in "abcd"],
        "answer": row.get("cop"),
        "subject": row.get("subject_name"),
    }


def labelled_row(row: Row) -> Row:
    """Turn a row of ARC, OpenBookQA or CommonsenseQA into fields.

    ``choices`` is ``{"text": [...], "label": [...]}`` and ``answerKey`` is one of the labels:
    letters, or 1 to 4 in part of ARC.
    """
    choices, key = row.get("choices"), row.get("answerKey")
    if not isinstance(choices, Mapping) or not {"text", "label"} <= set(choices):
        raise InputError(f"choices: {_show(choices)}, expected lists text and label")
    if key == "":
        raise InputError("answer: answerKey is empty, this split has no public answers")
    labels = list(choices["label"])
    if labels.count(key) != 1:
        raise InputError(f"answer: answerKey is {key!r}, expected one of the labels {labels}")
    return {
        "id": row.get("id"),
        "question": row.get("question_stem", row.get("question")),
        "choices": choices["text"],
        "answer": labels.index(key),
    }


# Hub id -> (its configs, the first is the default if it is the only one; row -> fields)
HUB_DATASETS: dict[str, tuple[tuple[str, ...], Callable[[Row], Row]]] = {
    "cais/mmlu": (("all",), mmlu_row),
    "openlifescienceai/medmcqa": ((), medmcqa_row),
    "allenai/openbookqa": (("main",), labelled_row),
    "allenai/ai2_arc": (("ARC-Easy", "ARC-Challenge"), labelled_row),
    "tau/commonsense_qa": ((), labelled_row),
}


def _hub_parts(text: str, split: str | None) -> tuple[str, str | None, str | None] | None:
    """Cut ``owner/name[/config][:split]``: None if the text is no such id."""
    ident, _, named = text.partition(":")
    match = _HUB_ID.fullmatch(ident)
    if match is None or Path(ident).suffix.lower() in _FILE_LIKE:
        return None
    if split is not None and named and split != named:
        raise InputError(f"{text}: names the split {named!r} but split={split!r} was given")
    repo, config = match["repo"], match["config"]
    configs = HUB_DATASETS[repo][0] if repo in HUB_DATASETS else ()
    if config is None and len(configs) > 1:
        raise InputError(
            f"{text}: expected one of " + ", ".join(f"{repo}/{each}:SPLIT" for each in configs)
        )
    return repo, config or next(iter(configs), None), split or named or None


def _hub_rows(
    repo: str, config: str | None, split: str | None, columns: Columns | None
) -> tuple[_Rows, str, str]:
    name = repo + (f"/{config}" if config else "")
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{name}: there is no such file, and reading it as a Hub data set needs the package "
            'datasets: pip install "calibrant[models]"'
        ) from error
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(repo, config)
            if len(splits) != 1:
                raise InputError(
                    f"{name}: has the splits {', '.join(splits)}; expected one named, as in "
                    f"{name}:{splits[-1]}"
                )
            split = splits[0]
        table = datasets.load_dataset(repo, config, split=split)
    except InputError:
        raise
    except Exception as error:  # datasets, huggingface_hub and httpx raise dozens of types here
        raise InputError(
            f"{name}: there is no such file, and it cannot be loaded from the Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); check "
            "the id, the split and the network, or give a file"
        ) from error
    if columns is None and repo in HUB_DATASETS:
        to_fields = HUB_DATASETS[repo][1]
    else:
        plan = _option_columns(table.column_names, columns, name)

        def to_fields(row: Row) -> Row:
            return _renamed(row, columns, plan)

    rows = ((n, _caught(to_fields, row)) for n, row in enumerate(table, start=1))
    return rows, f"{name}:{split}", "row"
