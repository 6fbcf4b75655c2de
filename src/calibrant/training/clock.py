"""What a training took, over all the times it was interrupted and gone on with."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Clock(TrainerCallback, ExportableState):
    """Seconds of a training, kept with its checkpoints so that one gone on with counts them all.

    `begin` is called before `Trainer.train`, which may answer questions before its first step.
    """

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self.earlier = (seconds, cpu_seconds)
        self.start: tuple[float, float] | None = None

    def begin(self) -> None:
        """Start the clock."""
        self.start = _now()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of a training gone on with, which the Trainer has just made anew."""
        if self.start is None:
            self.begin()

    def of(self, trainer: Any) -> Clock:
        """Find the trainer's clock, which counts from this one's beginning.

        Resuming from a checkpoint replaces the clock that a trainer was given.
        """
        clocks = (c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))
        found = next(clocks)
        found.start = self.start
        return found

    def spent(self) -> dict[str, float]:
        """Give ``training_seconds`` and ``training_cpu_seconds`` of this process so far."""
        now = _now()
        wall, cpu = (
            e + n - s for e, n, s in zip(self.earlier, now, self.start or now, strict=True)
        )
        return {"training_seconds": wall, "training_cpu_seconds": cpu}

    def state(self) -> dict[str, Any]:
        """JSON-able state in the form the Trainer expects."""
        spent = self.spent()
        return {
            "args": {
                "seconds": spent["training_seconds"],
                "cpu_seconds": spent["training_cpu_seconds"],
            },
            "attributes": {},
        }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
