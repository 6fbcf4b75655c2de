"""Training on option scores: SFT, CFT, RCFT, DPO and preference matching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibrant.errors import NonFiniteLossError
    from calibrant.training.accumulator import DistributedBinTable
    from calibrant.training.config import CalibrationConfig
    from calibrant.training.preference import PreferenceConfig, PreferenceTrainer
    from calibrant.training.trainer import CalibrationTrainer, EStepState

# Methods of `CalibrationTrainer`; named here, where nothing heavy is imported.
METHODS = (
    "sft",
    "cft",
    "tempered-cft",
    "rcft",
    "rcft-released",
    "label-smoothing",
    "entropy",
    "focal",
    "brier",
    "cogcalib",
)

# Public name -> where it lives, loaded on first use: the accumulator needs no Trainer.
_HOME = {
    "CalibrationConfig": "calibrant.training.config",
    "CalibrationTrainer": "calibrant.training.trainer",
    "DistributedBinTable": "calibrant.training.accumulator",
    "EStepState": "calibrant.training.trainer",
    "NonFiniteLossError": "calibrant.errors",
    "PreferenceConfig": "calibrant.training.preference",
    "PreferenceTrainer": "calibrant.training.preference",
}

__all__ = [
    "METHODS",
    "CalibrationConfig",
    "CalibrationTrainer",
    "DistributedBinTable",
    "EStepState",
    "NonFiniteLossError",
    "PreferenceConfig",
    "PreferenceTrainer",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'calibrant.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
