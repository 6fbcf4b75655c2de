"""Every remedy under one protocol, on real models; writes docs/results/protocol.md.

usage: python examples/protocol.py [--data ../shared/data] [--only NAME ...] [--minutes M] [--write]

Work is cut into units: one method, one seed, one number of labels. A finished unit's results are
small files under docs/results/protocol/, kept with the project, so any later run goes on where the
last one stopped; an unfinished one goes on from its checkpoint or half-scored questions in
runs/protocol/. It may be killed at any moment. --write makes the page of the units there are.
With SmolLM2, 3,000 labels and the tests are about an hour of one core a training.

Post-hoc methods need no unit of their own: they are fitted on the model's answers to the training
questions, and applied to its answers to the test questions.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.files import replacing, write_json, write_text
from calibrant.prompts import Prompt
from calibrant.questions import Questions, drop_overlap, load_questions

REPOSITORY = Path(__file__).parents[1]
SEED = 0  # of the choice of questions; a unit's own seed is that of its training
BEFORE = "before"
PRIDE = "pride"  # letter-prior debiasing: no labels, and questions in all orders of their options
PRIDE_SHARE = 0.02  # of the test questions, their labels unread
IN = ("openbookqa/test", "medmcqa/validation", "mmlu/test")
OUT = ("arc_challenge/test", "arc_easy/test")
# Training questions by source, as in the paper; a smaller budget takes the same shares of each.
SHARES = {"openbookqa/train": 2, "medmcqa/train_partial": 1, "mmlu/dev+val": 3}
BEST = ("tempered-cft", "cft", "brier", "rcft")  # with three seeds
OTHERS = ("label-smoothing", "sft", "focal", "entropy", "cogcalib", "rcft-released")
# "tempered-cft" is here without the question's own tokens, QUESTIONS is what restore runs.
QUESTIONS = "tempered-cft-questions"
RCFT_SFT1 = "rcft-without-questions"
ECE_ALONE = "ece-alone"  # the regulariser without a loss that knows the answers
SET_ASIDE = {"calibration_fraction": 0.2}  # rcft as it was when most units ran
RCFT_PARTS: dict[str, dict[str, Any]] = {  # of CalibrationConfig, one change at a time
    "all-labels": {"calibration_fraction": None},
    "lambda-3": {"ece_weight": 3.0},
    "lambda-10": {"ece_weight": 10.0},
    "r-0": {"e_steps_per_epoch": 0},
    "r-1": {"e_steps_per_epoch": 1},
    "m-0": {"e_step_shrinkage": 0.0},
    "m-50": {"e_step_shrinkage": 50.0},
    "share-05": {"calibration_fraction": 0.05},
    "share-40": {"calibration_fraction": 0.4},
    "in-sample": {"e_step_data": "training"},
    "tanh": {"target": "tanh"},
    "sft1": {"question_weight": 0.0},
    ECE_ALONE: {"question_weight": 0.0},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # method and settings, where not the default
    "tempered-cft": ("tempered-cft", {"question_weight": 0.0}),
    QUESTIONS: ("tempered-cft", {}),
    "rcft": ("rcft", SET_ASIDE),
    RCFT_SFT1: ("rcft", SET_ASIDE | {"question_weight": 0.0}),
    **{name: ("rcft", SET_ASIDE | changes) for name, changes in RCFT_PARTS.items()},
}
PAIR_TOKENS = 384  # preference pairs whose prompt with its longer answer takes more are left out


@dataclass(frozen=True)
class Setup:
    """One model and prompt, and how much of everything.

    Attributes
    ----------
    labels : training questions of the full budget. test : questions of each test set, at most.
    pairs : preference pairs scored after each method. batch : questions of a training step.
    beside : the setup whose units its own are compared with, where not its own.
    """

    name: str
    title: str
    model: str
    prompt: str
    labels: int
    test: int
    pairs: int
    batch: int = 8
    beside: str = ""


SETUPS = {
    s.name: s
    for s in (
        Setup("smollm2", "SmolLM2-135M-Instruct, cloze", "smollm2-135m-instruct", "cloze",
              3000, 2000, 100),
        Setup("smollm2-all", "SmolLM2-135M-Instruct, cloze, batches of 32, every test question",
              "smollm2-135m-instruct", "cloze", 3000, 10**6, 0, batch=32),
        Setup("smollm2-rcft", "SmolLM2-135M-Instruct, cloze: RCFT, one setting changed at a time",
              "smollm2-135m-instruct", "cloze", 3000, 2000, 100, beside="smollm2"),
        Setup("qwen-0.5b", "Qwen2.5-Coder-0.5B-Instruct, letter", "qwen2.5-coder-0.5b-instruct",
              "letter", 3000, 500, 0),
        Setup("qwen-0.5b-chat", "Qwen2.5-Coder-0.5B-Instruct, chat-letter",
              "qwen2.5-coder-0.5b-instruct", "chat-letter", 3000, 500, 0),
        Setup("qwen-1.5b", "Qwen2.5-Coder-1.5B-Instruct, letter", "qwen2.5-coder-1.5b-instruct",
              "letter", 3000, 500, 0),
        Setup("qwen-1.5b-chat", "Qwen2.5-Coder-1.5B-Instruct, chat-letter",
              "qwen2.5-coder-1.5b-instruct", "chat-letter", 3000, 500, 0),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """One training: a method, its seed, and how many labelled questions it had."""

    setup: str
    method: str
    labels: int
    seed: int = 0

    @property
    def name(self) -> str:
        """``setup/method-labels-seed``, as --only takes it and as its folder is called."""
        return f"{self.setup}/{self.method}-n{self.labels}-s{self.seed}"


def units() -> Iterator[Unit]:
    """Give all units, the most useful first."""
    yield Unit("smollm2", BEFORE, 3000)
    for method in (*BEST, *OTHERS):
        yield Unit("smollm2", method, 3000)
    yield Unit("qwen-0.5b", BEFORE, 3000)
    yield Unit("qwen-0.5b-chat", BEFORE, 3000)
    for method in ("cft", "rcft", "brier", "tempered-cft", "sft", RCFT_SFT1):
        yield Unit("qwen-0.5b", method, 3000)
    for seed in (1, 2):
        yield from (Unit("smollm2", method, 3000, seed) for method in BEST)
    for method in ("tempered-cft", "cft"):
        yield from (Unit("smollm2", method, labels) for labels in (1000, 300, 100))
    for labels in (1000, 3000):
        yield Unit("smollm2", QUESTIONS, labels)
    for part in RCFT_PARTS:
        yield Unit("smollm2-rcft", part, 3000)
    for method in (BEFORE, "cft", "rcft", "tempered-cft"):
        yield Unit("smollm2-all", method, 3000)
    yield Unit("qwen-1.5b", BEFORE, 3000)
    yield Unit("qwen-1.5b-chat", BEFORE, 3000)
    for name in ("qwen-0.5b", "qwen-0.5b-chat", "qwen-1.5b", "qwen-1.5b-chat"):
        yield Unit(name, PRIDE, 0)


# -- questions ----------------------------------------------------------------------------------


def questions_of(source: str, data: Path) -> Questions:
    """Questions of ``folder/split``, or of several splits joined by +, ids made unique."""
    folder, _, splits = source.partition("/")
    parts = [load_questions(data / folder / f"{s}.jsonl.gz") for s in splits.split("+")]
    name = source.replace("/", "-")
    return Questions([replace(q, id=f"{name}:{q.id}") for part in parts for q in part], name)


def test_questions(setup: Setup, data: Path) -> dict[str, Questions]:
    """Test sets by name: a seeded random sample of each."""
    return {s: questions_of(s, data).sample(setup.test, SEED) for s in (*IN, *OUT)}


def train_questions(labels: int, tests: dict[str, Questions], data: Path) -> Questions:
    """Training questions that are in no test set; a smaller budget's are among a larger one's."""
    total = sum(SHARES.values())
    chosen, share_so_far = [], 0
    for source, share in SHARES.items():
        pool = drop_overlap(questions_of(source, data), *tests.values())[0]
        share_so_far += share
        n = labels * share_so_far // total - len(chosen)
        order = random.Random(SEED).sample(range(len(pool)), len(pool))
        chosen += [pool[k] for k in sorted(order[:n])]
    return Questions(chosen, "protocol-train")


# -- work ---------------------------------------------------------------------------------------


class Work:
    """Runs units; the model as it came is loaded once."""

    def __init__(self, data: Path, models: Path, runs: Path, results: Path) -> None:
        self.data, self.models, self.runs, self.results = data, models, runs, results

    def done(self, unit: Unit) -> bool:
        """Whether a unit's results are there."""
        return (self.results / unit.name / "unit.json").exists()

    def run(self, unit: Unit) -> None:
        """Train, score the tests and the preference pairs, and keep the results."""
        from calibrant.restore import peak_memory_gb
        from calibrant.runs import versions
        from calibrant.scoring.models import load_model

        setup = SETUPS[unit.setup]
        work, kept = self.runs / unit.name, self.results / unit.name
        work.mkdir(parents=True, exist_ok=True)
        kept.mkdir(parents=True, exist_ok=True)
        tests = test_questions(setup, self.data)
        everything = Questions([q for part in tests.values() for q in part], "protocol-tests")
        if unit.method == PRIDE:
            self._letter_prior(everything, unit, kept)
            return
        train = train_questions(unit.labels, tests, self.data)
        sample = train.sample(250, SEED)
        model, tokenizer = load_model(str(self.models / setup.model), dtype="float32")
        cost: dict[str, float] = {"labels": 0 if unit.method == BEFORE else len(train)}
        if unit.method != BEFORE:
            model, spent = self._train(model, tokenizer, train, unit, work)
            cost |= spent
        self._score(model, tokenizer, everything, setup, work, "tests")
        asked = train if unit.method == BEFORE else sample
        self._score(model, tokenizer, asked, setup, work, "train")
        if setup.pairs:
            self._score_pairs(model, tokenizer, setup, work)
        for file in sorted(work.glob("cost-*.json")):
            cost |= json.loads(file.read_text(encoding="utf-8"))
        for name in ("train", "tests"):
            save_scores(AnswerTable.load(work / f"{name}.parquet"), kept / f"{name}.parquet",
                        whole=unit.method == BEFORE)  # fmt: skip
        for name in ("pairs.json", "online.json", "calibrator.json"):
            if (work / name).exists():
                write_text(kept / name, (work / name).read_text(encoding="utf-8"))
        cost["peak_memory_gb"] = peak_memory_gb()
        content = {
            "method": unit.method,
            "labels": unit.labels,
            "seed": unit.seed,
            "model": setup.model,
            "prompt": Prompt.of(setup.prompt).to_json(),
            "train_fingerprint": train.fingerprint,
            "tests_fingerprint": everything.fingerprint,
            "device": device_name(model),
            "cost": cost,
            "versions": versions(),
        }
        write_json(kept / "unit.json", content)

    def _letter_prior(self, everything: Questions, unit: Unit, kept: Path) -> None:
        """Fit the letter prior on a share of the test questions, in cyclic orders."""
        from calibrant.permutations import estimation_sample, in_every_order
        from calibrant.posthoc import PriDe
        from calibrant.restore import peak_memory_gb
        from calibrant.runs import versions
        from calibrant.scoring.local import score
        from calibrant.scoring.models import load_model

        setup, work = SETUPS[unit.setup], self.runs / unit.name
        model, tokenizer = load_model(str(self.models / setup.model), dtype="float32")
        rows = estimation_sample([len(q.choices) for q in everything], PRIDE_SHARE, SEED)
        partial = work / "pride.partial"
        fresh, cpu, wall = not partial.exists(), time.process_time(), time.monotonic()
        answers = in_every_order(
            lambda asked: score(model, tokenizer, asked, prompt=setup.prompt, partial=partial),
            everything.select(rows), "cyclic", SEED,
        )  # fmt: skip
        PriDe().fit(answers).save(kept / "pride.json")
        cost = {"labels": 0, "peak_memory_gb": peak_memory_gb()}
        if fresh:  # else it is not known what the interrupted run took
            cost |= {
                "training_seconds": time.monotonic() - wall,
                "training_cpu_seconds": time.process_time() - cpu,
            }
        content = {
            "method": PRIDE,
            "labels": 0,
            "seed": unit.seed,
            "model": setup.model,
            "prompt": Prompt.of(setup.prompt).to_json(),
            "questions": len(rows),
            "rows": len(answers),
            "device": device_name(model),
            "cost": cost,
            "versions": versions(),
        }
        write_json(kept / "unit.json", content)

    def _train(
        self, model: Any, tokenizer: Any, train: Questions, unit: Unit, work: Path
    ) -> tuple[Any, dict[str, float]]:
        from calibrant.restore import RestoreSettings, fine_tune

        setup, file = SETUPS[unit.setup], work / "trained.json"
        if not file.exists():
            method, changes = VARIANTS.get(unit.method, (unit.method, {}))
            settings = RestoreSettings(
                model=setup.model, train=("-",), evaluate=("-",), methods=(method,),
                prompt=setup.prompt, seed=unit.seed, batch_size=setup.batch,
            )  # fmt: skip
            alone = unit.method == ECE_ALONE
            recorder = recording_trainer(work / "online.jsonl", changes, ece_alone=alone)
            _, cost = fine_tune(
                model, tokenizer, train, method, settings, work, trainer_class=recorder
            )
            write_text(work / "online.json", online_scores(work / "online.jsonl"))
            write_json(file, cost)
            from calibrant.scoring.models import load_model

            model, _ = load_model(str(self.models / setup.model), dtype="float32")
        from calibrant.scoring.models import with_adapter

        trained = with_adapter(model, str(work / "adapter"))
        return trained, json.loads(file.read_text(encoding="utf-8"))

    def _score(
        self, model: Any, tokenizer: Any, questions: Questions, setup: Setup, work: Path, name: str
    ) -> None:
        from calibrant.runs import answers_at
        from calibrant.scoring.local import score

        def ask(partial: Path) -> AnswerTable:
            fresh, cpu, wall = not partial.exists(), time.process_time(), time.monotonic()
            table = score(model, tokenizer, questions, prompt=setup.prompt, partial=partial)
            if fresh:  # else it is not known what the interrupted run took
                cost = {
                    f"{name}_seconds": time.monotonic() - wall,
                    f"{name}_cpu_seconds": time.process_time() - cpu,
                    f"{name}_tokens": table.provenance["tokens"],
                }
                write_json(work / f"cost-{name}.json", cost)
            return table

        answers_at(work / f"{name}.parquet", ask)

    def _score_pairs(self, model: Any, tokenizer: Any, setup: Setup, work: Path) -> None:
        """Log-probabilities of the chosen and the rejected answer, and their tokens."""
        from calibrant.preferences import load_preferences
        from calibrant.scoring.local import score_encoded
        from calibrant.training.preference import encode_preferences

        if (work / "pairs.json").exists():
            return
        pairs = load_preferences(self.data / "preferences/ultrafeedback_validation.jsonl.gz")
        random.Random(SEED).shuffle(pairs)
        encoded = encode_preferences(pairs, tokenizer)
        encoded = [q for q in encoded if q.longest <= PAIR_TOKENS][: setup.pairs]
        scores = score_encoded(model, tokenizer, encoded, partial=work / "pairs.partial")
        rows = [
            {"id": q.id, "chosen": round(c, 4), "rejected": round(r, 4),
             "tokens": [len(reads) for reads in q.reads]}
            for q, (c, r) in zip(encoded, scores.tolist(), strict=True)
        ]  # fmt: skip
        write_text(work / "pairs.json", json.dumps(rows) + "\n")


