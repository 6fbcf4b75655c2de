"""The restore workflow: measure, restore by each method asked for, measure again, judge."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calibrant.answers import AnswerTable
from calibrant.choice import (
    FINE_TUNED,
    NONE,
    WHEN_TO_FINE_TUNE,
    Choice,
    conclude,
    post_hoc_candidates,
    prefer,
    reason_to_fine_tune,
    transfers,
)
from calibrant.diagnosis.report import CalibrationReport, evaluate
from calibrant.diagnosis.verdict import Verdict, verdict
from calibrant.errors import InputError, reason
from calibrant.files import read_json, write_json
from calibrant.permutations import estimation_sample, in_every_order
from calibrant.posthoc import LABELLED, REFERENCED, REORDERED, NoOptimumError
from calibrant.posthoc import load as load_calibrator
from calibrant.progress import progress
from calibrant.prompts import PMI_IS_FOR_SCORING, Prompt, PromptLike
from calibrant.questions import Question, Questions, drop_overlap, load_questions, split_questions
from calibrant.runs import (
    BEFORE,
    TRAIN,
    answers_at,
    nothing_left_of_a_failure,
    open_run,
    set_name,
    versions,
    weights_of,
)
from calibrant.training import METHODS as FINE_TUNING

POST_HOC = LABELLED | REFERENCED | REORDERED
METHODS = (*POST_HOC, *FINE_TUNING)
AUTO, ALL = "auto", "all"
SELECTION = "selection"  # folder of what `AUTO` tried
REFERENCE = "reference"  # folder of the reference model's answers
# Training questions whose options change places for a letter prior: .02 of them, or so many.
PRIOR_SHARE, PRIOR_QUESTIONS = 0.02, 64
TRAIN_SAMPLE = 250  # training questions scored after each method, to show the train-test gap


@dataclass(frozen=True)
class RestoreSettings:
    """What to restore, with which questions and how.

    Attributes
    ----------
    model : Hub id or folder. train : question sources to learn from.
    evaluate : held-out sources of the same domain. out_of_domain : of other domains.
    methods : of `METHODS`, in the order given; or "all" that apply here, or "auto" alone, which
        chooses one on a share of the training questions (`calibrant.choice`).
    fine_tune : whether "auto" tries fine-tuning: "always", "never", or "auto", when post-hoc
        calibration leaves something to be done.
    min_accuracy : accuracy below which "auto" tries fine-tuning.
    selection_fraction : share of the training questions that "auto" chooses on.
    reference_model : Hub id or folder of the model before alignment, for "base-kl" and "daca".
    train_limit : training questions in all, a seeded random sample over the pooled sources, an
        equal share of each, or as near to it as short ones allow. limit : questions of each test
        source, likewise.
    overlap : "drop" training questions that occur in a test set, "error", or "keep" them.
    skip_invalid : leave out bad rows instead of stopping at the first.
    choices : label words that all questions share, for files of texts and labels.
    epochs, learning_rate, batch_size, lora_rank, strength, ece_weight, question_weight, target,
    calibration_fraction : of the fine-tuning methods, see `CalibrationConfig`; ``lora_rank`` 0
        trains every weight, in float32. ``learning_rate`` None is 3e-4 for LoRA, 2e-5 without.
    lora_alpha, lora_dropout, dora : of the adapter; ``lora_alpha`` None is the rank.
    quantize : "nf4" trains the adapter on a base model of 4 bits (QLoRA).
    activation_checkpointing : make activations again in the backward pass: less memory, a third
        more time, the same result.
    early_stopping : evaluations without a better one before training stops, four an epoch on a
        tenth of the training questions that is then not trained on; the best weights are kept. None
        trains to the end. best_by : "nll", "conf_ece", "brier" or "accuracy", which one is better;
        a model that the verdict calls harmed or gamed never is. If all are, the last weights stay
        and a note says so.
    report_to : "tensorboard", "wandb" or others that `transformers` knows.
    push_to_hub : Hub id; each method's adapter goes to ``ID-METHOD``, a private repository.
    tolerance : conf-ECE the verdict counts as calibrated.
    """

    model: str
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    out_of_domain: tuple[str, ...] = ()
    methods: tuple[str, ...] = (AUTO,)
    reference_model: str | None = None
    fine_tune: str = "auto"
    min_accuracy: float | None = None
    selection_fraction: float = 0.25
    prompt: PromptLike = "letter"
    dtype: str = "auto"
    device: str = "auto"
    gguf_file: str | None = None
    train_limit: int | None = None
    limit: int | None = None
    overlap: str = "drop"
    skip_invalid: bool = False
    choices: tuple[str, ...] = ()
    epochs: float = 1.0
    learning_rate: float | None = None
    batch_size: int = 8
    lora_rank: int = 32
    lora_alpha: int | None = None
    lora_dropout: float = 0.0
    dora: bool = False
    quantize: str | None = None
    activation_checkpointing: bool = False
    early_stopping: int | None = None
    best_by: str = "nll"
    report_to: tuple[str, ...] = ()
    push_to_hub: str | None = None
    strength: float | None = None
    ece_weight: float = 1.0
    question_weight: float | None = None
    target: str = "tempered"
    calibration_fraction: float | None = None
    tolerance: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        prompt = Prompt.of(self.prompt)
        object.__setattr__(self, "prompt", prompt)
        trainable = prompt.format != "cloze-pmi"
        if ALL in self.methods:
            apply = [*LABELLED, *(REFERENCED if self.reference_model else ())]
            apply += REORDERED if prompt.lists_options else ()
            object.__setattr__(self, "methods", (*apply, *(FINE_TUNING if trainable else ())))
        if not trainable and self.fine_tune == "auto":
            object.__setattr__(self, "fine_tune", "never")
        if not trainable and (set(FINE_TUNING) & set(self.methods) or self.fine_tune == "always"):
            raise InputError(PMI_IS_FOR_SCORING)
        if AUTO in self.methods and len(self.methods) > 1:
            raise InputError(
                f"methods {', '.join(self.methods)}: auto chooses one method; expected it alone, "
                "or the methods by name"
            )
        if AUTO in self.methods and self.push_to_hub is not None:
            raise InputError("push_to_hub: auto may choose no model; expected methods by name")
        unknown = [m for m in self.methods if m not in (*METHODS, AUTO)]
        if unknown or not self.methods:
            raise InputError(
                f"method {unknown or 'missing'}, expected {AUTO}, {ALL} or of {', '.join(METHODS)}"
            )
        if self.fine_tune not in WHEN_TO_FINE_TUNE:
            raise InputError(
                f"fine_tune {self.fine_tune!r}, expected of {', '.join(WHEN_TO_FINE_TUNE)}"
            )
        without = [m for m in self.methods if m in REFERENCED and not self.reference_model]
        if without:
            raise InputError(
                f"method {without[0]} compares with the model before alignment; expected a "
                "--reference-model"
            )
        if set(self.methods) & set(REORDERED):
            prompt.check_lists_options()
        if self.overlap not in ("drop", "error", "keep"):
            raise InputError(f"overlap {self.overlap!r}, expected drop, error or keep")
        if self.quantize is not None and not self.lora_rank:
            raise InputError(
                f"quantize {self.quantize!r}: weights of 4 bits cannot be trained; expected a "
                "--lora-rank"
            )
        if not self.train or not self.evaluate:
            raise InputError("expected at least one --train and one --eval source of questions")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values, the prompt in its short form."""
        return asdict(self) | {"prompt": Prompt.of(self.prompt).to_json()}


