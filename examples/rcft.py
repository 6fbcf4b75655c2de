"""RCFT, its rivals and what beats them, where the truth is known: the tables of docs/rcft.md.

usage: python examples/rcft.py [--worlds runs/laboratory] [--seeds 0 1 2 3 4]
                               [--study few fresh ablation] [--minutes M] [--write]

Fine-tunes the aligned model of each laboratory world (examples/laboratory.py; what is missing of
it is made here) in every way of a study. Each way's numbers go to docs/results/rcft/SEED.json as
soon as they are known, so it may be killed at any moment and a later run goes on. About six
minutes a world on a quiet core, once the laboratory has made it. --write makes the tables of the
results there are.
"""

import argparse
import copy
import json
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

from calibrant import metrics
from calibrant.answers import AnswerTable
from calibrant.diagnosis.bounds import bounds
from calibrant.files import write_text
from calibrant.lab.story import IN, LabSettings, plan, take
from calibrant.lab.story import OUT as OTHER
from calibrant.lab.world import World
from calibrant.posthoc import DACA, TemperatureScaling
from calibrant.progress import progress
from calibrant.questions import Questions
from calibrant.report.tables import Table, number
from calibrant.scoring.local import score
from calibrant.training import CalibrationConfig, CalibrationTrainer, base

REPOSITORY = Path(__file__).parents[1]
PAGE, RESULTS = REPOSITORY / "docs/rcft.md", REPOSITORY / "docs/results/rcft"
ALIGNED, REFERENCE = "dpo-0.1", "sft"
LABELS = {"few": 500, "fresh": 4000, "ablation": 500}
HELD_OUT = 0.2  # of the labels, by the ways that stop early, fit a temperature or have an E-step
UNLABELLED = "spirits"  # domain of the unlabelled questions: neither the labelled nor the tested

CFT = {"learning_rate": 5e-4}
RCFT = {"method": "rcft", "ece_weight": 10.0}


@dataclass(frozen=True)
class Way:
    """One way to restore, and what it does with the labels.

    Attributes
    ----------
    settings : of `CalibrationConfig`.
    labels : "all" to train on, or "held-out": a fifth is kept for a temperature and, where they
        apply, the E-step and the choice of the epoch.
    stop : keep the epoch of least held-out NLL.
    at_temperature : train at the temperature of the model as it came, and keep that.
    unlabelled : unlabelled questions, as a multiple of the labels.
    mix : weight of the fine-tuned model in an average with the one it began as (WiSE-FT).
    ece_alone : no loss but the regulariser.
    temperature : fit one at the end.
    checkpoint : of the laboratory, where nothing is trained.
    """

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    labels: str = "held-out"
    stop: bool = False
    at_temperature: bool = False
    unlabelled: float = 0.0
    mix: float = 1.0
    ece_alone: bool = False
    temperature: bool = True
    checkpoint: str = ""


def ways(study: str) -> list[Way]:
    """All ways of a study, the most wanted first."""
    if study == "ablation":
        return _ablation()
    epochs = {"num_train_epochs": 3 if study == "few" else 2}
    stopped = {"num_train_epochs": 5} if study == "few" else epochs
    answers = {"question_weight": 0.0}  # the questions of a world are all alike
    tempered = CFT | epochs | {"method": "tempered-cft"} | answers
    return [
        Way("aligned", "aligned model", checkpoint=ALIGNED, temperature=False),
        Way("temperature", "temperature scaling", checkpoint=ALIGNED, labels="all"),
        Way("cft", "CFT, early stop, + temperature", CFT | stopped | {"method": "cft"}, stop=True),
        Way("tempered-unlabelled", "tempered CFT, λ = .3, + unlabelled",
            tempered, "all", unlabelled=1.0, temperature=False),
        Way("tempered", "tempered CFT, λ = .3", tempered, "all", temperature=False),
        Way("tempered-0", "tempered CFT, λ = 0", tempered | {"anchor_weight": 0.0}, "all",
            temperature=False),
        Way("rcft", "RCFT (SFT1, λ = 10), early stop, + temperature",
            CFT | stopped | RCFT | answers, stop=True),
        Way("brier", "Brier-SFT, early stop, + temperature",
            CFT | stopped | {"method": "brier"}, stop=True),
        Way("rcft-tempered", "RCFT (SFT1, λ = 10) at the temperature",
            CFT | epochs | RCFT | answers, at_temperature=True, temperature=False),
        Way("brier-tempered", "Brier-SFT at the temperature", CFT | epochs | {"method": "brier"},
            "all", at_temperature=True, temperature=False),
        Way("tempered-mix", "tempered CFT, λ = .3, + unlabelled, WiSE-FT ½",
            tempered, "all", unlabelled=1.0, mix=0.5, temperature=False),
        Way("tempered-1", "tempered CFT, λ = 1, + unlabelled", tempered | {"anchor_weight": 1.0},
            "all", unlabelled=1.0, temperature=False),
        Way("smoothing", "label smoothing, early stop, + temperature",
            CFT | stopped | {"method": "label-smoothing"}, stop=True),
        Way("reference", "(the model before alignment)", checkpoint=REFERENCE, temperature=False),
    ]  # fmt: skip


