"""CFT and RCFT as a `transformers.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from calibrant import metrics
from calibrant.answers import AnswerTable
from calibrant.errors import InputError, NonFiniteLossError
from calibrant.prompts import EncodedQuestion, Prompt, encode
from calibrant.questions import Question, Questions, split_questions
from calibrant.scoring.batch import can_pack, check_lengths, collate, option_scores
from calibrant.scoring.local import pad_token, score, score_encoded
from calibrant.training.config import CalibrationConfig
from calibrant.training.losses import answer_nll, option_cross_entropy, squared_distance
from calibrant.training.targets import ConfidenceMap, tanh_target, tempered_target

# Questions of a training batch, which are of all lengths, share rows of about this many tokens:
# no padding, and attention over so short a row costs little.
ROW_TOKENS = 512


class EStepState(TrainerCallback, ExportableState):
    """The E-step's statistics, kept where the Trainer saves and restores them with a checkpoint."""

    def __init__(self) -> None:
        self.step = -1
        self.statistics: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget an earlier training; one that is resumed goes on with what it knew."""
        if state.global_step == 0:
            self.step, self.statistics = -1, None

    def state(self) -> dict[str, Any]:
        """JSON-able state in the form the Trainer expects."""
        return {"args": {}, "attributes": {"step": self.step, "statistics": self.statistics}}


@dataclass(frozen=True)
class QuestionCollator:
    """Encoded questions to a batch, with the questions' ids."""

    pad_token: int
    packed: bool
    question_loss: bool

    def __call__(self, questions: list[EncodedQuestion]) -> dict[str, Any]:
        """Lay the questions out as `calibrant.scoring.batch.collate` does."""
        batch: dict[str, Any] = collate(
            questions,
            pad_token=self.pad_token,
            packed=self.packed,
            row_tokens=ROW_TOKENS,
            question_loss=self.question_loss,
        )
        return batch | {"ids": [q.id for q in questions]}