@dataclass
class Restoration:
    """Outcome of `restore`.

    Attributes
    ----------
    folder : the run folder. settings : what was asked.
    domains : test set -> "in", "out" or "train".
    tables, reports : method -> test set -> AnswerTable, CalibrationReport; "before" is a method.
    verdicts : method -> test set -> Verdict against before.
    costs : method -> seconds, questions and tokens a second, peak memory, labels used; "reference
        model" is what its answers took, which `REFERENCED` methods share.
    notes : sentences about what was done to the data and what could not be done.
    questions : test set -> its questions.
    choice : what "auto" settled on, None where the methods were named.
    alignment : answers to the training questions of the model before alignment, and of the one to
        restore; None without a reference model.
    """

    folder: Path
    settings: RestoreSettings
    domains: dict[str, str]
    tables: dict[str, dict[str, AnswerTable]] = field(default_factory=dict)
    reports: dict[str, dict[str, CalibrationReport]] = field(default_factory=dict)
    verdicts: dict[str, dict[str, Verdict]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    questions: dict[str, Questions] = field(default_factory=dict)
    choice: Choice | None = None
    alignment: tuple[AnswerTable, AnswerTable] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able content of ``report.json``."""
        return {
            "format_version": 1,
            "settings": self.settings.to_dict(),
            "sets": self.domains,
            "notes": self.notes,
            "choice": None if self.choice is None else self.choice.to_dict(),
            "costs": self.costs,
            "reports": _nested(self.reports),
            "verdicts": _nested(self.verdicts),
        }


def _nested(parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {m: {s: part.to_dict() for s, part in sets.items()} for m, sets in parts.items()}


def restore(
    settings: RestoreSettings, output_dir: str, *, say: Callable[[str], None] = print
) -> Restoration:
    """Restore a model's calibration by every method asked for, on the same labels.

    Each step's result is kept in the run folder; calling again with the same settings goes on
    after the last finished step (training: after its last checkpoint).

    Parameters
    ----------
    say : receives one line for each step begun.

    Raises
    ------
    InputError
        On bad input, before anything is computed where that is possible.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "restore runs in one process, not in several as torchrun or accelerate start them; "
            "expected a script with a CalibrationTrainer for those (docs/scaling.md)"
        )
    train, tests, domains, notes = load_data(settings)
    _check_training(settings, output_dir)
    reference = weights_of(settings.reference_model) if settings.reference_model else {}
    config = {
        "command": "restore",
        "settings": settings.to_dict(),
        "data": {
            name: {"n": len(part), "fingerprint": part.fingerprint}
            for name, part in {TRAIN: train, **tests}.items()
        },
        "versions": versions(),
        **weights_of(settings.model),
        **{f"reference_{name}": value for name, value in reference.items()},
    }
    folder = open_run(output_dir, config)
    result = Restoration(folder, settings, domains | {TRAIN: "train"}, notes=notes)
    result.questions = tests
    work = _Work(settings, folder, train, tests | {TRAIN: train.sample(TRAIN_SAMPLE)}, say)
    with nothing_left_of_a_failure(folder):
        result.tables[BEFORE] = work.before()
    if AUTO in settings.methods:
        result.choice, tables = work.auto(result.tables[BEFORE])
        result.notes += [result.choice.explanation, *result.choice.skipped]
        if tables is not None:
            result.tables[result.choice.method] = tables
    for method in settings.methods:
        if method == AUTO:
            continue
        refusal = InputError if method in POST_HOC else NoOptimumError
        try:
            if method in POST_HOC:
                result.tables[method] = work.post_hoc(method, result.tables[BEFORE])
            else:
                result.tables[method] = work.fine_tune(method)
        except refusal as error:  # no optimum, or K varies: the other methods go on
            result.notes.append(f"{method}: not applicable: {error}")
            say(result.notes[-1])
    n = sum(len(tables) for tables in result.tables.values())
    with progress("measuring", n, "tables") as advance:
        for method, tables in result.tables.items():
            result.reports[method], judged = {}, {}
            for name, table in tables.items():
                result.reports[method][name] = evaluate(table, seed=settings.seed)
                if method != BEFORE and name != TRAIN:
                    judged[name] = verdict(
                        result.tables[BEFORE][name],
                        table,
                        tolerance=settings.tolerance,
                        seed=settings.seed,
                    )
                advance(1)
            if method != BEFORE:
                result.verdicts[method] = judged
            result.costs[method] = work.cost(method)
            if result.costs[method].get("found_unharmed") == 0:
                result.notes.append(
                    f"{method}: early stopping found no evaluation that was neither harmed nor "
                    "gamed; the last weights were kept"
                )
    if reference_cost := work.cost(REFERENCE):
        result.costs[f"{REFERENCE} model"] = reference_cost
        result.alignment = (work.reference(), AnswerTable.load(work.pool))
    write_json(folder / "report.json", result.to_dict())
    return result


