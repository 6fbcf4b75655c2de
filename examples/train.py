"""Fine-tune on several processes what a recipe describes; `calibrant restore` itself runs in one.

usage: accelerate launch --config_file recipes/accelerate/ddp.yaml examples/train.py RECIPE
           [--method cft] [--output runs/trained] [any option of calibrant restore]
       torchrun --nproc_per_node 2 examples/train.py RECIPE ...

The batch size of the recipe is that of all processes together. Killed, the same command goes on
after the last checkpoint. The adapter (or model) lands in OUTPUT/trained, the temperature of
tempered-cft, which is part of it, in OUTPUT/calibrator.json; the former is measured by

    calibrant evaluate OUTPUT/trained --questions FILE
"""

import argparse
import os
from dataclasses import fields
from pathlib import Path

from calibrant.cli.restore import command
from calibrant.errors import InputError
from calibrant.restore import RestoreSettings, load_data


def settings_of(recipe: str, more: list[str]) -> RestoreSettings:
    """As ``calibrant restore --config RECIPE`` has them."""
    options = command.make_context("restore", ["--config", recipe, *more]).params
    known = {field.name for field in fields(RestoreSettings)}
    return RestoreSettings(**{name: options[name] for name in known & set(options)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--method", default="cft")
    parser.add_argument("--output", type=Path, default=Path("runs/trained"))
    arguments, more = parser.parse_known_args()
    settings = settings_of(arguments.recipe, more)

    import torch
    from transformers import set_seed

    from calibrant.scoring.models import load_model
    from calibrant.training import CalibrationTrainer
    from calibrant.training.checkpoints import last_whole
    from calibrant.training.tuning import adapter_config, training_arguments, validation_split

    questions, _, _, notes = load_data(settings)
    questions, validation = validation_split(settings, questions)
    checkpoints = arguments.output / "checkpoints"
    on_cpu = not torch.cuda.is_available()
    args = training_arguments(settings, arguments.method, checkpoints, on_cpu=on_cpu)
    whole = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if whole % args.world_size:
        raise InputError(
            f"batch size {whole} on {args.world_size} processes, expected a multiple of that"
        )
    share = whole // args.world_size
    micro = max(m for m in range(1, args.per_device_train_batch_size + 1) if share % m == 0)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = micro, share // micro
    set_seed(settings.seed)
    # The Trainer moves the model to each process's device, or shards it. Weights that are trained,
    # adapters too, are float32; those that are frozen, bfloat16.
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if settings.lora_rank and not on_cpu else "float32"
    model, tokenizer = load_model(settings.model, dtype=dtype, device="cpu")
    trainer = CalibrationTrainer(
        model=model,
        args=args,
        train_dataset=questions,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=adapter_config(settings),
    )
    if trainer.is_world_process_zero():
        for line in notes:
            print(f"note: {line}")
        print(f"{len(questions):,} questions, {args.world_size} processes of {micro} at a time")
    trainer.train(resume_from_checkpoint=last_whole(checkpoints) is not None)
    trainer.save_model(str(arguments.output / "trained"))
    if trainer.is_world_process_zero():
        if trainer.calibrator is not None:  # a temperature that belongs to these weights
            trainer.calibrator.save(arguments.output / "calibrator.json")
        print(f"Written to {arguments.output / 'trained'}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A thread of gloo's that has a tensor to let go of when the interpreter ends would wait for
        # it for ever; waiting here lets it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
