"""From the settings of a restoration to a Trainer's: arguments, adapter, questions to select on."""

from __future__ import annotations

import os
from typing import Any

from calibrant.prompts import Prompt
from calibrant.questions import Questions, split_questions
from calibrant.training.config import CalibrationConfig

MICRO_BATCH = 4  # questions of a forward pass in training on a CPU; for memory, not the result
VALIDATION = 0.1  # share of the training questions that early stopping is decided on
EVALUATIONS = 4  # of an epoch, with early stopping


def adapter_config(settings: Any) -> Any:
    """Give PEFT's configuration of a LoRA or DoRA adapter, None where every weight is trained."""
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        use_dora=settings.dora,
        target_modules="all-linear",
    )


def validation_split(settings: Any, questions: Questions) -> tuple[Questions, Questions | None]:
    """Give the questions to train on, and those that early stopping is decided on, if it is."""
    if settings.early_stopping is None:
        return questions, None
    return split_questions(questions, VALIDATION, settings.seed)


def training_arguments(
    settings: Any,
    method: str,
    output_dir: str | os.PathLike[str],
    *,
    on_cpu: bool,
) -> CalibrationConfig:
    """Give the arguments of a `CalibrationTrainer`.

    Parameters
    ----------
    settings : `calibrant.restore.RestoreSettings`.
    output_dir : for checkpoints.
    """
    s = settings
    micro_batch = s.batch_size
    if on_cpu:
        micro_batch = max(m for m in range(1, MICRO_BATCH + 1) if s.batch_size % m == 0)
    save_steps: float = 25 if on_cpu else 50
    selection: dict[str, Any] = {}
    if s.early_stopping is not None:
        # A share of the trainer's own steps: it knows how many questions rcft sets aside. The last
        # step is evaluated whatever the share (`GuardedSelection`).
        save_steps = 1 / max(2, round(EVALUATIONS * s.epochs))
        selection = {
            "eval_strategy": "steps",
            "eval_steps": save_steps,
            "load_best_model_at_end": True,
            "metric_for_best_model": f"eval_{s.best_by}",
            "early_stopping_patience": s.early_stopping,
        }
    if s.push_to_hub is not None:
        selection |= {
            "push_to_hub": True,
            "hub_model_id": f"{s.push_to_hub}-{method}",
            "hub_strategy": "end",
            "hub_private_repo": True,
        }
    return CalibrationConfig(
        output_dir=str(output_dir),
        method=method,
        prompt=Prompt.of(s.prompt).to_json(),
        num_train_epochs=s.epochs,
        learning_rate=s.learning_rate or (3e-4 if s.lora_rank else 2e-5),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=s.batch_size // micro_batch,
        activation_checkpointing=s.activation_checkpointing,
        strength=s.strength,
        ece_weight=s.ece_weight,
        question_weight=s.question_weight,
        target=s.target,
        calibration_fraction=s.calibration_fraction,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=1,
        seed=s.seed,
        report_to=list(s.report_to) or "none",
        use_cpu=on_cpu,
        **selection,
    )
