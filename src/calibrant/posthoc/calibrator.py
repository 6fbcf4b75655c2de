"""What all calibrators share: fit, transform, and a JSON file that holds nothing but numbers."""

from __future__ import annotations

import math
import os
import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError, shown
from calibrant.files import read_json, write_json

FORMAT_VERSION = 1

Floats = NDArray[np.float64]


class NoOptimumError(InputError):
    """What is to be minimised has no minimum at finite parameters; the message says why."""


class Calibrator(ABC):
    """A map from answer tables to answer tables, fitted on one table and applied to others.

    Attributes
    ----------
    kind : str, the method's name in files and on the command line.
    n_questions : int, questions it was fitted on; 0 before `fit`.
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        self.n_questions = 0

    @abstractmethod
    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit on a table, and return self."""

    def transform(self, answers: AnswerTable) -> AnswerTable:
        """Return the same questions with calibrated option scores.

        Raises
        ------
        InputError
            If `fit` has not been called, or the calibrator cannot be applied to this table.
        """
        self._require_fit("transform")
        return answers.with_logprobs(self._scores(answers), **self._provenance())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able content of the calibrator."""
        head = {"kind": self.kind, "format_version": FORMAT_VERSION}
        return {**head, **self._parameters(), "n_questions": self.n_questions}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibrator as JSON, complete or not at all; `load` reads it.

        Raises
        ------
        InputError
            If `fit` has not been called.
        """
        self._require_fit("save")
        write_json(path, self.to_dict())

    @abstractmethod
    def _scores(self, answers: AnswerTable) -> Floats:
        """Calibrated option scores, (N, K)."""

    @abstractmethod
    def _parameters(self) -> dict[str, Any]:
        """The fitted numbers, JSON-able."""

    @abstractmethod
    def _read(self, fields: Fields) -> None:
        """Take back what `_parameters` gave."""

    def _provenance(self) -> dict[str, Any]:
        return {"calibrator": self.kind}

    def _require_fit(self, verb: str) -> None:
        if not self.n_questions:
            raise InputError(f"{self.kind}: {verb} before fit; call fit(answers) first")


class Fields:
    """The fields of a calibrator file; every complaint names the file and the field."""

    def __init__(self, path: str | os.PathLike[str], content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file, and refuse what a newer version of calibrant wrote."""
        content = read_json(path)
        fields = cls(path, content if isinstance(content, dict) else {})
        version = fields.content.get("format_version", 1)  # the first files carried none
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise InputError(
                f"{path}: calibrator format {version!r}, this version reads up to "
                f"{FORMAT_VERSION}; upgrade calibrant"
            )
        return fields

    def number(self, name: str, *, low: float = -math.inf) -> float:
        """A finite number above ``low``."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(name, "a number")
        if not low < value <= sys.float_info.max:
            raise self._refusal(name, f"a finite number above {low:g}")
        return float(value)

    def count(self, name: str) -> int:
        """A positive whole number."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._refusal(name, "a positive whole number")
        return value

    def array(self, name: str, *shape: int) -> Floats:
        """An array of finite numbers; an entry of ``shape`` that is -1 may be any length."""
        expected = f"finite numbers of shape {shape}".replace("-1", "any")
        try:
            array = np.array(self.content.get(name), dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._refusal(name, expected) from error
        fits = array.ndim == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or not np.isfinite(array).all():
            raise self._refusal(name, expected)
        return array

    def mapping(self, name: str) -> Fields:
        """Fields within a field."""
        value = self.content.get(name)
        if not isinstance(value, dict) or not value:
            raise self._refusal(name, "named numbers")
        return Fields(self.path, value)

    def _refusal(self, name: str, expected: str) -> InputError:
        value = shown(self.content.get(name))
        return InputError(f"{self.path}: {name[:60]} {value}, expected {expected}")