def _ablation() -> list[Way]:
    """Give the laboratory's fourth chapter, and one change at a time to its RCFT."""
    story = {step.name: step for step in plan(LabSettings())}
    rcft = story["rcft"].settings
    told = ("sft2", "sft1", "sft1-early", "sft1-early-temperature", "sft2-temperature", "rcft",
            "rcft-tanh", "released-in-sample", "released-frozen", "released-literal")  # fmt: skip

    def changed(name: str, title: str, labels: str = "held-out", **changes: Any) -> Way:
        return Way(name, f"RCFT, {title}", rcft | changes, labels=labels, temperature=False)

    return [
        *(Way(name, story[name].title, checkpoint=name, temperature=False) for name in told),
        Way("ece", "ECE term alone", rcft, ece_alone=True, temperature=False),
        changed("sft1-base", "SFT1 in place of SFT2", question_weight=0.0),
        *(changed(f"lambda-{v:g}", f"λ = {v:g}", ece_weight=v) for v in (1.0, 3.0, 30.0, 100.0)),
        *(changed(f"refresh-{v}", f"R = {v}", e_steps_per_epoch=v) for v in (0, 1)),
        *(changed(f"shrink-{v:g}", f"m = {v:g}", e_step_shrinkage=v) for v in (0.0, 50.0)),
        changed("share-05", "E-step on .05 of the labels", "held-out-.05"),
        changed("share-40", "E-step on .4 of the labels", "held-out-.4"),
    ]


class EceAlone(CalibrationTrainer):
    """The regulariser without a loss that knows the answers."""

    def question_losses(self, scores: Any, inputs: dict[str, Any]) -> Any:
        """Loss of each question, (Q,) float32."""
        return self._ece_loss(scores, inputs["option"])