class CalibrationTrainer(Trainer):
    """Fine-tune a language model so that its option probabilities mean what they say.

    A `transformers.Trainer` whose data are questions: accelerate, callbacks, checkpoints and the
    hub work as they do there. Losses are means over the *global* batch, so gradient accumulation
    changes nothing, nor does the number of processes where it divides the batches evenly.

    Parameters
    ----------
    model : a causal language model.
    args : `CalibrationConfig`.
    train_dataset : questions to train on.
    eval_dataset : questions, or a dict of them, to evaluate on; `evaluate` reports accuracy,
        conf-ECE, NLL and Brier score.
    calibration_dataset : questions of the E-step, held out of the SFT loss (rcft). By default
        ``args.calibration_fraction`` of the training questions are set aside.
    processing_class : the tokenizer.
    peft_config : a PEFT configuration; without it every weight is trained.
    **kwargs : passed to `transformers.Trainer`.

    Raises
    ------
    InputError
        If a question cannot be encoded or does not fit the model's context.
    NonFiniteLossError
        From `train`, when the loss is NaN or infinite.
    """

    # `compute_loss` divides by the global batch's counts itself.
    loss_is_scaled_for_ga = True

    args: CalibrationConfig

    def __init__(
        self,
        model: Any,
        args: CalibrationConfig,
        train_dataset: Sequence[Question] | None = None,
        eval_dataset: Sequence[Question] | dict[str, Sequence[Question]] | None = None,
        calibration_dataset: Sequence[Question] | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise InputError(
                "CalibrationTrainer: processing_class is missing, expected a tokenizer"
            )
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        self.tokenizer = processing_class
        encoded: list[EncodedQuestion] | None = None
        self._calibration: list[EncodedQuestion] = []
        if train_dataset is not None:
            train_dataset = Questions(train_dataset)
            if args.method == "rcft" and calibration_dataset is None:
                train_dataset, calibration_dataset = split_questions(
                    train_dataset, args.calibration_fraction, args.seed
                )
            encoded = encode(list(train_dataset), processing_class, args.prompt)
            check_lengths(model, encoded)
            if args.method == "rcft":
                self._calibration = encode(list(calibration_dataset), processing_class, args.prompt)
        super().__init__(
            model=model,
            args=args,
            data_collator=QuestionCollator(
                pad_token=pad_token(processing_class),
                packed=encoded is not None and can_pack(model, encoded),
                question_loss=args.method == "rcft" and args.question_weight > 0,
            ),
            train_dataset=encoded,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.method == "rcft":
            self.add_callback(EStepState())

    # -- the loss -----------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Draw the micro-batches of one optimiser step; count what the global batch holds."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor(
            [
                sum(len(batch["answer"]) for batch in batches),
                sum(len(batch.get("question_at", ())) for batch in batches),
            ],
            device=device,
        )
        return batches, self.accelerator.reduce(counts, "sum")

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Refresh the E-step when it is due, then train on a micro-batch."""
        if self.args.method == "rcft":
            every = math.ceil(self._steps_per_epoch() / self.args.e_steps_per_epoch)
            if (
                self.state.global_step % every == 0
                and self._e_state().step != self.state.global_step
            ):
                self.e_step()
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Loss of a micro-batch, normalised by the global batch's questions and tokens."""
        args = self.args
        scores, question_logprobs = option_scores(model, inputs)
        options_loss = args.answer_loss == "options" or (
            args.answer_loss == "auto" and not Prompt.of(args.prompt).is_letter
        )
        if options_loss:
            per_question = option_cross_entropy(scores, inputs["answer"])
        else:
            per_question = answer_nll(scores, inputs["answer"], inputs["divisor"])
        if args.method == "rcft":
            per_question = per_question + args.ece_weight * self._ece_loss(scores, inputs["option"])
        world = 1 if num_items_in_batch is None else self.args.world_size  # DDP averages gradients
        if num_items_in_batch is None:
            n_questions = per_question.numel()
            n_tokens = 0 if question_logprobs is None else question_logprobs.numel()
        else:
            n_questions, n_tokens = num_items_in_batch.tolist()
        loss = world * per_question.sum() / n_questions
        if question_logprobs is not None:
            loss = loss - world * args.question_weight * question_logprobs.sum() / n_tokens
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"step {self.state.global_step}: the loss is {loss.item()} on questions "
                f"{', '.join(map(repr, inputs['ids']))}; expected a finite number. Try a lower "
                "learning rate, or float32 instead of float16."
            )
        return (loss, scores) if return_outputs else loss

    def _ece_loss(self, scores: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        """Squared distance to the E-step's target, (Q,) float32."""
        probs = scores.softmax(dim=1)  # (Q, K)
        top = self._confidence_map()(probs.max(dim=1).values)
        if self.args.target == "tanh":
            target = tanh_target(probs, top, option)
        else:
            target = tempered_target(scores, top)
        return squared_distance(probs, target, option)

    # -- the E-step ---------------------------------------------------------------------------

    def e_step(self) -> None:
        """Score the held-out calibration questions and refresh P(correct | confidence)."""
        logprobs = score_encoded(self.model, self.tokenizer, self._calibration, show_progress=False)
        answers = AnswerTable(
            ids=tuple(str(i) for i in range(len(logprobs))),
            logprobs=logprobs,
            labels=[q.answer for q in self._calibration],
            n_options=[len(q.reads) for q in self._calibration],
            option_mass=[math.nan] * len(logprobs),
            tasks=("",) * len(logprobs),
            groups=("",) * len(logprobs),
        )
        g = self._confidence_map()
        g.update(answers.confidence, answers.correct)
        state = self._e_state()
        state.statistics, state.step = g.state(), self.state.global_step

    def _e_state(self) -> EStepState:
        # Looked up each time: resuming from a checkpoint replaces the callback.
        callbacks = self.callback_handler.callbacks
        return next(c for c in callbacks if isinstance(c, EStepState))

    def _confidence_map(self) -> ConfidenceMap:
        g = ConfidenceMap(self.args.e_step_bins, self.args.e_step_shrinkage, self.args.e_step_decay)
        if (statistics := self._e_state().statistics) is not None:
            g.restore(statistics)
        return g

    def _steps_per_epoch(self) -> int:
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return math.ceil(len(self.train_dataset) / (per_step * self.args.world_size))

    # -- evaluation ---------------------------------------------------------------------------

    def score(self, questions: Sequence[Question]) -> AnswerTable:
        """Answer table of questions under the current weights."""
        return score(
            self.model,
            self.tokenizer,
            questions,
            prompt=self.args.prompt,
            show_progress=not self.args.disable_tqdm,
        )

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
        """Accuracy, conf-ECE, NLL and Brier score of the evaluation questions."""
        questions = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(questions, dict):
            result: dict[str, float] = {}
            for name, part in questions.items():
                result |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return result
        if questions is None:
            raise InputError("evaluate: no eval_dataset was given, expected questions")
        answers = self.score(questions)
        data = {"probs": answers.probs(), "labels": answers.labels, "n_options": answers.n_options}
        result = {
            f"{metric_key_prefix}_{name}": float(getattr(metrics, name)(**data))
            for name in ("accuracy", "conf_ece", "nll", "brier")
        }
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, result
        )
        return result
