"""The page: one self-contained HTML file that a person reads, shows to others and prints.

Names, questions and options are untrusted: the template escapes every text, controls are made
visible, and a Content-Security-Policy allows no script or style but the page's own, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from calibrant.files import write_text
from calibrant.report.tables import Table, number, one_line
from calibrant.version import __version__

if TYPE_CHECKING:
    from calibrant.answers import AnswerTable
    from calibrant.questions import Question
    from calibrant.report.drawings import Picture

Tone = Literal["good", "bad", "plain"]
MISTAKES = 20
# Verdicts, findings and regimes by how they are shown; all others are plain.
_TONES: dict[str, Tone] = {
    "fully restored": "good",
    "already calibrated": "good",
    "calibrated": "good",
    "calibratable": "good",
    "harmed": "bad",
    "gamed": "bad",
    "over-confident": "bad",
    "under-confident": "bad",
    "miscalibrated": "bad",
    "non-calibratable": "bad",
}


@dataclass(frozen=True)
class Claim:
    """What the page says first: a word, what it is about, and the numbers it rests on."""

    label: str
    reason: str
    about: str = ""

    @property
    def tone(self) -> Tone:
        """How the word is shown."""
        return _TONES.get(self.label, "plain")


@dataclass(frozen=True)
class Mistake:
    """A wrong answer given with high confidence.

    Attributes
    ----------
    id, subject, question : of the question. options : K texts. label, predicted : indices.
    probabilities : method -> K probabilities.
    """

    id: str
    subject: str
    question: str
    options: tuple[str, ...]
    label: int
    predicted: int
    probabilities: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes
    ----------
    title : plain words, unique in the page. text : paragraphs.
    pictures : heading ("" for none) -> figures side by side. size : of the figures; "full" gives
        each a row of its own.
    tables, mistakes : below the figures.
    """

    title: str
    text: tuple[str, ...] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    size: Literal["", "small", "large", "full"] = ""


@dataclass(frozen=True)
class Page:
    """Everything the page shows, in its order."""

    title: str
    subtitle: str
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()
    headline: str = "Verdict"


def write_page(path: str | os.PathLike[str], page: Page) -> None:
    """Write the page as HTML, whole or not at all."""
    write_text(path, page_text(page))


def page_text(page: Page) -> str:
    """Render the page as HTML."""
    from jinja2 import Environment, StrictUndefined

    here = files("calibrant.report")
    template, style, script = (
        here.joinpath(f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("html.j2", "css", "js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "csv_link": csv_link,
        "letter": lambda k: chr(ord("A") + k),
        "line": one_line,
        "number": number,
        "sentence": _sentence,
        "sha256": _sha256,
        "shown": shown,
        "slug": slug,
    }
    return environment.from_string(template).render(
        page=page, style=style, script=script, version=__version__
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _sentence(text: str) -> str:
    """Begin with a capital, never break a line inside ``N = 100``, and draw arrows."""
    line = one_line(text).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    line = line.replace(" -> ", " → ")
    return line[:1].upper() + line[1:]


def csv_link(table: Table) -> str:
    """Give the table as a link that saves it as CSV, without a network or a script."""
    return "data:text/csv;charset=utf-8," + quote(table.to_csv(), safe=",. :;-_~*()!'/")


def slug(text: str) -> str:
    """Turn text into a file name and an id.

    Examples
    --------
    >>> slug("ARC-Easy, test: λ <b>"), slug("模型")
    ('arc-easy-test-b', 'x')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:60].strip("-") or "x"


def shown(text: str, width: int) -> str:
    """Make a text safe to look at: its lines kept, controls visible, its middle left out if long.

    Examples
    --------
    >>> shown("a\\x00b\\u202ec", 40), shown("x" * 50, 11)
    ('a⟨U+0000⟩b⟨U+202E⟩c', 'xxxxx … xxxxx (50 characters)')
    """
    whole = len(text)
    if whole > width:
        half = width // 2
        text = f"{text[:half].rstrip()} … {text[whole - half :].lstrip()} ({whole:,} characters)"
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in text)


def _hidden(c: str) -> bool:
    """Whether a character could hide, reorder, repaint or break text.

    These are controls, surrogates, line separators and format characters (Unicode's Cc, Cs, Zl, Zp
    and Cf), such as directional marks, tags and a space without width. The two joiners stay:
    Persian, Indian scripts and emoji are written with them.
    """
    return unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in _KEPT


_KEPT = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def worst_mistakes(
    tables: Mapping[str, AnswerTable],
    questions: Mapping[str, Question] | None,
    *,
    most: int = MISTAKES,
) -> tuple[Mistake, ...]:
    """Wrong answers that the first table gives with the highest confidence.

    Parameters
    ----------
    tables : method -> answers to the same questions. questions : id -> question, None if the texts
        are not at hand: there are then no mistakes to show.
    """
    import numpy as np

    first, *_ = tables.values()
    if questions is None:
        return ()
    confidence = np.where(first.correct, -1.0, first.confidence)
    order = [int(i) for i in np.argsort(-confidence, kind="stable")[:most] if confidence[i] >= 0]
    probs = {}
    for method, table in tables.items():
        row_of = {name: i for i, name in enumerate(table.ids)}
        probs[method] = (row_of, table.probs())
    found = []
    for i in order:
        name = first.ids[i]
        question = questions.get(name)
        if question is None or len(question.choices) != first.n_options[i]:
            continue
        found.append(
            Mistake(
                id=name,
                subject=first.tasks[i],
                question=question.question,
                options=question.choices,
                label=int(first.labels[i]),
                predicted=int(first.predictions[i]),
                probabilities={
                    m: p[rows[name]].tolist() for m, (rows, p) in probs.items() if name in rows
                },
            )
        )
    return tuple(found)


def facts(content: Mapping[str, Any], *, title: str) -> Table:
    """Show nested settings as a table of names and values.

    Examples
    --------
    >>> facts({"seed": 0, "prompt": {"format": "letter"}}, title="Settings").rows
    (('seed', '0'), ('prompt, format', 'letter'))
    """
    return Table(("setting", "value"), tuple(_flat(content, "")), text_columns=(0, 1), title=title)


def _flat(content: Mapping[str, Any], before: str) -> Any:
    for name, value in content.items():
        where = f"{before}{str(name).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}, ")
        elif value is not None and value != [] and value != "":
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield where, text if len(text) <= 300 else f"{text[:300]}…"
