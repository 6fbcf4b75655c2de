"""Stories of the laboratory, told once for all tests that look at them."""

import os
from pathlib import Path

import pytest

from calibrant.lab.story import LabSettings, tell
from helpers import TINY_LAB

SEEDS = range(5)


@pytest.fixture(scope="session")
def tiny_story(tmp_path_factory):
    """Every step, far too small to show anything."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    return tell(LabSettings(**TINY_LAB), folder, workers=2, show_progress=False)


@pytest.fixture(scope="session", params=SEEDS)
def story(request, tmp_path_factory):
    """The story at full size; CALIBRANT_LAB_RUNS names a folder that keeps it between runs."""
    kept = os.environ.get("CALIBRANT_LAB_RUNS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("lab")
    return tell(
        LabSettings(seed=request.param), folder / str(request.param), workers=2, show_progress=False
    )
