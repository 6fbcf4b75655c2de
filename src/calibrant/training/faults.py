"""A Trainer that survives what befalls long runs: kills, full disks, bad numbers, full memory."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from calibrant.errors import InputError, NonFiniteLossError, reason
from calibrant.scoring.local import out_of_memory
from calibrant.training.adapters import check_whole, plain_names
from calibrant.training.checkpoints import (
    DRAFT,
    check_writable,
    checkpoints,
    last_whole,
    logger,
    publish,
    whole,
)


class Pieces(TrainerCallback, ExportableState):
    """Into how many pieces micro-batches are cut to fit in memory, kept with the checkpoints."""

    def __init__(self, n: int = 1) -> None:
        self.n = n

    def state(self) -> dict[str, Any]:
        """JSON-able state in the form the Trainer expects."""
        return {"args": {"n": self.n}, "attributes": {}}


class FaultTolerantTrainer(Trainer):
    """A `transformers.Trainer` whose runs may be killed, and which keeps what it has.

    * A checkpoint is written to a hidden folder, listed with its files' SHA-256, and renamed: a
      kill leaves the one before. One that cannot be written stops the run; the last good one stays.
    * An adapter is saved with every weight that was trained, or not at all.
    * `train(resume_from_checkpoint=…)` goes on from the last checkpoint whose files are as they
      were written, and says which it passed over.
    * A gradient that is not finite stops the run before it reaches the weights.
    * A micro-batch that does not fit in memory is cut in pieces, and those that follow too: the
      gradient of the step is the same sum, so neither the batch size nor the run changes.

    Subclasses' collators take a list of ``train_dataset``'s items, and batches name them in
    ``ids``; losses of pieces add up to that of their micro-batch.
    """

    def __init__(self, model: Any, args: Any, **kwargs: Any) -> None:
        if args.should_save:
            check_writable(args.output_dir)
        self._drafting = False
        self._step_batches: list[Any] = []
        self._micro_batch = 0
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(Pieces())

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, from the beginning or from a checkpoint.

        Parameters
        ----------
        resume_from_checkpoint : a checkpoint; or True for the last whole one in
            ``args.output_dir``.

        Raises
        ------
        InputError
            If there is no whole checkpoint, none can be written, or one question alone does not
            fit in memory.
        NonFiniteLossError
            If the loss or its gradient is NaN or infinite.
        """
        resume = self._of_first_process(lambda: self._to_resume(resume_from_checkpoint))
        try:
            return super().train(resume, *args, **kwargs)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error} {self._kept()}") from error

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Make the repository that ``push_to_hub`` asks for, before anything is trained.

        Raises
        ------
        InputError
            If that fails, for whatever reason.
        """
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # of the hub's client, the network below it, the account
            raise InputError(
                f"push_to_hub: {self.args.hub_model_id or self.args.output_dir} cannot be made on "
                f"the hub: {reason(error)}; expected a network and a token (hf auth login), or "
                "no push_to_hub"
            ) from error

    # -- checkpoints --------------------------------------------------------------------------

    def _to_resume(self, asked: str | bool | None) -> str | None:
        if not asked:
            return None
        if asked is not True:
            return str(whole(asked))
        last = last_whole(self.args.output_dir)
        if last is None:
            raise InputError(
                f"{self.args.output_dir}: holds no whole checkpoint; expected one to resume from"
            )
        return str(last)

    def _of_first_process(self, ask: Any) -> Any:
        """Answer of the first process, in every process; its `InputError` too."""
        answer: list[Any] = [None]
        if self.args.process_index == 0:
            try:
                answer = [ask()]
            except InputError as error:
                answer = [error]
        if self.args.world_size > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(answer)
        if isinstance(answer[0], InputError):
            raise answer[0]
        return answer[0]

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, DRAFT) if self._drafting else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        final = folder / f"checkpoint-{self.state.global_step}"
        made = folder / DRAFT / final.name
        if self.args.should_save:
            shutil.rmtree(folder / DRAFT, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        try:
            self._drafting = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._drafting = False
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(made):
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(made / TRAINER_STATE_NAME))
                publish(made, final)
        except (OSError, RuntimeError, SafetensorError, InputError) as error:
            # torch and safetensors have their own names for what the system refused.
            shutil.rmtree(folder / DRAFT, ignore_errors=True)
            raise InputError(
                f"{final}: the checkpoint cannot be written: {reason(error)}. {self._kept()}"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, or its adapter, in the first process.

        Raises
        ------
        InputError
            If its weights are not all there; nothing is written then.
        """
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin and not _internal_call and "FULL" not in str(plugin.state_dict_type):
            raise InputError(  # the Trainer would write nothing, and not say so
                f"{output_dir}: weights are not saved with {plugin.state_dict_type}; expected "
                "fsdp_state_dict_type: FULL_STATE_DICT"
            )
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from peft import PeftModel

        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with plain_names(model):
            if self.args.should_save and isinstance(model, PeftModel):
                check_whole(model, state_dict)
            super()._save(output_dir, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait until the checkpoint has its name."""

    def _kept(self) -> str:
        """Say which checkpoint a run that stops here leaves behind."""
        try:
            found = checkpoints(self.args.output_dir)
        except OSError:  # the very folder is gone
            return ""
        if not found:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {found[0]}; resume from it when the cause is mended."

    # -- numbers ------------------------------------------------------------------------------

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = self.accelerator.scaler is not None  # float16's scaler skips such steps itself
        value = norm.item() if hasattr(norm, "item") else norm
        if value is not None and not scaled and not np.isfinite(value):
            raise NonFiniteLossError(
                f"step {self.state.global_step}: the gradient's norm is {value}; expected a "
                "finite number. The weights were not changed by it. Try a lower learning rate, or "
                "float32 instead of float16."
            )
        return norm

    # -- memory -------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Draw the micro-batches of one optimiser step, and remember them."""
        batches, n = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step_batches, self._micro_batch = batches, 0
        return batches, n

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Add a micro-batch's gradient; cut it in pieces where it does not fit in memory."""
        self._micro_batch += 1
        todo = [inputs]
        while True:
            try:
                for batch in todo:
                    loss = self._step_on(model, batch, num_items_in_batch)
                return loss
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._cut_smaller(inputs, error)
            # Outside the handler, which would keep the failed batch's tensors alive. Backward may
            # have stopped half-way, so all gradients of this step are made anew.
            model.zero_grad()  # accelerate's optimiser would do nothing within a step
            self.forget_step()
            if self.args.device.type == "cuda":
                torch.cuda.empty_cache()
            todo = self._step_batches[: self._micro_batch]

    def forget_step(self) -> None:
        """Forget what the micro-batches of this step have left elsewhere: they are done again."""

    def _step_on(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        if self._pieces().n == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        ids, questions = inputs["ids"], self._questions
        loss = 0.0
        for part in np.array_split(np.arange(len(ids)), min(self._pieces().n, len(ids))):
            batch = self.data_collator([questions[ids[i]] for i in part])
            self.carry_over(inputs, batch, part)
            loss += super().training_step(model, batch, num_items_in_batch)
        return loss

    def carry_over(self, inputs: Any, piece: Any, part: np.ndarray) -> None:
        """Give a piece what a micro-batch got after it was collated; part is its questions'."""

    @functools.cached_property
    def _questions(self) -> dict[str, Any]:
        return {q.id: q for q in self.train_dataset}

    def _cut_smaller(self, inputs: Any, error: BaseException) -> None:
        size = len(inputs["ids"])
        pieces = min(2 * self._pieces().n, size)
        if self.args.world_size > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            # The other processes are in the middle of the same step.
            raise InputError(
                f"step {self.state.global_step}: a micro-batch of {size} does not fit in memory on "
                f"process {self.args.process_index}; expected half of per_device_train_batch_size "
                f"and twice gradient_accumulation_steps, which train the same. {self._kept()}"
            ) from error
        if pieces == self._pieces().n or size == 1:
            raise InputError(
                f"step {self.state.global_step}: a single question of {', '.join(inputs['ids'])} "
                "does not fit in memory; expected activation checkpointing, a smaller model or a "
                f"shorter prompt. {self._kept()}"
            ) from error
        self._pieces().n = pieces
        logger.warning(
            "step %d: a micro-batch of %d does not fit in memory; from here on it is taken in %d "
            "pieces. The batch size, and what is trained, stay the same.",
            self.state.global_step,
            size,
            pieces,
        )

    def _pieces(self) -> Pieces:
        # Looked up each time: resuming from a checkpoint replaces the callback.
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Pieces))
