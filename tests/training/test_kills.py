"""Killed with SIGKILL and resumed, a run ends as an undisturbed one, bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from calibrant.answers import AnswerTable
from helpers import make_model, make_questions, run_script, write_questions


@pytest.fixture
def folder(tmp_path, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_questions(tmp_path / "train.jsonl.gz", make_questions(40, seed=1))
    write_questions(tmp_path / "test.jsonl.gz", make_questions(20, seed=2, prefix="t"))
    return tmp_path


def killed(kind, folder, seed):
    script = Path(__file__).with_name("killed.py")
    done = run_script(script, kind, folder, seed, timeout=1200)
    return json.loads(done.stdout.splitlines()[-1])


def same(one, two, where=""):
    """Equal to the last bit, through the containers of a state."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            same(a, b, f"{where}[{i}]")
    else:
        assert (one == two) is True or str(one) == str(two), where


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_killed_ten_times_ends_as_an_undisturbed_one(folder):
    at = killed("trainer", folder, 0)
    assert {name: at.count(name) for name in at} == {"training": 4, "saving": 3, "E-step": 3}
    one, two = folder / "undisturbed", folder / "killed"
    file = "adapter/adapter_model.safetensors"
    assert (one / file).read_bytes() == (two / file).read_bytes()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        states = [
            torch.load(run / "checkpoints" / "checkpoint-50" / name, weights_only=False)
            for run in (one, two)
        ]
        same(*states, name)
    e_steps = [
        json.loads((run / "checkpoints" / "checkpoint-50" / "trainer_state.json").read_text())[
            "stateful_callbacks"
        ]["EStepState"]
        for run in (one, two)
    ]
    assert e_steps[0] == e_steps[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_restoration_killed_at_any_time_ends_as_an_undisturbed_one(folder):
    assert len(killed("restore", folder, 0)) >= 1
    one, two = folder / "undisturbed", folder / "killed"
    file = "rcft/adapter/adapter_model.safetensors"
    assert (one / file).read_bytes() == (two / file).read_bytes()
    tables = sorted(p.relative_to(one) for p in one.rglob("*.parquet"))
    assert len(tables) == 4
    for name in tables:
        first, second = AnswerTable.load(one / name), AnswerTable.load(two / name)
        assert first.logprobs.tobytes() == second.logprobs.tobytes(), name
