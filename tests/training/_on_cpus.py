"""Run examples/train.py where accelerate takes processes of the CPU for GPUs, and shards on them.

usage: accelerate launch --config_file CONFIG _on_cpus.py RECIPE [options of examples/train.py]

Micro-batches are of 2 questions, checkpoints every 5 steps. At step KILLED_AT every process ends.
"""

import os
import runpy
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from calibrant.training import CalibrationTrainer, tuning

of_settings, step = tuning.training_arguments, CalibrationTrainer.training_step


def training_arguments(settings, method, folder, *, on_cpu):
    args = of_settings(settings, method, folder, on_cpu=False)
    args.gradient_accumulation_steps = args.per_device_train_batch_size // 2
    args.per_device_train_batch_size, args.save_steps = 2, 5
    return args


def training_step(self, *args, **kwargs):
    if str(self.state.global_step) == os.environ.get("KILLED_AT"):
        os._exit(1)
    return step(self, *args, **kwargs)


if __name__ == "__main__":
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)
    tuning.training_arguments = training_arguments
    CalibrationTrainer.training_step = training_step
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train.py"), run_name="__main__")
