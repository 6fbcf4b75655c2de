"""Measure, explain and restore the calibration of preference-aligned language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibrant.version import __version__

if TYPE_CHECKING:
    from calibrant import metrics, permutations, posthoc
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.report import CalibrationReport, evaluate
    from calibrant.diagnosis.verdict import Verdict, verdict
    from calibrant.errors import InputError
    from calibrant.prompts import Prompt
    from calibrant.questions import Question, Questions, load_questions
    from calibrant.runs import load
    from calibrant.scoring.local import score

# Public name -> where it lives. Loaded on first use, so that `import calibrant` stays light.
_HOME = {
    "AnswerTable": "calibrant.answers",
    "CalibrationReport": "calibrant.diagnosis.report",
    "InputError": "calibrant.errors",
    "Prompt": "calibrant.prompts",
    "Question": "calibrant.questions",
    "Questions": "calibrant.questions",
    "Verdict": "calibrant.diagnosis.verdict",
    "evaluate": "calibrant.diagnosis.report",
    "load": "calibrant.runs",
    "load_questions": "calibrant.questions",
    "metrics": "calibrant.metrics",
    "permutations": "calibrant.permutations",
    "posthoc": "calibrant.posthoc",
    "score": "calibrant.scoring.local",
    "verdict": "calibrant.diagnosis.verdict",
}

__all__ = [
    "AnswerTable",
    "CalibrationReport",
    "InputError",
    "Prompt",
    "Question",
    "Questions",
    "Verdict",
    "__version__",
    "evaluate",
    "load",
    "load_questions",
    "metrics",
    "permutations",
    "posthoc",
    "score",
    "verdict",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'calibrant' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    return module if module.__name__ == f"calibrant.{name}" else getattr(module, name)