def _check_training(settings: RestoreSettings, output_dir: str) -> None:
    """Refuse settings that no training could begin with, by every method that may be trained."""
    methods = [m for m in settings.methods if m in FINE_TUNING]
    if AUTO in settings.methods and settings.fine_tune != "never":
        methods += FINE_TUNED
    if not methods:
        return
    from calibrant.training.tuning import training_arguments

    for method in methods:
        training_arguments(settings, method, output_dir, on_cpu=True)


def load_data(
    settings: RestoreSettings,
) -> tuple[Questions, dict[str, Questions], dict[str, str], list[str]]:
    """Read what a restoration learns from and is measured on.

    Returns
    -------
    The training pool, the test sets by name, their domains ("in" or "out"), and notes on what was
    left out.

    Raises
    ------
    InputError
        On bad input, two sets of one name, overlap where that is an error, or no question left to
        learn from.
    """
    limit, n_sources = settings.train_limit, len(settings.train)
    if limit is not None and limit < n_sources:
        raise InputError(
            f"--train-limit {limit} for {n_sources} --train sources, expected at least one "
            "question of each"
        )
    short = [set_name(source) for source in settings.train]
    for i, name in enumerate(short):  # questions are told apart by it
        if name in short[:i]:
            other = settings.train[short.index(name)]
            raise InputError(
                f"{settings.train[i]}: would be called {name!r}, but so would {other}; rename it, "
                "or give a source once"
            )
    notes: list[str] = []
    tests: dict[str, Questions] = {}
    domains: dict[str, str] = {}
    for domain, sources in (("in", settings.evaluate), ("out", settings.out_of_domain)):
        for source in sources:
            name = set_name(source)
            if name in tests or name == TRAIN:
                reason = "another test set has that name" if name in tests else "it is reserved"
                raise InputError(f"{source}: would be called {name!r}, but {reason}; rename it")
            tests[name] = _loaded(source, settings, notes, limit=settings.limit, seed=settings.seed)
            domains[name] = domain
    parts = [_loaded(source, settings, notes) for source in settings.train]
    pools = []
    for source, part in zip(settings.train, parts, strict=True):
        kept, dropped = drop_overlap(part, *tests.values())
        if dropped and settings.overlap == "error":
            raise InputError(
                f"{source}: {dropped} training questions also occur in a test set; expected "
                "disjoint sets (--overlap drop leaves them out)"
            )
        if dropped and settings.overlap == "drop":
            notes.append(f"{source}: {dropped} questions also in a test set were left out")
        elif dropped:
            notes.append(f"{source}: {dropped} questions also occur in a test set and were kept")
        pools.append(kept if settings.overlap == "drop" else part)
    if not any(pools):
        taken = [
            f"{source} with "
            + ", ".join(name for name, test in tests.items() if drop_overlap(part, test)[1])
            for source, part in zip(settings.train, parts, strict=True)
        ]
        raise InputError(
            f"no training question is left: every one is also in a test set ({'; '.join(taken)}); "
            "expected other questions to learn from"
        )
    if limit is not None:
        shares = _shares([len(pool) for pool in pools], limit)
        pools = [
            pool.sample(n, settings.seed) if n else pool
            for pool, n in zip(pools, shares, strict=True)
        ]
    multiple = len(pools) > 1
    questions = [
        # Sources may use the same ids; the set's name keeps them apart.
        _renamed(q, f"{set_name(source)}:{q.id}") if multiple else q
        for source, pool in zip(settings.train, pools, strict=True)
        for q in pool
    ]
    return Questions(questions, name=" + ".join(settings.train)), tests, domains, notes


