"""What a training took, over all the times it was interrupted and gone on with."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class Clock(TrainerCallback, ExportableState):
    """Seconds of a training, kept with its checkpoints so that one gone on with counts them all."""

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self.earlier = (seconds, cpu_seconds)
        self.start: tuple[float, float] | None = None

    @classmethod
    def of(cls, trainer: Any) -> Clock:
        """Find a trainer's clock; resuming from a checkpoint replaces the one it was given."""
        return next(c for c in trainer.callback_handler.callbacks if isinstance(c, cls))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start = _now()

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
