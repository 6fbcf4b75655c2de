"""The model card beside an adapter or calibrator: what it is, what it changed, under which terms.

A card is a ``README.md`` with a YAML head that the Hub reads: base model, licence, tags and, as
``model-index``, every measured number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from calibrant.files import parse_yaml, write_text
from calibrant.report.tables import comparison_tables, escape_markdown, one_line

if TYPE_CHECKING:
    from calibrant.diagnosis.report import CalibrationReport
    from calibrant.diagnosis.verdict import Verdict

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Metric of a report -> type and name in model-index.
_METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "conf_ece": ("expected_calibration_error", "conf-ECE, 10 bins"),
    "cw_ece": ("classwise_calibration_error", "cw-ECE, 10 bins"),
    "nll": ("nll", "negative log-likelihood"),
    "brier": ("brier_score", "Brier score, all options"),
    "auroc": ("roc_auc", "AUROC of confidence for correctness"),
}
_ABOUT = {
    "cft": "Calibration-aware fine-tuning: the answer's cross-entropy on labelled questions.",
    "rcft": "RCFT: fine-tuning on question and answer with an EM-based calibration term, its "
    "targets estimated on held-out questions.",
    "tempered-cft": "Tempered CFT: the answer's cross-entropy on labelled questions, the option "
    "scores divided by one temperature that was fitted before the training, and the question's own "
    "tokens.",
    "temperature": "Temperature scaling: one number divides the log-probabilities, chosen for the "
    "least negative log-likelihood. Predictions stay as they were.",
}
CARD = ("README.md", "reliability.png")  # what `write_card` writes
_TERMS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the numbers.

    Attributes
    ----------
    model : Hub id or folder of the model that was restored. method : as `calibrant restore` has it.
    kind : "adapter", "model" or "calibrator". prompt : how questions are asked.
    train : sources of the labelled questions. n_train : how many were used.
    settings : of the method. versions : package -> version.
    calibrated : whether the weights of an adapter or model have a ``calibrator.json`` of their own.
    """

    model: str
    method: str
    kind: str
    prompt: Mapping[str, Any] | str
    train: Sequence[str]
    n_train: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    calibrated: bool = False


def model_card(
    facts: CardFacts,
    reports: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Verdict],
    *,
    picture: str | None = None,
) -> str:
    """Write the card as text.

    Parameters
    ----------
    reports : test set -> "before" and the method -> report. verdicts : test set -> verdict.
    picture : file name of the reliability diagrams beside the card.
    """
    name = f"{Path(facts.model).name}-{facts.method}"
    head = yaml.safe_dump(
        _head(facts, name, reports), sort_keys=False, allow_unicode=True, width=100
    )
    judged = {s: {facts.method: v} for s, v in verdicts.items()}
    tables = comparison_tables(reports, judged)
    parts = [
        f"---\n{head}---\n",
        f"# {escape_markdown(name)}\n",
        f"{escape_markdown(facts.model)} with its calibration restored: the probabilities it gives "
        "to the options of a multiple-choice question are meant to be as often right as they "
        "say.\n",
        "## Before and after\n",
        *(table.to_markdown() for table in tables),
    ]
    if picture is not None:
        parts.append(f"![Reliability diagrams, before and after]({picture})\n")
    parts += [
        "Intervals are 95 %, over questions. What holds on these questions need not hold on "
        "others: measure on your own with `calibrant evaluate`.\n",
        "## Method\n",
        f"`{facts.method}`. {_ABOUT.get(facts.method, 'See the documentation of calibrant.')}\n",
        _list({**facts.settings, "prompt": str(facts.prompt)}),
        "## Data\n",
        f"{facts.n_train:,} labelled questions from "
        f"{', '.join(escape_markdown(source) for source in facts.train)}. Questions that also "
        "occur in a test set were left out of training unless the settings say otherwise.\n",
        "## Use\n",
        _use(facts),
        "## Licence\n",
        "What was made from a model is under that model's terms, and the training questions have "
        "terms of their own. " + _terms_text(_terms(facts.model)) + "\n",
        "## Versions\n",
        _list(facts.versions),
    ]
    return "\n".join(parts)


def write_card(
    folder: str | os.PathLike[str],
    facts: CardFacts,
    reports: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Verdict],
) -> None:
    """Write ``README.md`` and ``reliability.png`` into the folder of an adapter or calibrator."""
    from calibrant.report.figures import (
        plot_reliability_grid,
        reliability_of_report,
        save_figure,
    )

    path = Path(folder)
    columns = list(dict.fromkeys(m for by_method in reports.values() for m in by_method))
    cells = [[reliability_of_report(by[m]) for m in columns] for by in reports.values()]
    figure = plot_reliability_grid(cells, rows=list(reports), columns=columns)
    save_figure(figure, path / "reliability", formats=("png",))
    text = model_card(facts, reports, verdicts, picture="reliability.png")
    write_text(path / "README.md", text)