def device_name(model: Any) -> str:
    """Name of what a model runs on, as its maker has it for a GPU."""
    import torch

    kind = str(model.device.type)
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def recording_trainer(file: Path, changes: dict[str, Any], *, ece_alone: bool = False) -> type:
    """Build a trainer that notes each training question's scores as it is met.

    In the first epoch a question is predicted before it is learnt, so these are the predictions of
    a model that has not seen it: labels for a calibrator that cost nothing.

    Parameters
    ----------
    changes : settings of `CalibrationConfig` that the trainer gets in place of its own.
    """
    from rcft import EceAlone

    from calibrant.training import CalibrationTrainer

    class Recording(EceAlone if ece_alone else CalibrationTrainer):  # type: ignore[misc]
        def __init__(self, *, args: Any, **others: Any) -> None:
            super().__init__(args=replace(args, **changes), **others)

        def question_losses(self, scores: Any, inputs: dict[str, Any]) -> Any:
            rows = zip(inputs["ids"], scores.detach().cpu().tolist(), strict=True)
            with file.open("a", encoding="utf-8") as log:
                for name, row in rows:
                    known = [round(s, 4) for s in row if s > -np.inf]
                    log.write(json.dumps([self.state.global_step, name, known]) + "\n")
            return super().question_losses(scores, inputs)

    return Recording


