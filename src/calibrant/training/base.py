"""What every training on option scores shares: batches, global normalisation, finite losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from calibrant.errors import InputError, NonFiniteLossError
from calibrant.prompts import EncodedQuestion
from calibrant.scoring.batch import can_pack, check_lengths, collate, option_scores
from calibrant.scoring.local import pad_token
from calibrant.training.faults import FaultTolerantTrainer

# Questions of a training batch, which are of all lengths, share rows of about this many tokens:
# no padding, and attention over so short a row costs little.
ROW_TOKENS = 512


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


class OptionTrainer(FaultTolerantTrainer):
    """A `transformers.Trainer` on encoded questions; subclasses say what a question's loss is.

    The loss is a mean over the *global* batch, so gradient accumulation changes nothing, nor does
    the number of processes where it divides the batches evenly.

    Parameters
    ----------
    encoded : training questions, or None.
    processing_class : the tokenizer.
    question_weight : weight of the mean negative log-likelihood of the questions' own tokens.
    peft_config : a PEFT configuration; without it every weight is trained.
    """

    # `compute_loss` divides by the global batch's counts itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: Any,
        encoded: list[EncodedQuestion] | None,
        processing_class: Any,
        question_weight: float = 0.0,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise InputError(
                f"{type(self).__name__}: processing_class is missing, expected a tokenizer"
            )
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        if encoded is not None:
            check_lengths(model, encoded)
        self.tokenizer = processing_class
        self.question_weight = question_weight
        super().__init__(
            model=model,
            args=args,
            data_collator=QuestionCollator(
                pad_token=pad_token(processing_class),
                packed=encoded is not None and can_pack(model, encoded),
                question_loss=question_weight > 0,
            ),
            train_dataset=encoded,
            processing_class=processing_class,
            **kwargs,
        )

    def question_losses(self, scores: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss of each question but for its own tokens, (Q,) float32."""
        raise NotImplementedError

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

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Loss of a micro-batch, normalised by the global batch's questions and tokens."""
        scores, question_logprobs = option_scores(model, inputs)
        per_question = self.question_losses(scores, inputs)
        world = 1 if num_items_in_batch is None else self.args.world_size  # DDP averages gradients
        if num_items_in_batch is None:
            n_questions = per_question.numel()
            n_tokens = 0 if question_logprobs is None else question_logprobs.numel()
        else:
            n_questions, n_tokens = num_items_in_batch.tolist()
        loss = world * per_question.sum() / n_questions
        if question_logprobs is not None:
            loss = loss - world * self.question_weight * question_logprobs.sum() / n_tokens
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"step {self.state.global_step}: the loss is {loss.item()} on questions "
                f"{', '.join(map(repr, inputs['ids']))}; expected a finite number. Try a lower "
                "learning rate, or float32 instead of float16."
            )
        return (loss, scores) if return_outputs else loss
