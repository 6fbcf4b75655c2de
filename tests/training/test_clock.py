"""Seconds of a training over its interruptions."""

import time

import pytest

from calibrant.training.clock import Clock


def test_a_training_gone_on_with_counts_from_its_checkpoint():
    first = Clock()
    assert first.spent() == {"training_seconds": 0.0, "training_cpu_seconds": 0.0}
    first.on_train_begin(None, None, None)
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    saved = first.state()["args"]
    assert saved["cpu_seconds"] >= 0.05
    second = Clock(**saved)
    assert second.spent()["training_cpu_seconds"] == pytest.approx(saved["cpu_seconds"])
    second.on_train_begin(None, None, None)
    assert second.spent()["training_seconds"] >= saved["seconds"]