def online_scores(file: Path) -> str:
    """Give the recorded scores as JSON, id -> [step, scores], the last where a step was redone."""
    last = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            step, name, scores = json.loads(line)
        except ValueError:  # cut off when the process was killed; the step was redone
            continue
        last[name] = [step, scores]
    return json.dumps(last, separators=(",", ":")) + "\n"


# -- small files --------------------------------------------------------------------------------


def save_scores(table: AnswerTable, path: Path, *, whole: bool) -> None:
    """Keep ids and option scores in float32, as the model gave them; with labels if whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row[:k] for row, k in zip(table.logprobs, table.n_options, strict=True)]
    columns = {"id": pa.array(table.ids), "logprobs": pa.array(rows, pa.list_(pa.float32()))}
    if whole:
        columns |= {
            "label": pa.array(table.labels, pa.int8()),
            "option_mass": pa.array(table.option_mass, pa.float32()),
            "task": pa.array(table.tasks).dictionary_encode(),
            "group": pa.array([bytes.fromhex(g) for g in table.groups]),
        }
    with replacing(path) as draft:
        pq.write_table(pa.table(columns), draft, compression="zstd", compression_level=19)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs/protocol")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "docs/results/protocol")
    parser.add_argument("--only", nargs="+", default=[""], help="units whose names begin so")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not")
    parser.add_argument("--write", action="store_true", help="write the page of what is done")
    arguments = parser.parse_args()
    work = Work(arguments.data, arguments.models, arguments.runs, arguments.results)
    chosen = [u for u in units() if u.name.startswith(tuple(arguments.only))]
    if arguments.write:
        from protocol_page import write_page

        write_page(arguments.results.parent)
        return
    if arguments.list:
        for unit in chosen:
            print("done " if work.done(unit) else "to do", unit.name)
        return
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data}: no such folder; give the questions with --data")
    start = time.monotonic()
    for unit in chosen:
        if work.done(unit):
            continue
        if time.monotonic() - start > 60 * arguments.minutes:
            break
        print(f"{time.strftime('%H:%M')} {unit.name}", flush=True)
        work.run(unit)


if __name__ == "__main__":
    main()
