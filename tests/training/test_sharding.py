"""Weights shared out over devices by FSDP2 and DeepSpeed, as accelerate's launcher starts them.

Where there is no GPU, two processes of the CPU stand in for GPUs (`_on_cpus.py`).
"""

import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from calibrant.training.checkpoints import last_whole
from helpers import run_script

ROOT = Path(__file__).parents[2]
DEVICES = min(2, torch.cuda.device_count()) or 2
SCRIPT = ROOT / "examples/train.py"
if not torch.cuda.is_available():
    SCRIPT = Path(__file__).with_name("_on_cpus.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def launch(world, folder, config, rank, dtype="auto", processes=DEVICES):
    """Fine-tune as a recipe says; give the weights that were saved."""
    recipe = folder.with_suffix(".yaml")
    content = {
        "model": world["model"],
        "train": [world["train"]],
        "eval": [world["test"]],
        "prompt": "cloze",
        "epochs": 2,
        "batch-size": 8,
        "lora-rank": rank,
        "learning-rate": 1e-3,
        "dtype": dtype,
    }
    recipe.write_text(yaml.safe_dump(content))
    run_script(
        "-m", "accelerate.commands.launch", "--main_process_port", 0, "--num_processes", processes,
        "--config_file", ROOT / f"recipes/accelerate/{config}.yaml",
        SCRIPT, recipe, "--output", folder, "--method", "rcft",
    )  # fmt: skip
    return load_file(next((folder / "trained").glob("*.safetensors")))


@pytest.fixture(scope="module")
def unsharded(world, tmp_path_factory):
    """Weights of one process in float32: an adapter, and every weight."""
    folder = tmp_path_factory.mktemp("unsharded")
    return {
        rank: launch(world, folder / f"{rank}", "ddp", rank, "float32", processes=1)
        for rank in (4, 0)
    }


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3"])
def test_sharded_training_ends_near_the_unsharded(world, unsharded, tmp_path, config, rank):
    """As committed, which computes in bfloat16, on a frozen base in bfloat16."""
    if config.startswith("zero"):
        pytest.importorskip("deepspeed")
    found = launch(world, tmp_path / config, config, rank, "bfloat16" if rank else "float32")
    expected = unsharded[rank]
    assert found.keys() == expected.keys()
    start = load_file(Path(world["model"]) / "model.safetensors")
    moved = close = 0.0
    for name, value in expected.items():
        origin = start.get(name, torch.zeros_like(value)).float()
        if "lora_A" not in name:
            moved += float((value.float() - origin).square().sum())
            close += float((found[name].float() - value.float()).square().sum())
    logging.info("%s, rank %s: %g of %g", config, rank, close**0.5, moved**0.5)
    assert moved > 0
    assert close < 0.1 * moved


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in for GPUs is what is killed")
@pytest.mark.parametrize("config", ["fsdp2", "zero2", "zero3"])
def test_a_sharded_run_that_was_killed_ends_as_an_undisturbed_one(
    world, tmp_path, config, monkeypatch
):
    if config.startswith("zero"):
        pytest.importorskip("deepspeed")
    expected = launch(world, tmp_path / "undisturbed", config, 4)
    monkeypatch.setenv("KILLED_AT", "8")
    with pytest.raises(AssertionError):
        launch(world, tmp_path / "killed", config, 4)
    monkeypatch.delenv("KILLED_AT")
    assert last_whole(tmp_path / "killed/checkpoints").name == "checkpoint-5"
    found = launch(world, tmp_path / "killed", config, 4)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