def _head(
    facts: CardFacts, name: str, reports: Mapping[str, Mapping[str, CalibrationReport]]
) -> dict[str, Any]:
    head: dict[str, Any] = {"library_name": "peft" if facts.kind == "adapter" else "transformers"}
    if facts.kind == "calibrator":
        head["library_name"] = "calibrant"
    if is_hub_id(facts.model):
        head["base_model"] = facts.model
        head["base_model_relation"] = "adapter" if facts.kind == "adapter" else "finetune"
    head |= _terms(facts.model) or {"license": "unknown"}
    head["tags"] = ["calibration", "calibrant", "multiple-choice", facts.method]
    if datasets := [source.split(":")[0] for source in facts.train if is_hub_id(source)]:
        head["datasets"] = list(dict.fromkeys(datasets))
    head["model-index"] = [{"name": name, "results": [*_results(facts.method, reports)]}]
    return head


def is_hub_id(source: str) -> bool:
    """Whether this names something on the Hub rather than a file or folder here.

    Examples
    --------
    >>> is_hub_id("HuggingFaceTB/SmolLM2-135M-Instruct"), is_hub_id("data/train.jsonl")
    (True, False)
    """
    there = source.split(":")[0]
    is_file = re.search(r"\.(jsonl|csv|parquet|gz)$", there) is not None
    return bool(_HUB_ID.fullmatch(there)) and not is_file and not Path(there).exists()


def _results(method: str, reports: Mapping[str, Mapping[str, CalibrationReport]]) -> Any:
    for name, by_method in reports.items():
        report = by_method[method]
        yield {
            "task": {"type": "multiple-choice", "name": "Multiple-choice questions"},
            "dataset": {"type": one_line(name), "name": one_line(name)},
            "metrics": [
                {"type": kind, "value": round(report[metric].value, 6), "name": words}
                for metric, (kind, words) in _METRICS.items()
                if metric in report and abs(report[metric].value) < float("inf")
            ],
        }


def _terms(model: str) -> dict[str, str]:
    """Licence fields of the base model's own card, if it lies here."""
    card = Path(model) / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
        head = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
        values = parse_yaml(head[1]) if head else None
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: one_line(str(values[name])) for name in _TERMS if values.get(name)}


def _terms_text(terms: Mapping[str, str]) -> str:
    if not terms:
        return (
            "The base model's licence was not at hand: fill in `license` above before you share "
            "this."
        )
    said = terms.get("license_name", terms["license"])
    link = f" ({escape_markdown(terms['license_link'])})" if "license_link" in terms else ""
    return f"The base model's: {escape_markdown(said)}{link}."


def _list(values: Mapping[str, Any]) -> str:
    lines = [
        f"- {escape_markdown(str(name).replace('_', ' '))}: {escape_markdown(str(value))}"
        for name, value in values.items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"


def _use(facts: CardFacts) -> str:
    if facts.kind == "calibrator":
        return (
            "```python\nimport calibrant as cal\n\n"
            'calibrator = cal.posthoc.load("calibrator.json")\n'
            "calibrated = calibrator.transform(answers)  # an AnswerTable of the base model\n```\n"
        )
    load = f'model = AutoModelForCausalLM.from_pretrained("{_code(facts.model)}")'
    also = ""
    if facts.kind == "adapter":
        also = '\nmodel = PeftModel.from_pretrained(model, "ADAPTER")  # this folder'
    else:
        load = 'model = AutoModelForCausalLM.from_pretrained("MODEL")  # this folder'
    imports = "from peft import PeftModel\n" if facts.kind == "adapter" else ""
    probabilities = "probabilities = cal.score(model, tokenizer, questions, prompt=prompt).probs()"
    before = ""
    if facts.calibrated:
        before = (
            "These weights were trained for probabilities that go through `calibrator.json`, which "
            "came with them, in the run's folder of this method or on the Hub beside this card: "
            "keep it, and apply it.\n\n"
        )
        probabilities = (
            "answers = cal.score(model, tokenizer, questions, prompt=prompt)\n"
            'calibrator = cal.posthoc.load("calibrator.json")\n'
            "probabilities = calibrator.transform(answers).probs()"
        )
    return (
        f"{before}```python\nimport calibrant as cal\n{imports}"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{_code(facts.model)}")\n{load}{also}\n'
        f"prompt = {facts.prompt!r}\n"
        f"{probabilities}\n```\n"
    )


def _code(text: str) -> str:
    """Make a path safe inside a quoted string of a code block."""
    return one_line(text).replace("\\", "/").replace('"', "").replace("`", "")
