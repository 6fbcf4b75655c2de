"""SFT, CFT and RCFT as a `transformers.Trainer`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from calibrant import metrics
from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc import TemperatureScaling
from calibrant.prompts import EncodedQuestion, Prompt, encode
from calibrant.questions import Question, Questions, split_questions
from calibrant.scoring.local import score, score_encoded, tokens_of
from calibrant.scoring.tokens import Tokens
from calibrant.training.base import OptionTrainer
from calibrant.training.config import CalibrationConfig
from calibrant.training.losses import (
    answer_nll,
    brier,
    cogcalib,
    confidence_penalty,
    distillation,
    focal,
    label_smoothing,
    option_cross_entropy,
    squared_distance,
)
from calibrant.training.reporting import ReportedTraining
from calibrant.training.selection import GuardedSelection
from calibrant.training.targets import ConfidenceMap, tanh_target, tempered_target

_OVER_OPTIONS = {
    "label-smoothing": label_smoothing,
    "entropy": confidence_penalty,
    "focal": focal,
    "brier": brier,
}
CALIBRATION_FRACTION = 0.2  # of the training questions, where some must be set aside
KNOWN = math.log(2)  # nats of an answer of probability 1/2: what CogCalib takes as known


def drops_out(model: torch.nn.Module) -> bool:
    """Whether a model's answers are noised while it trains: a layer or its attention drops out."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
        # Attention has the rate as a number, which it gives to its kernel.
        rates = (value for name, value in vars(module).items() if "dropout" in name)
        if any(isinstance(rate, int | float) and rate > 0 for rate in rates):
            return True
    return False


def answers_before_learning(
    model: torch.nn.Module, args: CalibrationConfig, n_questions: int, peft_config: Any = None
) -> bool:
    """Whether a training reads each question once, and answers it there as it is evaluated.

    What it answers before it learns from a question is then an answer to a held-out question.
    """
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    passes = args.max_steps * batch / n_questions if args.max_steps > 0 else args.num_train_epochs
    noised = drops_out(model) or getattr(peft_config, "lora_dropout", 0) > 0
    return passes <= 1 and not noised


