"""The whole story in one run folder: pre-training, alignment, and what restores calibration.

Each checkpoint is a folder with its model and its answer tables, laid out as the other commands
lay out theirs, so that ``calibrant compare``, ``collapse`` and ``diagnose`` work on them. Branches
are independent of each other and run in processes of their own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.diagnosis.bounds import Bounds, bounds
from calibrant.diagnosis.collapse import CollapseReport, collapse
from calibrant.errors import InputError
from calibrant.files import read_json, write_json, write_text
from calibrant.lab.world import DOMAINS, World
from calibrant.metrics.inference import Estimate, bootstrap_intervals
from calibrant.progress import progress
from calibrant.questions import Questions
from calibrant.runs import TRAIN, open_run, versions

IN, OUT = "wildlife", "trades"  # the domain that labels come from, and one without labels
PROMPT = "cloze"
TRUTH = "truth"  # folder of the true probabilities, as answer tables
WATCHED = 400  # test questions, the first, on which trainings on few labels are watched

# Draws of the world; no two stages see the same questions but by chance.
_CORPUS, _SFT, _PAIRS, _FRESH, _FEW, _TEST = range(1, 7)


@dataclass(frozen=True)
class LabSettings:
    """Sizes of the story.

    Attributes
    ----------
    seed : of the world, the draws and the training.
    ceiling : ACC*, the accuracy that no model can pass on fresh questions.
    texts : of the pre-training corpus. layers : of the Llama.
    sft_questions, pairs : of each domain, for SFT and for alignment.
    betas : of DPO; the last one's model is the *aligned* model that is to be restored.
    fresh : labelled questions of the calibratable regime.
    few : labelled questions of the non-calibratable regime, of which ``held_out`` are kept for the
        E-step, early stopping or a temperature by the methods that need them.
    epochs : passes over the few. ece_weight : λ of RCFT.
    test : test questions of the labelled domain; the other domain has half of that.
    """

    seed: int = 0
    ceiling: float = 0.65
    texts: int = 60_000
    layers: int = 2
    sft_questions: int = 3_000
    pairs: int = 4_000
    betas: tuple[float, ...] = (1.0, 0.3, 0.1)
    fresh: int = 4_000
    few: int = 500
    held_out: int = 100
    epochs: int = 40
    ece_weight: float = 10.0
    test: int = 3_000


# For `calibrant demo`, which is to take minutes: fewer pairs, passes and test questions.
DEMO: dict[str, Any] = {"pairs": 3_000, "epochs": 12, "test": 1_500}

FAST: dict[str, Any] = {
    "texts": 12_000,
    "layers": 1,
    "sft_questions": 600,
    "pairs": 800,
    "fresh": 800,
    "few": 200,
    "held_out": 50,
    "epochs": 6,
    "test": 600,
}


@dataclass(frozen=True)
class Step:
    """One checkpoint: which model it starts from, and what is done to it.

    Attributes
    ----------
    name : of its folder. title : in tables and figures.
    chapter : index into `CHAPTERS`.
    kind : "pretrain", "fine-tune", "align" or "temperature".
    after : the checkpoint it starts from.
    data : which questions: "fresh", "few", "repeated"; "" where the kind tells.
    settings : of the training.
    held_out : what the held-out questions are for: "e-step", "stopping" or "".
    """

    name: str
    title: str
    chapter: int
    kind: str
    after: str = ""
    data: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    held_out: str = ""


CHAPTERS = (
    "A model that knows what it does not know",
    "Preference alignment",
    "The calibratable regime: fresh labels",
    "The non-calibratable regime: few labels, many times over",
    "The cascade: what the calibration term does where nothing else holds it",
)


def dpo_name(beta: float) -> str:
    """Folder of the DPO checkpoint of a β."""
    return f"dpo-{beta:g}"


def plan(s: LabSettings) -> list[Step]:
    """List every checkpoint of the story; a step comes after the one it starts from."""
    aligned = dpo_name(s.betas[-1])
    repeated = {"num_train_epochs": 20, "learning_rate": 1e-3}
    few: dict[str, Any] = {
        "num_train_epochs": s.epochs,
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-3,
    }
    rcft = few | {"method": "rcft", "ece_weight": s.ece_weight}
    in_sample = rcft | {"e_step_data": "training", "target": "tanh"}
    # At this weight the labels are not heard: the gradient is the calibration term's.
    alone = {"ece_weight": 1000.0, "num_train_epochs": max(1, s.epochs // 2)}
    answers_only = {"method": "sft", "question_weight": 0.0}
    steps = [
        Step("pretrained", "pre-trained", 0, "pretrain"),
        Step("sft", "SFT", 0, "fine-tune", "pretrained", "sft", answers_only),
    ]
    steps += [
        Step(dpo_name(b), f"DPO, β = {b:g}", 1, "align", "sft", settings={"beta": b})
        for b in s.betas
    ]
    steps += [
        Step(
            "preference-matching",
            "preference matching",
            1,
            "align",
            "sft",
            settings={"loss": "preference-matching"},
        ),
        Step("sft2", "SFT2", 3, "fine-tune", aligned, "few", few | {"method": "sft"}),
        Step("rcft", "RCFT, held out", 3, "fine-tune", aligned, "few", rcft, "e-step"),
        Step(
            "rcft-tanh", "RCFT, published map", 3, "fine-tune", aligned, "few",
            rcft | {"target": "tanh"}, "e-step",
        ),
        Step(
            "released-frozen", "released, repaired, frozen", 3, "fine-tune", aligned, "few",
            in_sample | {"e_steps_per_epoch": 0},
        ),
        Step(
            "released-in-sample", "released, repaired, in-sample", 3, "fine-tune", aligned, "few",
            in_sample,
        ),
        Step(
            "released-literal", "released, literal", 3, "fine-tune", aligned, "few",
            few | {"method": "rcft-released"},
        ),
        Step("sft1", "SFT1", 3, "fine-tune", aligned, "few", few | answers_only),
        Step(
            "sft1-early", "SFT1, early stop", 3, "fine-tune", aligned, "few",
            few | answers_only | {"num_train_epochs": min(8, s.epochs)}, "stopping",
        ),
        Step("sft2-temperature", "SFT2 + temperature", 3, "temperature", "sft2", "few"),
        Step(
            "sft1-early-temperature", "SFT1, early stop + temperature", 3, "temperature",
            "sft1-early", "few",
        ),
        Step("few-temperature", "temperature alone, few labels", 3, "temperature", aligned, "few"),
        Step("temperature", "temperature", 2, "temperature", aligned, "fresh"),
        Step("cft", "CFT, fresh labels", 2, "fine-tune", aligned, "fresh",
             {"method": "cft", "learning_rate": 1e-3}),
        Step("cft-repeated", "CFT, few labels, 20 times", 2, "fine-tune", aligned, "repeated",
             repeated | {"method": "cft"}),
        Step("alone-frozen", "calibration term alone, frozen", 4, "fine-tune", aligned, "few",
             in_sample | {"e_steps_per_epoch": 0} | alone),
        Step("alone-held-out", "calibration term alone, held out", 4, "fine-tune", aligned, "few",
             rcft | alone, "e-step"),
    ]  # fmt: skip
    return steps


@dataclass
class Checkpoint:
    """A step that has been taken.

    Attributes
    ----------
    tables : "wildlife", "trades" (test sets) and "train" (the questions it was tuned on, where
        there are any) -> AnswerTable.
    path : record of the trainings on few labels, about ten times each: list of dicts.
    """

    step: Step
    folder: Path
    tables: dict[str, AnswerTable]
    path: list[dict[str, float]]


@dataclass
class Story:
    """Everything the laboratory found."""

    folder: Path
    settings: LabSettings
    world: World
    checkpoints: dict[str, Checkpoint]
    _known: dict[tuple[str, ...], Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Checkpoint:
        return self.checkpoints[name]

    def of(self, chapter: int) -> list[Checkpoint]:
        """Checkpoints of a chapter, in the story's order."""
        return [
            self.checkpoints[s.name]
            for s in plan(self.settings)
            if s.chapter == chapter and s.name in self.checkpoints
        ]

    def checkpoints_in_order(self) -> list[Checkpoint]:
        """Every checkpoint, in the story's order."""
        return [c for chapter in range(len(CHAPTERS)) for c in self.of(chapter)]

    @cached_property
    def _targets(self) -> dict[str, NDArray[np.float64]]:
        s, world = self.settings, self.world
        drawn = (
            world.questions(IN, s.test, _TEST, test=True),
            world.questions(OUT, s.test // 2, _TEST, test=True),
            world.questions(IN, s.fresh, _FRESH),
            world.questions(IN, s.few, _FEW),
        )
        return {
            q.id: row
            for questions in drawn
            for q, row in zip(questions, world.target(questions), strict=True)
        }

    def target(self, table: AnswerTable) -> NDArray[np.float64]:
        """True probabilities p* of a table's questions, (N, K) float64."""
        target = np.zeros_like(table.logprobs)
        for i, name in enumerate(table.ids):
            row = self._targets[name]
            target[i, : len(row)] = row[: target.shape[1]]
        return target

    def bounds(self, name: str, on: str = IN) -> Bounds:
        """Measure a checkpoint against the truth on one of its sets."""
        table = self[name].tables[on]
        return self._once(
            ("bounds", name, on),
            lambda: bounds(
                table.probs(), table.labels, self.target(table), n_options=table.n_options
            ),
        )

    def collapse(self, name: str) -> CollapseReport:
        """Say what a stage did to the option probabilities of the SFT model."""
        base, aligned = self["sft"].tables[IN], self[name].tables[IN]
        return self._once(("collapse", name), lambda: collapse(base, aligned, n_resamples=200))

    def ece(self, name: str, on: str = IN) -> Estimate:
        """conf-ECE of a checkpoint with its 95 % interval."""
        table = self[name].tables[on]
        return self._once(
            ("ece", name, on),
            lambda: bootstrap_intervals(
                table.probs(),
                table.labels,
                n_options=table.n_options,
                groups=table.groups,
                metrics=("conf_ece",),
                n_resamples=500,
            )["conf_ece"],
        )

    def _once(self, key: tuple[str, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    @property
    def aligned(self) -> Checkpoint:
        """The over-confident model that the later chapters restore."""
        return self[dpo_name(self.settings.betas[-1])]


def tell(
    settings: LabSettings,
    output_dir: str | os.PathLike[str],
    *,
    workers: int = 2,
    say: Callable[[Story, int], None] | None = None,
    show_progress: bool = True,
) -> Story:
    """Live the story in a run folder; a second call goes on where a first was stopped.

    Parameters
    ----------
    workers : processes, one thread each.
    say : called with the story so far and a chapter's index when the chapter is complete.

    Raises
    ------
    InputError
        If the settings make no story, or the folder holds another run.
    """
    if not 1 <= settings.held_out < settings.few:
        raise InputError(
            f"held_out {settings.held_out}, expected 1 to few - 1 ({settings.few - 1})"
        )
    config = {"command": "demo", "settings": asdict(settings), "versions": versions()}
    story = Story(
        open_run(output_dir, config), settings, World(settings.seed, settings.ceiling), {}
    )
    _write_questions(story)
    steps = {step.name: step for step in plan(settings)}
    told = -1

    def finished(step: Step) -> None:
        nonlocal told
        story.checkpoints[step.name] = _load(story.folder, step)
        while told + 1 < len(CHAPTERS) and all(
            s.name in story.checkpoints for s in steps.values() if s.chapter == told + 1
        ):
            told += 1
            if say is not None:
                say(story, told)

    with progress("laboratory", len(steps), "models", show=show_progress) as advance:
        _run(steps, story.folder, settings, workers, lambda step: (finished(step), advance(1)))
    return story


def _run(
    steps: Mapping[str, Step],
    folder: Path,
    settings: LabSettings,
    workers: int,
    finished: Callable[[Step], Any],
) -> None:
    """Take every step, those that can be taken at the same time in parallel."""
    waiting = dict(steps)
    done: set[str] = set()

    def conclude(step: Step) -> None:
        done.add(step.name)
        finished(step)

    for step in steps.values():
        if (folder / step.name / "done").exists():
            del waiting[step.name]
            conclude(step)
    if not waiting:
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads may hang
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread)
    running: dict[Future[None], Step] = {}
    try:
        while waiting or running:
            # What others wait for comes first.
            for step in sorted(waiting.values(), key=lambda s: -_followers(s, steps)):
                if (not step.after or step.after in done) and len(running) < workers:
                    del waiting[step.name]
                    running[pool.submit(take, step, settings, str(folder))] = step
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                future.result()
                conclude(running.pop(future))
    finally:
        pool.shutdown(cancel_futures=True)


def _followers(step: Step, steps: Mapping[str, Step]) -> int:
    return sum(1 + _followers(other, steps) for other in steps.values() if other.after == step.name)


def _one_thread() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


# -- one step, in a process of its own ------------------------------------------------------------


def take(step: Step, settings: LabSettings, folder: str) -> None:
    """Make one checkpoint: train or fit, answer the test questions, write its folder."""
    target = Path(folder) / step.name
    shutil.rmtree(target, ignore_errors=True)  # what an interrupted run left
    target.mkdir(parents=True)
    lab = _lab(settings)
    if step.kind == "temperature":
        _temperature(step, lab, Path(folder), target)
    else:
        model, path = _trained(step, lab, Path(folder))
        model.save_pretrained(target / "model")
        lab.tokenizer.save_pretrained(target / "model")
        write_json(target / "path.json", path)
        for name, questions in lab.test_sets(step).items():
            _save(lab.answer(model, questions), target, name, step)
    write_text(target / "done", "")


def _trained(step: Step, lab: _Lab, folder: Path) -> tuple[Any, list[dict[str, float]]]:
    from calibrant.lab import stages
    from calibrant.lab.language_model import build_model

    s, world, tokenizer = lab.settings, lab.world, lab.tokenizer
    if step.kind == "pretrain":
        model = build_model(tokenizer, s.seed, layers=s.layers)
        return stages.pretrain(model, tokenizer, lab.corpus, seed=s.seed), []
    start = _model(folder / step.after)
    if step.kind == "align":
        pairs = [p for d in DOMAINS for p in world.pairs(d.name, s.pairs, _PAIRS)]
        return stages.align(start, tokenizer, pairs, seed=s.seed, **step.settings), []
    questions, held_out = lab.labelled(step)
    return stages.fine_tune(
        start,
        tokenizer,
        questions,
        seed=s.seed,
        calibration=held_out if step.held_out == "e-step" else None,
        choose_on=held_out if step.held_out == "stopping" else None,
        watch=lab.watched(step),
        **step.settings,
    )


def _temperature(step: Step, lab: _Lab, folder: Path, target: Path) -> None:
    from calibrant.posthoc import TemperatureScaling

    before = _load_tables(folder / step.after)
    questions, held_out = lab.labelled(step)
    if lab.was_tuned(step.after):  # what it was tuned on says nothing about its confidence
        labels = held_out
    else:
        labels = questions if held_out is None else Questions([*questions, *held_out])
    scaling = TemperatureScaling().fit(lab.answer(_model(folder / step.after), labels))
    scaling.save(target / "calibrator.json")
    write_text(target / "path.json", "[]\n")
    for name, table in before.items():
        _save(scaling.transform(table), target, name, step)


def _save(table: AnswerTable, target: Path, name: str, step: Step) -> None:
    (target / "answers").mkdir(exist_ok=True)
    table = table.with_logprobs(table.logprobs, model=step.title, method=step.name, data=name)
    table.save(target / "answers" / f"{name}.parquet")


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model").eval()


def _load_tables(folder: Path) -> dict[str, AnswerTable]:
    return {p.stem: AnswerTable.load(p) for p in sorted((folder / "answers").glob("*.parquet"))}


def _load(folder: Path, step: Step) -> Checkpoint:
    target = folder / step.name
    path = read_json(target / "path.json")
    return Checkpoint(step, target, _load_tables(target), path)


def _write_questions(story: Story) -> None:
    """Leave the questions, and their true probabilities, for the other commands."""
    target, truth = story.folder / "questions", story.folder / TRUTH / "answers"
    for folder in (target, truth):
        folder.mkdir(parents=True, exist_ok=True)
    s = story.settings
    sets = {
        f"{IN}-test": story.world.questions(IN, s.test, _TEST, test=True),
        f"{OUT}-test": story.world.questions(OUT, s.test // 2, _TEST, test=True),
        f"{IN}-fresh": story.world.questions(IN, s.fresh, _FRESH),
        f"{IN}-few": story.world.questions(IN, s.few, _FEW),
    }
    for name, questions in sets.items():
        lines = [json.dumps(asdict(q)) + "\n" for q in questions]
        write_text(target / f"{name}.jsonl", "".join(lines))
        story.world.truth(questions).save(truth / f"{name}.parquet")


class _Lab:
    """World, tokenizer and questions, made once in a process."""

    def __init__(self, settings: LabSettings) -> None:
        from calibrant.lab.language_model import build_tokenizer

        self.settings = settings
        self.world = World(settings.seed, settings.ceiling)
        self.corpus = self.world.corpus(settings.texts, _CORPUS)
        # The tokenizer needs every word, not every text.
        self.tokenizer = build_tokenizer(self.corpus)

    def labelled(self, step: Step) -> tuple[Questions, Questions | None]:
        """Questions a step trains on, and those held out from it."""
        s, world = self.settings, self.world
        if step.data == "sft":
            parts = [world.questions(d.name, s.sft_questions, _SFT) for d in DOMAINS]
            return Questions([q for part in parts for q in part], name="all domains"), None
        if step.data in ("fresh", "repeated"):
            fresh = world.questions(IN, s.fresh, _FRESH)
            return (fresh if step.data == "fresh" else fresh[: s.fresh // 20]), None
        few = world.questions(IN, s.few, _FEW)
        return few[: s.few - s.held_out], few[s.few - s.held_out :]

    def was_tuned(self, name: str) -> bool:
        """Whether a checkpoint was trained on labels of chapters three and four."""
        return any(s.name == name and s.data not in ("", "sft") for s in plan(self.settings))

    def test_sets(self, step: Step) -> dict[str, Questions]:
        """Both test sets, and the questions of chapters three and four that were trained on."""
        if step.data in ("fresh", "few", "repeated"):
            return self._tests | {TRAIN: self.labelled(step)[0]}
        return self._tests

    @cached_property
    def _tests(self) -> dict[str, Questions]:
        s = self.settings
        return {
            IN: self.world.questions(IN, s.test, _TEST, test=True),
            OUT: self.world.questions(OUT, s.test // 2, _TEST, test=True),
        }

    @cached_property
    def _test_tokens(self) -> dict[int, Any]:
        """The test questions as tokens, by `id`: every model is asked them."""
        from calibrant.scoring.local import tokens_of

        return {id(q): tokens_of(q, self.tokenizer, PROMPT) for q in self._tests.values()}

    def watched(self, step: Step) -> dict[str, Questions] | None:
        """Small samples on which trainings on few labels are watched."""
        if step.data != "few" or step.held_out == "stopping":
            return None
        return {TRAIN: self.labelled(step)[0][:200], "test": self.test_sets(step)[IN][:WATCHED]}

    def answer(self, model: Any, questions: Questions) -> AnswerTable:
        from calibrant.scoring.local import score

        return score(
            model,
            self.tokenizer,
            questions,
            prompt=PROMPT,
            encoded=self._test_tokens.get(id(questions)),
            show_progress=False,
        )


@lru_cache(maxsize=1)
def _lab(settings: LabSettings) -> _Lab:
    return _Lab(settings)
