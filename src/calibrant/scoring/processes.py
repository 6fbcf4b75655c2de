"""The processes of one run, as `torchrun` or `accelerate launch` start them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from calibrant.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. They exchange small objects only, through the CPU.

    Attributes
    ----------
    rank : 0 to world - 1; process 0 writes. world : number of processes.
    lockstep : every forward pass must be made by all processes at once, as each holds only a part
        of the weights.
    device : where this process's forward passes run; None, where the model's first weight is.
        ZeRO-3 leaves frozen weights' husks on the CPU.
    """

    rank: int = 0
    world: int = 1
    lockstep: bool = False
    device: Any = None

    @classmethod
    def join(cls) -> Processes:
        """Meet the other processes, if this one was started as one of several.

        Raises
        ------
        InputError
            If fewer processes meet than the launcher announced.
        """
        text = os.environ.get("WORLD_SIZE") or "1"
        if not text.isdecimal():
            raise InputError(f"WORLD_SIZE={text} in the environment, expected a number")
        announced = int(text)
        if announced == 1:
            return cls()
        import torch
        from torch import distributed

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        if not distributed.is_initialized():
            # The processes meet again only at the end, perhaps days apart.
            try:
                distributed.init_process_group("gloo", timeout=timedelta(days=30))
            except ValueError as error:  # a variable that the launcher sets is missing
                raise InputError(
                    f"WORLD_SIZE={announced} in the environment, and {error}; expected torchrun or "
                    "accelerate to start the processes, or no WORLD_SIZE"
                ) from error
        if distributed.get_world_size() != announced:
            raise InputError(
                f"{distributed.get_world_size()} processes have met, expected WORLD_SIZE = "
                f"{announced} as the launcher announced"
            )
        return cls(distributed.get_rank(), announced)

    def of_first(self, value: T) -> T:
        """Process 0's value, in every process."""
        return self.of_all(value)[0]

    def of_all(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process."""
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values


ALONE = Processes()
