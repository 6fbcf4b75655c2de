"""The stages a language model goes through, each by the code that real models go through.

Every function takes a model, trains a copy of it and returns the copy.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

from transformers import (
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from calibrant.preferences import Preference
from calibrant.questions import Question
from calibrant.training import CalibrationConfig, CalibrationTrainer
from calibrant.training.preference import PreferenceConfig, PreferenceTrainer

_QUIET: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "dataloader_num_workers": 0,
}


def pretrain(
    model: Any, tokenizer: Any, texts: Sequence[str], *, seed: int, learning_rate: float = 3e-3
) -> Any:
    """Pre-train on texts, one pass: every token is predicted."""
    model = copy.deepcopy(model)
    rows = [{"input_ids": ids} for ids in tokenizer(list(texts))["input_ids"]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=64,
            num_train_epochs=1,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=50,
            weight_decay=0.01,
            seed=seed,
            **_QUIET,
        )
        set_seed(seed)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def fine_tune(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    seed: int,
    calibration: Sequence[Question] | None = None,
    choose_on: Sequence[Question] | None = None,
    watch: dict[str, Sequence[Question]] | None = None,
    **settings: Any,
) -> tuple[Any, list[dict[str, float]]]:
    """SFT, CFT or RCFT on cloze questions, every weight trained.

    Parameters
    ----------
    calibration : held-out questions of the E-step.
    choose_on : held-out questions; the weights of the epoch with the least NLL on them are kept.
    watch : sets of questions measured about ten times during the training.
    **settings : of `CalibrationConfig`.

    Returns
    -------
    The model, and what was measured on the way: one dict of ``eval_SET_METRIC`` and ``epoch``
    each time.
    """
    model = copy.deepcopy(model)
    settings = {"per_device_train_batch_size": 32, "learning_rate": 1e-3} | settings
    if choose_on is not None:
        settings |= {
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "save_only_model": True,
            "load_best_model_at_end": True,
            "metric_for_best_model": "nll",
            "greater_is_better": False,
        }
    elif watch is not None:
        settings |= {"eval_strategy": "steps", "eval_steps": 0.1}
    with tempfile.TemporaryDirectory() as folder:
        arguments = CalibrationConfig(
            output_dir=folder, prompt="cloze", seed=seed, **_QUIET | settings
        )
        set_seed(seed)
        trainer = CalibrationTrainer(
            model=model,
            args=arguments,
            train_dataset=questions,
            calibration_dataset=calibration,
            eval_dataset=watch if choose_on is None else choose_on,
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    path: dict[float, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        measured = {k: v for k, v in entry.items() if k.startswith("eval_")}
        if measured:
            path.setdefault(entry["epoch"], {"epoch": entry["epoch"]}).update(measured)
    return trainer.model.eval(), list(path.values())


def align(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Preference],
    *,
    seed: int,
    **settings: Any,
) -> Any:
    """DPO or preference matching; the reference is the model that comes in.

    Parameters
    ----------
    **settings : of `PreferenceConfig`.
    """
    model = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PreferenceConfig(
            output_dir=folder,
            seed=seed,
            **_QUIET | {"per_device_train_batch_size": 64, "learning_rate": 1e-3} | settings,
        )
        set_seed(seed)
        trainer = PreferenceTrainer(
            model=model, args=arguments, train_dataset=pairs, processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()
