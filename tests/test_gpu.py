"""What a CPU cannot show: the same answers and adapters on a GPU, 4 bits there, its memory.

Weights shared out over GPUs are in tests/training/test_sharding.py.
"""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from calibrant.cli import run
from calibrant.scoring.local import score
from calibrant.training import CalibrationConfig, CalibrationTrainer
from helpers import make_model, make_questions, restore_arguments

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(model, tokenizer, folder, calibration=None, *, cpu, questions=None, **changes):
    """Trainer after a short training of an adapter."""
    args = CalibrationConfig(
        output_dir=str(folder),
        **{
            "method": "cft",
            "prompt": "cloze",
            "per_device_train_batch_size": 8,
            "max_steps": 10,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": cpu,
            "seed": 1,
        }
        | changes,
    )
    trainer = CalibrationTrainer(
        model=model,
        args=args,
        train_dataset=make_questions(64) if questions is None else questions,
        calibration_dataset=calibration,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def taught(tokenizer, tmp_path_factory):
    """A model that knows something of the questions: a random one has no temperature optimum."""
    questions = make_questions(256, seed=5, prefix="s")
    folder = tmp_path_factory.mktemp("taught")
    trainer = trained(make_model(), tokenizer, folder, cpu=True, questions=questions, max_steps=60)
    return trainer.model.merge_and_unload()


def adapter(trainer):
    return {n: p.detach().cpu() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("prompt", ["letter", "cloze"])
def test_a_gpu_answers_as_a_cpu_does(architecture, prompt, tokenizer):
    model, questions = make_model(architecture), make_questions(200)
    expected = score(model, tokenizer, questions, prompt=prompt)
    found = score(copy.deepcopy(model).cuda(), tokenizer, questions, prompt=prompt)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
    half = score(model.cuda().bfloat16(), tokenizer, questions, prompt=prompt)
    known = np.isfinite(expected.logprobs)
    difference = np.abs(half.logprobs - expected.logprobs)[known]
    assert 1e-4 < np.median(difference) < 0.1  # of log-probabilities whose spread is some nats


@pytest.mark.parametrize("method", ["cft", "rcft", "tempered-cft"])
def test_a_gpu_trains_the_adapter_of_a_cpu(method, tokenizer, tmp_path, request):
    calibration = make_questions(32, seed=9, prefix="c") if method == "rcft" else None
    model = request.getfixturevalue("taught") if method == "tempered-cft" else make_model()
    there, here = (
        trained(copy.deepcopy(model), tokenizer, tmp_path / d, calibration, cpu=cpu, method=method)
        for d, cpu in (("there", False), ("here", True))
    )
    assert there.model.device.type == "cuda"
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (there, here)]
    np.testing.assert_allclose(*losses, atol=1e-3)
    start = {n: p for n, p in adapter(here).items() if "lora_B" in n}
    assert max(p.abs().max() for p in start.values()) > 0.01
    for name, value in adapter(here).items():
        torch.testing.assert_close(adapter(there)[name], value, atol=2e-3, rtol=0)


def test_autocast_and_checkpointing_change_little(tokenizer, tmp_path):
    plain = trained(make_model(), tokenizer, tmp_path / "1", cpu=False)
    again = trained(
        make_model(), tokenizer, tmp_path / "2", cpu=False, activation_checkpointing=True
    )
    half = trained(make_model(), tokenizer, tmp_path / "3", cpu=False, bf16=True)
    for name, value in adapter(plain).items():
        torch.testing.assert_close(adapter(again)[name], value, atol=1e-4, rtol=0)
    losses = [t.evaluate(make_questions(64))["eval_nll"] for t in (plain, half)]
    assert abs(losses[0] - losses[1]) < 0.1


def test_4_bits_train_and_come_back(world, tmp_path):
    arguments = restore_arguments(world, tmp_path / "run", "--method", "cft", "--quantize", "nf4")
    arguments[arguments.index("--device") + 1] = "cuda"
    assert run([*arguments, "--activation-checkpointing"]) == 0
    weights = load_file(tmp_path / "run/cft/adapter/adapter_model.safetensors")
    assert max(w.abs().max() for n, w in weights.items() if "lora_B" in n) > 0.01


def test_scoring_halves_a_batch_that_does_not_fit(tokenizer):
    """In a process that may take a hundredth of the memory."""
    code = """
import torch
from calibrant.scoring.local import score
from helpers import make_model, make_questions
# Weights of a usual size: with helpers' wide ones this width has log-probabilities of -30 that
# float32 rounds by 1e-3 in a batch of another shape.
model = make_model(hidden_size=1024, intermediate_size=16384, initializer_range=0.02).cuda()
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
whole = score(model, tokenizer, make_questions(600), prompt="cloze")
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
room = torch.cuda.memory_reserved() + 300e6
torch.cuda.set_per_process_memory_fraction(room / total)
cut = score(model, tokenizer, make_questions(600), prompt="cloze", batch_tokens=16384)
import numpy as np
np.testing.assert_allclose(cut.logprobs, whole.logprobs, atol=1e-4)
print("same")
"""
    with_tests = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    folder = os.environ.get("TMPDIR", "/tmp") + "/gpu-tokenizer"
    tokenizer.save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, env=with_tests
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "same" in done.stdout
    assert "do not fit in memory at once" in done.stderr