def _shares(sizes: Sequence[int], limit: int) -> list[int]:
    """Share out a limit evenly; what a source has too little of, the others give.

    Examples
    --------
    >>> _shares([100, 100], 41), _shares([5, 0, 100], 40), _shares([2, 3], 40)
    ([21, 20], [5, 0, 35], [2, 3])
    """
    shares = [0] * len(sizes)
    while left := min(limit, sum(sizes)) - sum(shares):
        short = [i for i, size in enumerate(sizes) if shares[i] < size]
        share, extra = divmod(left, len(short))
        for rank, i in enumerate(short):
            shares[i] = min(sizes[i], shares[i] + share + (rank < extra))
    return shares


def _loaded(source: str, settings: RestoreSettings, notes: list[str], **how: Any) -> Questions:
    questions = load_questions(
        source, skip_invalid=settings.skip_invalid, choices=settings.choices or None, **how
    )
    notes += [f"{source}: {line}" for line in (*questions.warnings, *questions.skipped)]
    return questions


def _renamed(question: Any, name: str) -> Any:
    from dataclasses import replace

    return replace(question, id=name)


class _Work:
    """The steps of a restoration, each keeping its result in the run folder."""

    def __init__(
        self,
        settings: RestoreSettings,
        folder: Path,
        train: Questions,
        sets: dict[str, Questions],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.folder, self.train, self.sets, self.say = (
            settings,
            folder,
            train,
            sets,
            say,
        )
        self.pool = folder / BEFORE / "training-questions.parquet"
        self._base: tuple[Any, Any] | None = None

    # -- models -------------------------------------------------------------------------------

    def _load(self) -> tuple[Any, Any]:
        from calibrant.scoring.models import load_model

        s = self.settings
        self.say(f"loading {s.model}")
        return load_model(
            s.model,
            dtype=self._dtype(),
            device=s.device,
            gguf_file=s.gguf_file,
            quantize=s.quantize,
        )

    def _dtype(self) -> str:
        """Dtype of the model as it came and as it was trained: both must answer alike."""
        s = self.settings
        # AdamW's small steps are lost in bfloat16 weights; an adapter's own are float32 anyway.
        return "float32" if s.dtype == "auto" and not s.lora_rank else s.dtype

    def base(self) -> tuple[Any, Any]:
        """Load the model as it came, once; training takes it away again."""
        if self._base is None:
            self._base = self._load()
        return self._base

    # -- steps --------------------------------------------------------------------------------

    def before(self) -> dict[str, AnswerTable]:
        """Answer tables of the model as it came; calibrators need all training questions."""
        forget_peak_memory()
        if not set(self.settings.methods) & {*LABELLED, *REFERENCED, AUTO}:
            return self.score_all(BEFORE)
        pool = self._scored(BEFORE, TRAIN, self.train, None, None, path=self.pool)
        row = {name: i for i, name in enumerate(pool.ids)}
        questions = self.sets[TRAIN]
        sample = pool.select([row[q.id] for q in questions])
        path = self._path(BEFORE, TRAIN)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            sample.with_logprobs(sample.logprobs, data_fingerprint=questions.fingerprint).save(path)
        return self.score_all(BEFORE)

    def _path(self, method: str, name: str) -> Path:
        return self.folder / method / "answers" / f"{name}.parquet"

    def score_all(self, method: str, model: Any = None, tokenizer: Any = None) -> dict[str, Any]:
        """Answer tables of every set, those already in the folder read from there."""
        return {
            name: self._scored(method, name, questions, model, tokenizer)
            for name, questions in self.sets.items()
        }

    def _scored(
        self,
        method: str,
        name: str,
        questions: Questions,
        model: Any,
        tokenizer: Any,
        path: Path | None = None,
        orders: str | None = None,
    ) -> AnswerTable:
        def ask(partial: Path) -> AnswerTable:
            from calibrant.scoring.local import score

            def answers_to(rows: Sequence[Question]) -> AnswerTable:
                return score(*network, rows, prompt=self.settings.prompt, partial=partial)

            network = self.base() if model is None else (model, tokenizer)
            in_orders = "" if orders is None else f" in {orders} orders"
            self.say(f"{method}: scoring {len(questions):,} questions of {name}{in_orders}")
            start = time.perf_counter()
            if orders is None:
                table = answers_to(questions)
            else:
                table = in_every_order(answers_to, questions, orders, self.settings.seed)
            self._note_cost(
                method,
                scoring_seconds=time.perf_counter() - start,
                scored_questions=len(table),
                scored_tokens=table.provenance["tokens"],
            )
            fitted = self.folder / method / "calibrator.json"
            if model is not None and fitted.exists():  # weights trained at a temperature
                table = load_calibrator(fitted).transform(table)
            return table.with_logprobs(table.logprobs, method=method)

        return answers_at(path or self._path(method, name), ask)

    def post_hoc(self, method: str, before: dict[str, AnswerTable]) -> dict[str, AnswerTable]:
        """Fit a calibrator on the training pool, and transform every table."""
        pool = self._reordered(method) if method in REORDERED else AnswerTable.load(self.pool)
        reference = self.reference() if method in REFERENCED else None
        forget_peak_memory()
        start = time.perf_counter()
        calibrator = POST_HOC[method]().fit(pool, reference)
        self.say(f"{method}: fitted on {calibrator.n_questions:,} questions")
        tables = {name: calibrator.transform(table) for name, table in before.items()}
        target = self.folder / method
        (target / "answers").mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            table.save(self._path(method, name))
        calibrator.save(target / "calibrator.json")
        self._note_cost(
            method,
            training_seconds=time.perf_counter() - start,
            labels=len(pool) if method in LABELLED else 0,
        )
        self._write_restored(method)
        return tables

    def reference(self) -> AnswerTable:
        """Answers of the reference model to the training pool."""
        path = self.folder / REFERENCE / "training-questions.parquet"
        if path.exists():
            return AnswerTable.load(path)
        from calibrant.scoring.models import load_model

        forget_peak_memory()
        s = self.settings
        self.say(f"loading {s.reference_model}")
        model, tokenizer = load_model(str(s.reference_model), dtype=s.dtype, device=s.device)
        return self._scored(REFERENCE, TRAIN, self.train, model, tokenizer, path=path)

    def _reordered(self, method: str) -> AnswerTable:
        """Answers of the model as it came to a few questions in cyclic orders.

        They are training questions, and test questions of a number of options that those lack: no
        label is read.
        """
        known = {len(q.choices) for q in self.train}
        lacking = [
            _renamed(q, f"{name}:{q.id}")
            for name, questions in self.sets.items()
            for q in questions
            if len(q.choices) not in known
        ]
        pool = Questions([*self.train, *lacking], name=self.train.name)
        share = min(1.0, max(PRIOR_SHARE, PRIOR_QUESTIONS / len(pool)))
        sizes = [len(q.choices) for q in pool]
        part = pool.select(estimation_sample(sizes, share, self.settings.seed))
        path = self.folder / method / "reordered.parquet"
        return self._scored(method, TRAIN, part, None, None, path=path, orders="cyclic")

    def fine_tune(self, method: str) -> dict[str, AnswerTable]:
        """Train an adapter (or every weight), save it, and score every set with it."""
        tables = self._finished(method)
        if tables is None:
            forget_peak_memory()
            model, tokenizer = self._trained_model(method, method, self.train)
            self._write_restored(method)
            tables = self.score_all(method, model, tokenizer)
        return tables

    def _finished(self, method: str) -> dict[str, AnswerTable] | None:
        """Tables of a restored model if all are there."""
        paths = {name: self._path(method, name) for name in self.sets}
        done = self.folder / method / "restored.json"
        if not (done.exists() and all(path.exists() for path in paths.values())):
            return None
        return {name: AnswerTable.load(path) for name, path in paths.items()}

    def _trained_model(self, step: str, method: str, questions: Questions) -> tuple[Any, Any]:
        """Train the model in a folder of the run, or load what was trained there."""
        target = self.folder / step
        kind = "adapter" if self.settings.lora_rank else "model"
        if (target / kind).is_dir() and "training_steps" in self.cost(step):
            model, tokenizer = self._load_trained(target)
        else:
            model, tokenizer = self.base()
            self._base = None  # training changes the weights
            self.say(f"{step}: training on {len(questions):,} questions")
            if _over_options_alone(method, self.settings):
                self.say(
                    f"{step}: its loss is over options alone, which can cost the model its "
                    "language (docs/rcft.md); --question-weight 1 keeps it"
                )
            model, cost = fine_tune(model, tokenizer, questions, method, self.settings, target)
            self._note_cost(step, labels=len(questions), **cost)
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
        return model, tokenizer

    # -- the choice of a method -----------------------------------------------------------------

    def auto(self, before: dict[str, AnswerTable]) -> tuple[Choice, dict[str, AnswerTable] | None]:
        """Choose a method on a share of the training questions, and restore by it.

        Returns
        -------
        The choice, and every set's table; None where the model is best left as it is.
        """
        file = self.folder / "choice.json"
        rest, held_out = split_questions(
            self.train, self.settings.selection_fraction, self.settings.seed
        )
        if not file.exists():
            self._choose(rest, held_out, before).save(file)
        choice = Choice.load(file)
        self.say(choice.explanation)
        if choice.method == NONE:
            return choice, None
        if choice.method in POST_HOC:
            return choice, self.post_hoc(choice.method, before)
        return choice, self._adopt(choice.method)

    def _choose(
        self, rest: Questions, held_out: Questions, before: dict[str, AnswerTable]
    ) -> Choice:
        s = self.settings
        how: dict[str, Any] = {"tolerance": s.tolerance, "seed": s.seed}
        pool = AnswerTable.load(self.pool)
        row = {name: i for i, name in enumerate(pool.ids)}
        fitted_on, judged_on = (pool.select([row[q.id] for q in part]) for part in (rest, held_out))
        self.say(f"choosing on {len(held_out):,} training questions held out")
        tables, skipped = post_hoc_candidates(fitted_on, judged_on, list(before.values()))
        candidates = {NONE: judged_on, **tables}
        best = prefer(candidates, **how)
        why = {"always": "it was asked for", "never": ""}.get(s.fine_tune)
        if why is None:
            elsewhere = None
            if best != NONE and len(s.train) > 1:
                sources = [name.partition(":")[0] for name in pool.ids]
                elsewhere = transfers(pool, sources, POST_HOC[best], **how)
            why = reason_to_fine_tune(
                candidates[best], elsewhere, tolerance=s.tolerance, min_accuracy=s.min_accuracy
            )
        if why:
            self.say(f"trying fine-tuning: {why}")
            method = FINE_TUNED[0] if "temperature" in tables else FINE_TUNED[1]
            candidates[method] = self._held_out_after(method, rest, held_out)
        return conclude(
            candidates, n_fitted=len(rest), fine_tuning=why, preferred=None if why else best,
            skipped=skipped, **how,
        )  # fmt: skip

    def _held_out_after(self, method: str, rest: Questions, held_out: Questions) -> AnswerTable:
        """Answers to the questions held out, after fine-tuning on the rest."""
        step = f"{SELECTION}/{method}"
        path = self.folder / step / "held-out.parquet"
        if path.exists():
            return AnswerTable.load(path)
        forget_peak_memory()
        model, tokenizer = self._trained_model(step, method, rest)
        return self._scored(step, "held-out", held_out, model, tokenizer, path=path)

    def _adopt(self, method: str) -> dict[str, AnswerTable]:
        """Make the model that was trained for the choice the restored one, not trained anew."""
        target, draft = self.folder / method, self.folder / f".{method}"
        if not target.exists():
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(self.folder / SELECTION / method, draft)
            draft.rename(target)
        return self.fine_tune(method)

    def _load_trained(self, target: Path) -> tuple[Any, Any]:
        from calibrant.scoring.models import load_model, merged, on_top

        if (target / "model").is_dir():
            where = str(target / "model")
            return load_model(where, dtype=self._dtype(), device=self.settings.device)
        model, tokenizer = self.base()
        self._base = None  # the adapter is folded into it
        return merged(on_top(model, str(target / "adapter"))), tokenizer

    def _write_restored(self, method: str) -> None:
        s = self.settings
        # What "auto" became here: the same model must come back on another machine.
        before = AnswerTable.load(self._path(BEFORE, next(iter(self.sets))))
        content = {
            "method": method,
            "model": s.model,
            "prompt": before.provenance.get("prompt_settings", Prompt.of(s.prompt).to_json()),
            "dtype": before.provenance["dtype"],
            "gguf_file": s.gguf_file,
            "quantize": s.quantize,
            "versions": versions(),
        }
        write_json(self.folder / method / "restored.json", content)

    # -- cost ---------------------------------------------------------------------------------

    def cost(self, method: str) -> dict[str, float]:
        """Seconds, rates and labels of a method's own steps, and the peak memory during them.

        Memory on a CPU is the whole process's, highest so far.
        """
        path = self.folder / method / "cost.json"
        if not path.exists():
            return {}
        cost: dict[str, float] = read_json(path)
        return cost

    def _note_cost(self, method: str, **more: float) -> None:
        cost = self.cost(method)
        for name, value in more.items():
            adds = name == "scoring_seconds" or name.startswith("scored_")
            cost[name] = cost.get(name, 0) + value if adds else value
        cost["peak_memory_gb"] = max(cost.get("peak_memory_gb", 0.0), peak_memory_gb())
        path = self.folder / method
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "cost.json", cost)


