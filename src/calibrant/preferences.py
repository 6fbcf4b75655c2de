"""Preference pairs: to one prompt, one answer was preferred to another."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from calibrant.errors import InputError
from calibrant.unpacking import open_unpacked

_FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison: to ``prompt``, ``chosen`` was preferred to ``rejected``.

    Raises
    ------
    InputError
        If a text is empty or the two answers are the same.

    Examples
    --------
    >>> Preference("p1", "Name a fruit.", "Apple", "Brick").chosen
    'Apple'
    """

    id: str
    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        for field in _FIELDS:
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{field}: {str(value)[:60]!r}, expected text")
        if self.chosen == self.rejected:
            raise InputError("chosen and rejected are the same; expected two different answers")


def load_preferences(path: str | os.PathLike[str]) -> list[Preference]:
    """Read rows of ``prompt``, ``chosen`` and ``rejected`` from a ``.jsonl`` or ``.jsonl.gz`` file.

    Ids are the row's ``id``, or its line number.

    Raises
    ------
    InputError
        If the file cannot be read, or a row is not as above; the message names file and line.
    """
    path = Path(path)
    preferences = []
    try:
        with io.TextIOWrapper(open_unpacked(path), encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    preferences.append(_preference(line, number, path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not preferences:
        raise InputError(f"{path}: holds no preference pair; expected one JSON object per line")
    return preferences


def _preference(line: str, number: int, path: Path) -> Preference:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or (missing := [f for f in _FIELDS if f not in row]):
            lacks = "is not an object" if not isinstance(row, dict) else f"lacks {missing}"
            raise InputError(f"{lacks}, expected the fields {', '.join(_FIELDS)}")
        return Preference(str(row.get("id", number)), *(row[f] for f in _FIELDS))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {number}: {error}") from error
