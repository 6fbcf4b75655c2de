"""What every training on option scores shares: batches, global normalisation, finite losses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrant.errors import InputError, NonFiniteLossError
from calibrant.prompts import EncodedQuestion
from calibrant.scoring.batch import can_pack, check_lengths, collate, option_scores
from calibrant.scoring.local import pad_token
from calibrant.scoring.processes import Processes
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
    padding_side: str = "right"

    def __call__(self, questions: list[EncodedQuestion]) -> dict[str, Any]:
        """Lay the questions out as `calibrant.scoring.batch.collate` does."""
        batch: dict[str, Any] = collate(
            questions,
            pad_token=self.pad_token,
            packed=self.packed,
            row_tokens=ROW_TOKENS,
            padding_side=self.padding_side,
            question_loss=self.question_loss,
        )
        return batch | {"ids": [q.id for q in questions]}


def weigh(batch: dict[str, Any], weight: torch.Tensor) -> None:
    """Give a batch its questions' weights, (Q,), 1 or 0; tokens of those of 0 are not learnt."""
    batch["weight"] = weight
    if "question_token" in batch:
        left_out = weight[batch["question_of"]] == 0
        batch["question_token"] = batch["question_token"].masked_fill(left_out, -100)


class OptionTrainer(FaultTolerantTrainer):
    """A `transformers.Trainer` on encoded questions; subclasses say what a question's loss is.

    The loss is a mean over the *global* batch, so neither gradient accumulation nor the number of
    processes changes anything.

    Parameters
    ----------
    encoded : training questions, or None.
    processing_class : the tokenizer.
    question_weight : weight of the mean negative log-likelihood of the questions' own tokens.
    peft_config : a PEFT configuration; without it every weight is trained.

    Raises
    ------
    InputError
        If the tokenizer is missing, a question does not fit the model's context, or the processes
        are not those that were asked for.
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
            from transformers import set_seed

            set_seed(args.seed)  # an adapter begins with random numbers
            model = get_peft_model(model, peft_config)
        if encoded is not None:
            check_lengths(model, encoded)
        if not (args.bf16 or args.fp16):
            # What accelerate's launcher asked for; DeepSpeed refuses arguments that say otherwise.
            args.bf16, args.fp16 = (args.mixed_precision == name for name in ("bf16", "fp16"))
        self.tokenizer = processing_class
        self.question_weight = question_weight
        super().__init__(
            model=model,
            args=args,
            data_collator=QuestionCollator(
                pad_token=pad_token(processing_class),
                packed=encoded is not None and can_pack(model, encoded),
                question_loss=question_weight > 0,
                padding_side=processing_class.padding_side,
            ),
            train_dataset=encoded,
            processing_class=processing_class,
            **kwargs,
        )
        self._check_processes()

    def _check_processes(self) -> None:
        """Raise `InputError` where accelerate quietly runs something other than was asked for."""
        if self.args.n_gpu > 1:
            raise InputError(
                f"{self.args.n_gpu} GPUs are visible to one process, expected one: launch with "
                "torchrun or accelerate to use them all, or set CUDA_VISIBLE_DEVICES"
            )
        announced = int(os.environ.get("WORLD_SIZE", "1"))
        if self.args.world_size != announced:
            raise InputError(
                f"{self.args.world_size} processes train, expected WORLD_SIZE = {announced} as the "
                "launcher announced"
            )
        found = self.accelerator.distributed_type
        for name, asked in (("FSDP", self.args.fsdp), ("DEEPSPEED", self.args.deepspeed)):
            in_environment = os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"
            if (asked or in_environment) and found != name:
                raise InputError(
                    f"{name} was asked for and accelerate runs {found.value} on "
                    f"{self.args.device.type}: the model would not be sharded. Expected a launch "
                    "with torchrun or accelerate, on accelerators"
                )

    @property
    def processes(self) -> Processes:
        """The processes that train, to share the work of an E-step or an evaluation.

        Raises
        ------
        InputError
            Before training with ZeRO-3, in whose model no weight is whole until it begins.
        """
        if (
            self.is_deepspeed_enabled
            and self.accelerator.state.deepspeed_plugin.zero_stage == 3
            and self.model_wrapped is self.model
        ):
            raise InputError(
                "the model is to answer before training (for a temperature, early stopping or a "
                "reference), which ZeRO-3's shared-out weights cannot; expected ZeRO-2 or FSDP2"
            )
        return Processes(
            self.args.process_index,
            self.args.world_size,
            lockstep=self.accelerator.distributed_type in ("FSDP", "DEEPSPEED"),
            device=self.args.device,
        )

    def read(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Run the model on a micro-batch, as `option_scores` does."""
        return option_scores(model, inputs)

    def question_losses(self, scores: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss of each question but for its own tokens, (Q,) float32."""
        raise NotImplementedError

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Draw the micro-batches of one optimiser step; count what the global batch holds."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            weigh(batch, torch.ones(len(batch["answer"]), device=device))
        if batches and self.accelerator.gradient_state.end_of_dataloader:
            self._leave_out_repeats(batches[-1])
        counts = torch.zeros(2, dtype=torch.int64, device=device)
        for batch in batches:
            counts[0] += batch["weight"].sum().long()
            if "question_token" in batch:
                counts[1] += (batch["question_token"] >= 0).sum()
        return batches, self.accelerator.reduce(counts, "sum")

    def _leave_out_repeats(self, batch: dict[str, Any]) -> None:
        """Of an epoch's last batch, drop what accelerate repeats so that all processes have one.

        Its questions are dealt out in order, and those that fill up stand behind them.
        """
        size, dealt = self.args.train_batch_size, self.accelerator.dataloader_config
        over = len(self.train_dataset) % (size * self.args.world_size)
        if not over or self.args.dataloader_drop_last or dealt.split_batches:
            return
        real = over - self.args.process_index * size
        weight = batch["weight"].clone()
        weight[max(real, 0) :] = 0.0
        weigh(batch, weight)

    def _prepare_input(self, data: Any) -> Any:
        """Move to the device as it is: DeepSpeed's precision is for weights, not for divisors."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def carry_over(self, inputs: Any, piece: Any, part: np.ndarray) -> None:
        """Give a piece of a micro-batch its questions' weights."""
        weigh(piece, inputs["weight"][part])

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Loss of a micro-batch, normalised by the global batch's questions and tokens."""
        scores, question_nll = self.read(model, inputs)
        losses = self.question_losses(scores, inputs)
        if num_items_in_batch is None:
            world, n_questions = 1, losses.numel()
            n_tokens = len(inputs.get("question_token", ()))
        else:
            world = self.args.world_size  # data-parallel processes average their gradients
            losses = losses * inputs["weight"]
            n_questions, n_tokens = num_items_in_batch.tolist()
        loss = world * losses.sum() / n_questions
        if question_nll is not None:
            loss = loss + world * self.question_weight * question_nll / n_tokens
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"step {self.state.global_step}: the loss is {loss.item()} on questions "
                f"{', '.join(map(repr, inputs['ids']))}; expected a finite number. Try a lower "
                "learning rate, or float32 instead of float16."
            )
        return (loss, scores) if return_outputs else loss