class EStepState(TrainerCallback, ExportableState):
    """The E-step's statistics, kept where the Trainer saves and restores them with a checkpoint.

    Attributes
    ----------
    step : optimiser step of the last refresh, -1 before the first.
    statistics : of the `ConfidenceMap`, or None.
    scored : calibration questions scored so far, for they are taken in turn.
    seen : tally of the training questions read since the last refresh, or None.
    """

    def __init__(self) -> None:
        self.step, self.statistics, self.scored, self.seen = -1, None, 0, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget an earlier training; one that is resumed goes on with what it knew."""
        if state.global_step == 0:
            vars(self).update(vars(EStepState()))

    def state(self) -> dict[str, Any]:
        """JSON-able state in the form the Trainer expects."""
        return {"args": {}, "attributes": dict(vars(self))}


class CalibrationTrainer(GuardedSelection, ReportedTraining, OptionTrainer):
    """Fine-tune a language model so that its option probabilities mean what they say.

    A `transformers.Trainer` whose data are questions: accelerate, callbacks, checkpoints and the
    hub work as they do there. Losses are means over the *global* batch, so neither gradient
    accumulation nor the number of processes changes anything; the processes share the questions of
    an E-step or an evaluation between them.

    Parameters
    ----------
    model : a causal language model.
    args : `CalibrationConfig`.
    train_dataset : questions to train on.
    eval_dataset : questions, or a dict of them, to evaluate on; `evaluate` reports accuracy,
        conf-ECE, NLL and Brier score.
    calibration_dataset : questions of the E-step, held out of the SFT loss (rcft). By default the
        training questions themselves, before they are learnt from, or a share of them that is set
        aside (`CalibrationConfig.calibration_fraction`).
    unlabelled_dataset : more questions to train on, of any domain, their answers ignored
        (tempered-cft).
    processing_class : the tokenizer.
    peft_config : a PEFT configuration; without it every weight is trained.
    **kwargs : passed to `transformers.Trainer`.

    Attributes
    ----------
    calibrator : `TemperatureScaling`, which belongs to the trained weights: apply it to what they
        answer, as `score` and `evaluate` do. T = 1 but for tempered-cft or where
        ``args.temperature`` says so.

    Raises
    ------
    InputError
        If a question cannot be encoded or does not fit the model's context.
    NonFiniteLossError
        From `train`, when the loss is NaN or infinite.
    """

    args: CalibrationConfig

    def __init__(
        self,
        model: Any,
        args: CalibrationConfig,
        train_dataset: Sequence[Question] | None = None,
        eval_dataset: Sequence[Question] | dict[str, Sequence[Question]] | None = None,
        calibration_dataset: Sequence[Question] | None = None,
        unlabelled_dataset: Sequence[Question] | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        encoded: list[EncodedQuestion] | None = None
        self._calibration: Tokens | None = None
        self._asked_once: set[str] = set()  # ids of questions that no other question repeats
        self._tally = np.zeros((2, args.e_step_bins), dtype=np.int64)  # of this optimiser step
        self._set_aside = False  # whether the E-step has questions of its own
        self._learnt = False  # whether the training questions have been trained on before
        self._noised = False  # whether the model drops out when it trains
        self._evaluated: dict[int, tuple[Questions, Tokens]] = {}  # by their id(), while kept
        self._labelled: set[str] = set()
        self._teacher: dict[str, np.ndarray] = {}  # question -> tempered probabilities, (K,)
        self.temperature = args.temperature or 1.0
        self.calibrator: TemperatureScaling | None = None
        if train_dataset is not None and processing_class is not None:
            train_dataset = Questions(train_dataset)
            if args.regularised and args.e_step_data == "held-out" and calibration_dataset is None:
                share = args.calibration_fraction
                if share is None and not answers_before_learning(
                    model, args, len(train_dataset), peft_config
                ):
                    share = CALIBRATION_FRACTION
                if share is not None:
                    train_dataset, calibration_dataset = split_questions(
                        train_dataset, share, args.seed
                    )
            unlabelled_dataset = unlabelled_dataset or ()
            if unlabelled_dataset and args.method != "tempered-cft":
                raise InputError(
                    f"unlabelled_dataset: method {args.method} learns from labels alone, expected "
                    "tempered-cft"
                )
            everything = Questions([*train_dataset, *unlabelled_dataset])  # unique ids
            encoded = encode(list(everything), processing_class, args.prompt)
            self._labelled = {q.id for q in train_dataset}
            if args.regularised:
                self._set_aside = args.e_step_data == "held-out" and calibration_dataset is not None
                self._calibration = Tokens.of(
                    encode(list(calibration_dataset), processing_class, args.prompt)
                    if self._set_aside
                    else encoded
                )
                times = Counter(train_dataset.groups)
                self._asked_once = {
                    q.id
                    for q, group in zip(train_dataset, train_dataset.groups, strict=True)
                    if times[group] == 1
                }
        super().__init__(
            model=model,
            args=args,
            encoded=encoded,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            question_weight=args.question_weight or 0.0,
            peft_config=peft_config,
            **kwargs,
        )
        if args.regularised:
            self.add_callback(EStepState())

    # -- the loss -----------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Temper the model as it came (tempered-cft), then train; a resumed training as well."""
        if self.args.method == "tempered-cft":
            self._temper()
        self._noised = drops_out(self.model)
        result = super().train(*args, **kwargs)
        self._learnt = True
        return result

    def is_labelled(self, name: str) -> bool:
        """Whether a training question has a label to learn from."""
        return name in self._labelled

    def _temper(self) -> None:
        """Fit the temperature on the labelled questions; note every question's probabilities."""
        answers = self._answers_to(self.train_dataset)
        if self.args.temperature is None:
            labelled = [i for i, name in enumerate(answers.ids) if name in self._labelled]
            self.calibrator = TemperatureScaling().fit(answers.select(labelled))
            self.temperature = self.calibrator.temperature
        if self.args.anchor_weight or len(self._labelled) < len(answers):
            probs = answers.with_logprobs(answers.logprobs / self.temperature).probs()
            self._teacher = dict(zip(answers.ids, probs, strict=True))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Refresh the E-step when it is due, then train on a micro-batch."""
        if self.args.regularised and self._e_step_is_due():
            self.e_step()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._forwards_are_held_out() and self.accelerator.sync_gradients:
            tally = torch.as_tensor(self._tally, device=self.args.device)
            tally = self.accelerator.reduce(tally, "sum").cpu().numpy()
            self._tally = np.zeros_like(self._tally)
            state = self._e_state()
            state.seen = (tally + (0 if state.seen is None else state.seen)).tolist()
        return loss

    def forget_step(self) -> None:
        """Forget what the micro-batches of this step have answered: they are asked again."""
        super().forget_step()
        self._tally[:] = 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Loss of a micro-batch; what the model answered before learning from it is kept."""
        loss, scores = super().compute_loss(model, inputs, True, num_items_in_batch)
        if num_items_in_batch is not None and self._forwards_are_held_out():
            self._keep_tally(scores.detach(), inputs)
        return (loss, scores) if return_outputs else loss

    def _e_step_is_due(self) -> bool:
        last, now = self._e_state().step, self.state.global_step
        if self.args.e_steps_per_epoch == 0:  # once, before training, as published
            return last < 0
        every = math.ceil(self._steps_per_epoch() / self.args.e_steps_per_epoch)
        return now % every == 0 and last != now

    def question_losses(self, scores: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss of each question but for its own tokens, (Q,) float32."""
        args = self.args
        options_loss = args.answer_loss == "options" or (
            args.answer_loss == "auto"
            and args.method != "sft"
            and not Prompt.of(args.prompt).has_option_mass
        )
        over_options = option_cross_entropy(scores, inputs["answer"])
        if options_loss:
            loss = over_options
        else:
            loss = answer_nll(scores, inputs["answer"], inputs["divisor"])
        if self.temperature != 1:
            scores = scores / self.temperature
            tempered = option_cross_entropy(scores, inputs["answer"])
            loss, over_options = loss - over_options + tempered, tempered
        if args.method in _OVER_OPTIONS:
            # What is left of the vocabulary's loss is that of not answering with an option.
            of_options = _OVER_OPTIONS[args.method](scores, inputs["answer"], args.strength)
            loss = loss - over_options + of_options
        elif args.method == "tempered-cft":
            loss = self._anchored(loss, scores, inputs["ids"])
        elif args.method == "cogcalib":
            even = label_smoothing(scores, inputs["answer"], 1.0)
            gated = cogcalib(over_options, even, KNOWN, args.strength)
            loss = loss - over_options + gated
        elif args.method == "rcft":
            loss = loss + args.ece_weight * self._ece_loss(scores, inputs["option"])
        elif args.method == "rcft-released":
            loss = loss + self._released_loss(scores, inputs["option"])
        return loss

    def _anchored(
        self, loss: torch.Tensor, scores: torch.Tensor, ids: Sequence[str]
    ) -> torch.Tensor:
        """Hold questions to the model as it came: it is all that those without labels teach."""
        if not self._teacher:
            return loss
        width = scores.shape[1]  # of this batch; the teacher's rows are as wide as any question
        teacher = np.stack([self._teacher[name][:width] for name in ids])
        divergence = distillation(scores, torch.as_tensor(teacher).to(scores))
        labelled = torch.tensor([name in self._labelled for name in ids], device=loss.device)
        return torch.where(labelled, loss + self.args.anchor_weight * divergence, divergence)

    def _ece_loss(self, scores: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        """Squared distance to the E-step's target, (Q,) float32."""
        probs = scores.softmax(dim=1)  # (Q, K)
        top = self._confidence_map()(probs.max(dim=1).values)
        if self.args.target == "tanh":
            target = tanh_target(probs, top, option)
        else:
            target = tempered_target(scores, top)
        return squared_distance(probs, target, option)

    def _released_loss(self, scores: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        """Regulariser of the released code, defects included, (Q,) float32.

        ``1e-3 · Σ_{b < B} (1/N_b) Σ_{i in b} ‖p̂_i − t_i‖²`` with the data set's bin counts N_b and
        accuracies as they were before training; the last bin is skipped, and the gradient also
        flows through the target.
        """
        probs = scores.softmax(dim=1)
        g = self._confidence_map()
        confidence = probs.max(dim=1).values
        target = tanh_target(probs, g(confidence), option, differentiable=True)
        distance = squared_distance(probs, target, option, fixed_target=False)
        count = g.counts(confidence)
        weight = torch.where((confidence < 1 - 1 / g.n_bins) & (count > 0), 1e-3 / count, 0.0)
        # A sum over the global batch: what follows divides by its size.
        return weight * distance * self._batch_size()

    # -- the E-step ---------------------------------------------------------------------------

    def e_step(self) -> None:
        """Refresh P(correct | confidence).

        In the first epoch a training question is read before the model has learnt from it, so what
        was answered since the last refresh is held out, and costs nothing. Otherwise, and where
        dropout makes those answers less sure than the model is, calibration questions are scored,
        in turn, as many as `CalibrationConfig.e_step_share` allows. Before the first step the
        training questions will do.
        """
        state, g = self._e_state(), self._confidence_map()
        if state.seen is not None and sum(state.seen[0]):
            g.add(*np.array(state.seen, dtype=np.float64))
        elif state.step < 0 or self._set_aside or self.args.e_step_data == "training":
            g.update(*self._calibration_answers(state))
        state.statistics, state.step, state.seen = g.state(), self.state.global_step, None

    def _calibration_answers(self, state: EStepState) -> tuple[np.ndarray, np.ndarray]:
        """Confidence and correctness of the calibration questions whose turn it is, two (N,)."""
        args, pool = self.args, len(self._calibration)
        n = pool
        if self._shares_forwards():
            first = state.step < 0 and not self._noised  # and alone in its epoch
            refreshes = 1 if first else args.e_steps_per_epoch
            n = min(pool, math.ceil(args.e_step_share * len(self.train_dataset) / refreshes))
        order = np.random.default_rng(args.seed).permutation(pool)
        asked = self._calibration.take(order[(state.scored + np.arange(n)) % pool])
        state.scored += n
        answers = self._answers_to(asked)
        answers = answers.with_logprobs(answers.logprobs / self.temperature)
        return answers.confidence, answers.correct

    def _shares_forwards(self) -> bool:
        args = self.args
        return args.regularised and args.e_step_data == "held-out" and args.e_steps_per_epoch > 0

    def _forwards_are_held_out(self) -> bool:
        fresh = self.state.epoch < 1 and not self._learnt
        return self._shares_forwards() and fresh and not self._noised

    def _keep_tally(self, scores: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Add the answers to questions that no other training question repeats."""
        confidence, predicted = (scores / self.temperature).softmax(dim=1).max(dim=1)
        fresh = np.array([name in self._asked_once for name in inputs["ids"]])
        fresh &= inputs["weight"].cpu().numpy() > 0
        if not fresh.any():
            return
        correct = (predicted == inputs["answer"]).cpu().numpy()
        tally = self._confidence_map().tally(confidence.cpu().numpy()[fresh], correct[fresh])
        self._tally += np.stack(tally).astype(np.int64)  # (2, B)

    def _answers_to(self, encoded: Sequence[EncodedQuestion] | Tokens) -> AnswerTable:
        """Answers to encoded questions under the current weights, not tempered."""
        tokens = Tokens.of(encoded)
        n = len(tokens)
        return AnswerTable(
            ids=tokens.ids,
            logprobs=score_encoded(
                self.model,
                self.tokenizer,
                tokens,
                processes=self.processes,
                show_progress=not self.args.disable_tqdm,
            ),
            labels=tokens.answer,
            n_options=tokens.n_options,
            option_mass=[math.nan] * n,
            tasks=("",) * n,
            groups=("",) * n,
        )

    def _e_state(self) -> EStepState:
        # Looked up each time: resuming from a checkpoint replaces the callback.
        callbacks = self.callback_handler.callbacks
        return next(c for c in callbacks if isinstance(c, EStepState))

    def _confidence_map(self) -> ConfidenceMap:
        args = self.args
        if args.method == "rcft-released":
            g = ConfidenceMap(args.e_step_bins, shrinkage=0.0, decay=0.0)
        else:
            g = ConfidenceMap(args.e_step_bins, args.e_step_shrinkage, args.e_step_decay)
        if (statistics := self._e_state().statistics) is not None:
            g.restore(statistics)
        return g

    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_dataset) / self._batch_size())

    def _batch_size(self) -> int:
        """Questions of an optimiser step, over all processes."""
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    # -- evaluation ---------------------------------------------------------------------------

    def score(self, questions: Sequence[Question]) -> AnswerTable:
        """Answer table of questions under the current weights and temperature."""
        answers = score(
            self.model,
            self.tokenizer,
            questions,
            prompt=self.args.prompt,
            processes=self.processes,
            encoded=self._tokens(questions),
            show_progress=not self.args.disable_tqdm,
        )
        return answers.with_logprobs(answers.logprobs / self.temperature)

    def _tokens(self, questions: Sequence[Question]) -> Tokens | None:
        """Encode the questions of an evaluation once: they do not change, and come again."""
        sets = self.eval_dataset
        sets = sets.values() if isinstance(sets, dict) else (sets,)
        if not isinstance(questions, Questions) or all(questions is not known for known in sets):
            return None
        if id(questions) not in self._evaluated:
            tokens = tokens_of(questions, self.tokenizer, self.args.prompt)
            self._evaluated[id(questions)] = questions, tokens
        return self._evaluated[id(questions)][1]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not for questions: `score` gives their answer table.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError("use trainer.score(questions), which gives an AnswerTable")

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Accuracy, conf-ECE, NLL, Brier score, mean and spread of confidence of questions."""
        questions = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(questions, dict):
            result: dict[str, float] = {}
            for name, part in questions.items():
                result |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return result
        if questions is None:
            raise InputError("evaluate: no eval_dataset was given, expected questions")
        answers = self._answers[metric_key_prefix] = self.score(questions)
        data = {"probs": answers.probs(), "labels": answers.labels, "n_options": answers.n_options}
        result = {
            f"{metric_key_prefix}_{name}": float(getattr(metrics, name)(**data))
            for name in ("accuracy", "conf_ece", "nll", "brier")
        }
        # Their collapse to one value, or to 1, is what goes wrong in RCFT; watch them.
        confidence = answers.confidence
        result[f"{metric_key_prefix}_mean_confidence"] = float(confidence.mean())
        result[f"{metric_key_prefix}_confidence_sd"] = float(confidence.std())
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, result
        )
        return result
