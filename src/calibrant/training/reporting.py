"""What the training questions themselves were answered, between two lines of the log."""

from __future__ import annotations

from typing import Any

import torch

from calibrant.training.accumulator import DistributedBinTable


class TrainingAnswers:
    """Accuracy, conf-ECE, NLL and mean confidence of the training forwards since the last line.

    They come for nothing: each question is read before the weights learn from it. From the second
    epoch on they are those of questions that have been trained on, which is what they show: where
    they part from the evaluation's, the model has begun to memorise. A line of few questions has a
    conf-ECE of about ``1 / sqrt(N)`` by chance alone.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._table = DistributedBinTable(n_bins=10)
        self._nll = 0.0

    def add(self, scores: torch.Tensor, answer: torch.Tensor) -> None:
        """Add Q questions: scores (Q, K), ``-inf`` for padding; answer (Q,); both on the CPU."""
        logprobs = scores.double().log_softmax(dim=1)
        self._table.update(logprobs.exp(), answer)
        self._nll -= float(logprobs[torch.arange(len(answer)), answer].sum())

    def take(self, accelerator: Any) -> dict[str, float]:
        """Give the numbers over all processes, and begin anew; {} if nothing was added."""
        table = self._table.table()
        nll = accelerator.reduce(
            torch.tensor(self._nll, dtype=torch.float32, device=accelerator.device), "sum"
        ).item()
        self._clear()
        if not table.n:
            return {}
        return {
            "accuracy": float(table.sum_correct.sum() / table.n),
            "conf_ece": table.ece(),
            "nll": nll / table.n,
            "mean_confidence": float(table.sum_confidence.sum() / table.n),
        }


class ReportedTraining:
    """Mixin of a Trainer: each line of the log also says what `TrainingAnswers` has found.

    The log goes to the progress bar, and where ``report_to`` says: TensorBoard, W&B and others.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._answered = TrainingAnswers()  # of the steps that are complete
        self._step: list[tuple[torch.Tensor, torch.Tensor]] = []  # scores and answers of this one
        super().__init__(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Train on a micro-batch; count the step's answers when it is the last."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            for scores, answer in self._step:
                self._answered.add(scores, answer)
            self._step = []
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a micro-batch; its answers are kept until the step is complete."""
        loss, scores = super().compute_loss(model, inputs, True, num_items_in_batch)
        if num_items_in_batch is not None:
            counted = torch.tensor([self.is_labelled(name) for name in inputs["ids"]])
            counted &= inputs["weight"].cpu() > 0  # one of each that was dealt out twice
            if counted.any():
                scores_then = scores.detach().cpu()[counted] / self.temperature
                self._step.append((scores_then, inputs["answer"].cpu()[counted]))
        return (loss, scores) if return_outputs else loss

    def forget_step(self) -> None:
        """Count none twice; what earlier steps answered stays."""
        super().forget_step()
        self._step = []

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a line, with the training questions' numbers beside the loss."""
        if "loss" in logs:
            logs |= self._answered.take(self.accelerator)
        super().log(logs, *args, **kwargs)