class Bench:
    """One world: its questions, its models, and what a way makes of them."""

    def __init__(self, seed: int, worlds: Path) -> None:
        self.seed, self.folder = seed, worlds / str(seed)
        self.settings = LabSettings(seed=seed)
        self.world = World(seed, self.settings.ceiling)
        draw = self.world.questions
        n = self.settings.test
        self.tests = {  # as the laboratory's
            "in": draw(IN, n, 6, test=True),
            "out": draw(OTHER, n // 2, 6, test=True),
        }
        self.pools = {
            "few": draw(IN, self.settings.few, 5),
            "fresh": draw(IN, self.settings.fresh, 4),
        }
        self.pools["ablation"] = self.pools["few"]
        self.unlabelled = draw(UNLABELLED, self.settings.fresh, 7)
        self.met = draw(OTHER, 1000, 8)  # of the other domain, their labels not looked at

    def model(self, name: str) -> Any:
        """A checkpoint of the laboratory; the steps to the aligned model are taken if need be."""
        for step in plan(self.settings):
            wanted = step.name in ("pretrained", REFERENCE, ALIGNED)
            if wanted and not (self.folder / step.name / "done").exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                take(step, self.settings, str(self.folder))
        return AutoModelForCausalLM.from_pretrained(self.folder / name / "model").eval()

    @cached_property
    def tokenizer(self) -> Any:
        self.model(ALIGNED)
        return AutoTokenizer.from_pretrained(self.folder / ALIGNED / "model")

    @cached_property
    def met_before(self) -> AnswerTable:
        """What the model before alignment answers to the other domain's questions."""
        return self.answers(self.model(REFERENCE), self.met)

    def answers(self, model: Any, questions: Questions) -> AnswerTable:
        return score(
            model, self.tokenizer, questions, prompt="cloze", batch_tokens=1024,
            show_progress=False,
        )  # fmt: skip

    def take(self, study: str, way: Way) -> dict[str, Any]:
        """Restore in one way, and measure it in and out of domain."""
        start = time.process_time()
        labelled, held_out = self._labels(study, way)
        model, temperature = None, 1.0
        if way.settings or way.temperature:
            model = self.model(ALIGNED)
        if way.settings:
            if way.at_temperature:
                scaling = TemperatureScaling().fit(self.answers(model, labelled))
                temperature = scaling.temperature
            model, temperature = self._fine_tuned(model, labelled, held_out, way, temperature)
        if way.temperature:
            fitted_on = held_out if held_out is not None else labelled
            temperature = TemperatureScaling().fit(self.answers(model, fitted_on)).temperature
        found = {"temperature": temperature}
        for domain, questions in self.tests.items():
            if way.checkpoint:  # the laboratory has asked them
                name = f"{IN if domain == 'in' else OTHER}.parquet"
                table = AnswerTable.load(self.folder / way.checkpoint / "answers" / name)
            else:
                table = self.answers(model, questions)
            target = self.world.target(questions)
            found[domain] = measure(table, temperature, target)
            if domain == "out" and (way.settings or way.name == "temperature"):
                scaling = DACA().fit(self.answers(model, self.met), self.met_before)
                found["out, DACA"] = measure(table, scaling.temperature, target)
        return found | {"seconds": time.process_time() - start}

    def _labels(self, study: str, way: Way) -> tuple[Questions, Questions | None]:
        pool = self.pools[study]
        if way.labels == "all":
            return pool, None
        share = float(way.labels.removeprefix("held-out").removeprefix("-") or HELD_OUT)
        kept = round(len(pool) * (1 - share))
        return pool[:kept], pool[kept:]

    def _fine_tuned(
        self,
        model: Any,
        labelled: Questions,
        held_out: Questions | None,
        way: Way,
        temperature: float,
    ) -> tuple[Any, float]:
        before = copy.deepcopy(model.state_dict())
        how: dict[str, Any] = {"save_strategy": "no", "logging_strategy": "no"}
        if way.stop:
            how = {
                "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1,
                "save_only_model": True, "load_best_model_at_end": True,
                "metric_for_best_model": "nll", "greater_is_better": False,
                "logging_strategy": "no",
            }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            how = {"per_device_train_batch_size": 32} | how | way.settings
            arguments = CalibrationConfig(
                output_dir=folder, prompt="cloze", seed=self.seed, use_cpu=True, disable_tqdm=True,
                report_to="none", temperature=temperature if way.at_temperature else None, **how,
            )  # fmt: skip
            set_seed(self.seed)
            n = round(way.unlabelled * len(labelled))
            trainer = (EceAlone if way.ece_alone else CalibrationTrainer)(
                model=model, args=arguments, train_dataset=labelled,
                eval_dataset=held_out if way.stop else None,
                calibration_dataset=held_out, unlabelled_dataset=self.unlabelled[:n],
                processing_class=self.tokenizer,
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            temperature = trainer.temperature
            model = trainer.model.eval()
        if way.mix < 1:
            after = model.state_dict()
            model.load_state_dict({n: torch.lerp(before[n], after[n], way.mix) for n in before})
        return model, temperature


def measure(table: AnswerTable, temperature: float, target: Any) -> dict[str, float]:
    """Measure what depends on labels, and the same with the truth in their place."""
    table = table.with_logprobs(table.logprobs / temperature)
    probs, k = table.probs(), {"n_options": table.n_options}
    truth = bounds(probs, table.labels, target, **k)
    safe = np.log(np.where(target > 0, np.maximum(probs, 1e-300), 1.0))
    return {
        "accuracy": truth.accuracy,
        "mean_confidence": truth.mean_confidence,
        "conf_ece": truth.conf_ece,
        "nll": float(metrics.nll(probs, table.labels, **k)),
        "aurc": float(metrics.aurc(probs, table.labels, **k)),
        "tce": truth.tce,
        "true_accuracy": truth.expected_accuracy,
        "true_ece": truth.target_conf_ece,
        "true_nll": float(-(target * safe).sum(axis=1).mean()),
    }


# -- results ------------------------------------------------------------------------------------


def load(seed: int) -> dict[str, Any]:
    """Give the results of a world, "study/way" -> numbers."""
    path = RESULTS / f"{seed}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(seed: int, name: str, found: dict[str, Any]) -> None:
    """Add a way's numbers to its world's file."""
    rounded = json.loads(json.dumps(found), parse_float=lambda x: round(float(x), 5))
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = load(seed) | {name: rounded}
    content = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(lines.items()))
    write_text(RESULTS / f"{seed}.json", f"{{\n{content}\n}}\n")


def spread(values: list[float], digits: int = 3) -> str:
    """Mean over the worlds, and the range."""
    low, high = number(min(values), digits), number(max(values), digits)
    return f"{number(np.mean(values), digits)} [{low}, {high}]"


def results(study: str, worlds: list[dict[str, Any]]) -> Table:
    """One row a way, over the worlds that have it."""
    rows = []
    for way in ways(study):
        found = [w[f"{study}/{way.name}"] for w in worlds if f"{study}/{way.name}" in w]
        if not found:
            continue
        row = [way.title, str(len(found))]
        for domain in ("in", "out"):
            values = {k: [f[domain][k] for f in found] for k in found[0][domain]}
            row += [
                number(np.mean(values["true_accuracy"])),
                spread(values["conf_ece"]),
                spread(values["true_ece"]),
                number(np.mean(values["tce"])),
                spread(values["true_nll"]),
                number(np.mean(values["aurc"])),
            ]
        rows.append(tuple(row))
    each = ("acc", "conf-ECE", "true ECE", "TCE", "NLL", "AURC")
    return Table(("", "worlds", *each, *(f"other: {c}" for c in each)), tuple(rows))


def differences(study: str, rival: str, worlds: list[dict[str, Any]]) -> Table:
    """Each way less a rival, world by world: mean, range, and in how many worlds it is better."""
    rows = []
    for way in ways(study):
        names = (f"{study}/{way.name}", f"{study}/{rival}")
        pairs = [(w[names[0]], w[names[1]]) for w in worlds if set(names) <= set(w)]
        if way.name in (rival, "aligned", "reference") or not pairs:
            continue
        row = [way.title]
        for domain in ("in", "out"):
            for metric, sign in (("true_accuracy", -1), ("true_ece", 1), ("true_nll", 1)):
                change = [a[domain][metric] - b[domain][metric] for a, b in pairs]
                better = sum(sign * c < 0 for c in change)
                row.append(f"{spread(change)}, {better} of {len(pairs)}")
        rows.append(tuple(row))
    each = ("acc", "true ECE", "NLL")
    return Table(("", *each, *(f"other: {c}" for c in each)), tuple(rows))


def with_daca(study: str, worlds: list[dict[str, Any]]) -> Table:
    """The other domain with a temperature that DACA finds without labels."""
    rows = []
    for way in ways(study):
        found = [w[f"{study}/{way.name}"] for w in worlds if f"{study}/{way.name}" in w]
        found = [f for f in found if "out, DACA" in f]
        if not found:
            continue
        row = [
            way.title,
            str(len(found)),
            number(np.mean([f["out"]["true_accuracy"] for f in found])),
        ]
        for domain in ("out", "out, DACA"):
            row += [
                spread([f[domain][k] for f in found]) for k in ("conf_ece", "true_ece", "true_nll")
            ]
        rows.append(tuple(row))
    each = ("conf-ECE", "true ECE", "NLL")
    columns = ("", "worlds", "other: acc", *each, *(f"DACA: {c}" for c in each))
    return Table(columns, tuple(rows))


def replace_block(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=Path, default=REPOSITORY / "runs/laboratory")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--study", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--first", type=int, help="only so many ways of each study")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--write", action="store_true", help="into docs/rcft.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    base.ROW_TOKENS = 64  # long rows cost so small a model more in attention than they save
    todo = [
        (study, seed, way)
        for study in arguments.study
        for seed in arguments.seeds
        for way in ways(study)[: arguments.first]
        if f"{study}/{way.name}" not in load(seed)
    ]
    start, bench = time.monotonic(), None
    with progress("rcft", len(todo), "ways") as advance:
        for study, seed, way in todo:
            if time.monotonic() - start > 60 * arguments.minutes:
                break
            if bench is None or bench.seed != seed:
                bench = Bench(seed, arguments.worlds)
            keep(seed, f"{study}/{way.name}", bench.take(study, way))
            advance(1)
    if not arguments.write:
        return
    worlds = [load(seed) for seed in arguments.seeds]
    text = PAGE.read_text(encoding="utf-8")
    tables = {study: results(study, worlds) for study in LABELS}
    for study in ("few", "fresh"):
        tables[f"{study}-daca"] = with_daca(study, worlds)
        for rival in ("temperature", "cft"):
            tables[f"{study}-{rival}"] = differences(study, rival, worlds)
    for name, table in tables.items():
        text = replace_block(text, name, table.to_markdown() if table.rows else "Not run yet.")
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