def _over_options_alone(method: str, settings: RestoreSettings) -> bool:
    """Whether nothing but the options' scores relative to one another is trained on."""
    from calibrant.training.config import QUESTION_WEIGHTS

    weight = settings.question_weight
    if weight is None:
        weight = QUESTION_WEIGHTS.get(method, 0.0)
    return weight == 0 and method != "sft" and not Prompt.of(settings.prompt).has_option_mass


def fine_tune(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    method: str,
    settings: RestoreSettings,
    target: Path,
    *,
    trainer_class: type | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train a model on questions by one method, and keep what was trained in a folder.

    Parameters
    ----------
    model, tokenizer : of `load_model`; the model's weights change.
    settings : everything about training but the method; the model's name is not used.
    target : gets ``adapter/``, or ``model/`` if every weight is trained, and ``calibrator.json`` if
        the method trains at a temperature. ``checkpoints/`` in it holds what an interrupted
        training goes on from, and is left for the caller to remove.
    trainer_class : `CalibrationTrainer`, or a subclass.

    Returns
    -------
    The trained model, its adapter merged where that is exact, and the cost: ``training_seconds``,
    ``training_cpu_seconds`` of this process, ``training_steps``. Answering questions before the
    first step counts (tempered-cft, early stopping); stopped trainings count up to their last
    checkpoint.
    """
    from transformers import set_seed

    from calibrant.scoring.models import merged
    from calibrant.training import CalibrationTrainer
    from calibrant.training.checkpoints import last_whole
    from calibrant.training.clock import Clock
    from calibrant.training.tuning import adapter_config, training_arguments, validation_split

    s = settings
    checkpoints = target / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    questions, validation = validation_split(s, questions)
    args = training_arguments(s, method, checkpoints, on_cpu=model.device.type == "cpu")
    set_seed(s.seed)
    clock = Clock()
    trainer = (trainer_class or CalibrationTrainer)(
        model=model,
        args=args,
        train_dataset=questions,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=adapter_config(s),
        callbacks=[clock],
    )
    clock.begin()
    trainer.train(resume_from_checkpoint=last_whole(checkpoints) is not None)
    cost = clock.of(trainer).spent() | {"training_steps": trainer.state.global_step}
    if validation is not None:
        cost["found_unharmed"] = int(trainer.state.best_model_checkpoint is not None)
    # The whole folder appears at once: a half-written adapter is never taken for one.
    kind = "adapter" if s.lora_rank else "model"
    draft = target / f".{kind}"
    shutil.rmtree(draft, ignore_errors=True)
    trainer.save_model(str(draft), _internal_call=True)  # what is pushed comes later
    (draft / "training_args.bin").unlink(missing_ok=True)  # a pickle nobody needs
    shutil.rmtree(target / kind, ignore_errors=True)
    calibrator = getattr(trainer, "calibrator", None)
    if calibrator is not None:  # a temperature that belongs to these weights
        calibrator.save(target / "calibrator.json")
    draft.rename(target / kind)
    if s.push_to_hub is not None:
        files = {f.relative_to(target / kind).as_posix(): f for f in (target / kind).rglob("*")}
        if (fitted := target / "calibrator.json").is_file():
            files[fitted.name] = fitted
        push(trainer.hub_model_id, {name: f for name, f in files.items() if f.is_file()})
    return merged(trainer.model.eval()), cost


def push(repository: str, files: Mapping[str, Path]) -> None:
    """Upload files in one commit to a repository, which is made private if it is not there.

    Parameters
    ----------
    files : name in the repository -> file here.

    Raises
    ------
    InputError
        If that fails, for whatever reason; nothing is uploaded by halves.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        there = HfApi().create_repo(repository, private=True, exist_ok=True).repo_id
        added = [CommitOperationAdd(name, file) for name, file in files.items()]
        HfApi().create_commit(there, added, commit_message="Restored by calibrant")
    except Exception as error:  # of the hub's client, the network below it, the account
        raise InputError(
            f"push_to_hub: {', '.join(sorted(files))} could not be uploaded to {repository}: "
            f"{reason(error)}; nothing is lost here, give the same command again"
        ) from error


def forget_peak_memory() -> None:
    """Begin to measure a GPU's peak memory anew; a process's cannot be."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gb() -> float:
    """Return this process's peak memory in 10⁹ bytes.

    On the GPU if one is used, since `forget_peak_memory`; else resident, highest so far.
    """
    import resource

    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
