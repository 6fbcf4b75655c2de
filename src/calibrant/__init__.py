"""Measure, explain and restore the calibration of preference-aligned language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibrant.version import __version__

if TYPE_CHECKING:
    from calibrant import metrics, permutations, posthoc
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.bounds import Bounds, bounds
    from calibrant.diagnosis.collapse import CollapseReport, collapse
    from calibrant.diagnosis.plan import LabelPlan, plan
    from calibrant.diagnosis.regime import RegimeReport, regime
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
    "Bounds": "calibrant.diagnosis.bounds",
    "CalibrationReport": "calibrant.diagnosis.report",
    "CollapseReport": "calibrant.diagnosis.collapse",
    "InputError": "calibrant.errors",
    "LabelPlan": "calibrant.diagnosis.plan",
    "Prompt": "calibrant.prompts",
    "Question": "calibrant.questions",
    "Questions": "calibrant.questions",
    "RegimeReport": "calibrant.diagnosis.regime",
    "Verdict": "calibrant.diagnosis.verdict",
    "bounds": "calibrant.diagnosis.bounds",
    "collapse": "calibrant.diagnosis.collapse",
    "evaluate": "calibrant.diagnosis.report",
    "load": "calibrant.runs",
    "load_questions": "calibrant.questions",
    "metrics": "calibrant.metrics",
    "permutations": "calibrant.permutations",
    "plan": "calibrant.diagnosis.plan",
    "posthoc": "calibrant.posthoc",
    "regime": "calibrant.diagnosis.regime",
    "score": "calibrant.scoring.local",
    "verdict": "calibrant.diagnosis.verdict",
}

__all__ = [
    "AnswerTable",
    "Bounds",
    "CalibrationReport",
    "CollapseReport",
    "InputError",
    "LabelPlan",
    "Prompt",
    "Question",
    "Questions",
    "RegimeReport",
    "Verdict",
    "__version__",
    "bounds",
    "collapse",
    "evaluate",
    "load",
    "load_questions",
    "metrics",
    "permutations",
    "plan",
    "posthoc",
    "regime",
    "score",
    "verdict",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'calibrant' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    return module if module.__name__ == f"calibrant.{name}" else getattr(module, name)
