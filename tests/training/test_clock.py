"""Seconds of a training over its interruptions."""

import time

import pytest

from calibrant.restore import RestoreSettings, fine_tune
from calibrant.training import CalibrationTrainer, clock
from calibrant.training.clock import Clock
from helpers import make_model, make_questions


def test_a_training_gone_on_with_counts_from_its_checkpoint():
    first = Clock()
    assert first.spent() == {"training_seconds": 0.0, "training_cpu_seconds": 0.0}
    first.begin()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    saved = first.state()["args"]
    assert saved["cpu_seconds"] >= 0.05
    second = Clock(**saved)
    assert second.spent()["training_cpu_seconds"] == pytest.approx(saved["cpu_seconds"])
    second.on_train_begin(None, None, None)
    assert second.spent()["training_seconds"] >= saved["seconds"]


def test_answering_questions_before_the_first_step_counts(tokenizer, tmp_path, monkeypatch):
    """By a clock that moves in those passes alone, in a training that is stopped and gone on with.

    Tempering takes 100 s, the answers that early stopping compares with 1,000 s, both times.
    """
    now, stopped = [0.0], []
    monkeypatch.setattr(clock, "_now", lambda: (now[0], now[0]))

    class Slow(CalibrationTrainer):
        def _temper(self):
            now[0] += 100  # at T = 1: a model that knows nothing has no best temperature

        def _answers_before(self, resumed):
            now[0] += 1000
            return super()._answers_before(resumed)

        def training_step(self, *args, **kwargs):
            if self.state.global_step == 1 and not stopped:
                stopped.append(True)
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    settings = RestoreSettings(
        model="-", train=("-",), evaluate=("-",), methods=("tempered-cft",), prompt="cloze",
        lora_rank=2, early_stopping=9,
    )  # fmt: skip
    tune = make_model(), tokenizer, make_questions(24), "tempered-cft", settings, tmp_path
    with pytest.raises(KeyboardInterrupt):
        fine_tune(*tune, trainer_class=Slow)
    _, cost = fine_tune(make_model(), *tune[1:], trainer_class=Slow)
    assert cost["training_seconds"] == cost["training_cpu_seconds"] == 2200
