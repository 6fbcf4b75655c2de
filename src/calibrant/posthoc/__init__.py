"""Calibrators that change probabilities, not weights."""

from __future__ import annotations

import os

from calibrant.errors import InputError
from calibrant.posthoc.binning import ScalingBinning
from calibrant.posthoc.calibrator import Calibrator, Fields, NoOptimumError
from calibrant.posthoc.expectation import ExpectationConsistency
from calibrant.posthoc.isotonic import IsotonicCalibration
from calibrant.posthoc.letters import PriDe
from calibrant.posthoc.linear import DirichletScaling, VectorScaling
from calibrant.posthoc.reference import DACA, BaseKL
from calibrant.posthoc.temperature import TemperatureScaling

__all__ = [
    "DACA",
    "BaseKL",
    "Calibrator",
    "DirichletScaling",
    "ExpectationConsistency",
    "IsotonicCalibration",
    "NoOptimumError",
    "PriDe",
    "ScalingBinning",
    "TemperatureScaling",
    "VectorScaling",
    "load",
]

# Fitted on labelled answers alone, by the name used in files and on the command line.
LABELLED: dict[str, type[Calibrator]] = {
    "temperature": TemperatureScaling,
    "expectation-consistency": ExpectationConsistency,
    "vector": VectorScaling,
    "dirichlet": DirichletScaling,
    "isotonic": IsotonicCalibration,
    "scaling-binning": ScalingBinning,
}
# Fitted on the answers of a reference model to the same questions, without labels.
REFERENCED: dict[str, type[Calibrator]] = {"base-kl": BaseKL, "daca": DACA}
# Fitted on answers to questions in all cyclic orders of their options, without labels.
REORDERED: dict[str, type[Calibrator]] = {PriDe.kind: PriDe}


def load(path: str | os.PathLike[str]) -> Calibrator:
    """Read the calibrator that `Calibrator.save` wrote, of whatever kind.

    Raises
    ------
    InputError
        If the file is not a calibrator's JSON, holds numbers that cannot be, or a newer version
        of calibrant wrote it.
    """
    fields = Fields.of_file(path)
    kinds = LABELLED | REFERENCED | REORDERED
    kind = fields.content.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path}: kind {kind!r}, expected one of {', '.join(kinds)}")
    calibrator = kinds[kind]()
    calibrator._read(fields)
    calibrator.n_questions = fields.count("n_questions")
    return calibrator
