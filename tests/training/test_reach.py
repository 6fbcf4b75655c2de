"""Adapters, 4 bits, every weight; activations made again; configurations of accelerate."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from peft import LoraConfig
from safetensors.torch import load_file

import calibrant
from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.scoring.models import load_model
from calibrant.training import CalibrationConfig, CalibrationTrainer
from helpers import make_model, make_questions, restore_arguments, run_script

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    def make(model, peft_config=None, **changes):
        args = CalibrationConfig(
            output_dir=str(tmp_path / "out"),
            **{
                "method": "rcft",
                "prompt": "cloze",
                "per_device_train_batch_size": 8,
                "max_steps": 15,
                "learning_rate": 1e-2,
                "save_strategy": "no",
                "disable_tqdm": True,
                "use_cpu": True,
                "seed": 1,
            }
            | changes,
        )
        return CalibrationTrainer(
            model=model,
            args=args,
            train_dataset=make_questions(32),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


def test_dora_trains_its_magnitudes_and_comes_back(make_trainer, tmp_path):
    from peft import PeftModel

    trainer = make_trainer(
        make_model(), LoraConfig(r=4, target_modules="all-linear", use_dora=True)
    )
    start = {n: p.clone() for n, p in trainer.model.named_parameters() if "magnitude" in n}
    before = trainer.evaluate(make_questions(32))["eval_nll"]
    trainer.train()
    assert trainer.evaluate(make_questions(32))["eval_nll"] < before - 0.1
    assert len(start) == 14
    for name, value in trainer.model.named_parameters():
        assert name not in start or not torch.equal(value, start[name]), name
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(make_model(), str(tmp_path / "adapter")).state_dict()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(again[name], value, atol=0, rtol=0)


def test_qlora_trains_an_adapter_on_weights_of_4_bits(make_trainer, tmp_path, tokenizer):
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model, _ = load_model(str(tmp_path / "model"), device="cpu", quantize="nf4")
    packed = {n: p.detach().clone() for n, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 14
    trainer = make_trainer(
        model, LoraConfig(r=4, target_modules="all-linear"), activation_checkpointing=True
    )
    before = trainer.evaluate(make_questions(32))["eval_nll"]
    trainer.train()
    assert trainer.evaluate(make_questions(32))["eval_nll"] < before - 0.1
    for name, value in model.named_parameters():
        trained = value.requires_grad
        assert trained == ("lora_" in name), name
        if trained:
            assert value.dtype == torch.float32
    now = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    for name, value in packed.items():
        assert torch.equal(now[name], value), name


@pytest.mark.parametrize("lora", [True, False])
def test_activation_checkpointing_changes_no_bit_and_keeps_less(make_trainer, lora):
    ends, kept = [], []
    for again in (False, True):
        trainer = make_trainer(
            make_model(),
            LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1) if lora else None,
            activation_checkpointing=again,
            max_steps=3,
        )
        stored = set()

        def pack(tensor, stored=stored):
            stored.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.train()
        kept.append(sum(size for _, size in stored))
        ends.append({n: p.detach() for n, p in trainer.model.named_parameters()})
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name
    assert kept[1] < kept[0]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("ddp", DistributedType.MULTI_GPU, {}),
        ("fsdp2", DistributedType.FSDP, {"fsdp_version": 2, "fsdp_reshard_after_forward": True}),
        ("zero2", DistributedType.DEEPSPEED, {"zero_stage": 2}),
        ("zero3", DistributedType.DEEPSPEED, {"zero_stage": 3, "zero3_save_16bit_model": True}),
    ],
)
def test_accelerate_reads_the_configuration(name, kind, expected, monkeypatch):
    """By its own loader, and by the launcher's parser, which turns it into the environment."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    file = RECIPES / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert config.distributed_type == kind
    assert config.num_processes == 8
    parts = {**config.fsdp_config, **config.deepspeed_config}
    assert expected.items() <= parts.items()
    args = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.num_processes == 8
    assert bool(args.use_fsdp) == (kind == DistributedType.FSDP)
    assert bool(args.use_deepspeed) == (kind == DistributedType.DEEPSPEED)
    assert bool(args.multi_gpu) == (kind == DistributedType.MULTI_GPU)
    for key, value in expected.items():
        assert str(getattr(args, key)).lower() == str(value).lower(), key


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_the_launchers_precision_is_the_trainers(make_trainer, monkeypatch, precision):
    """DeepSpeed compares the two, and refuses to train where they differ."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    trainer = make_trainer(make_model())
    assert trainer.accelerator.mixed_precision == precision
    assert (trainer.args.fp16, trainer.args.bf16) == (precision == "fp16", precision == "bf16")


def test_divisors_and_weights_stay_exact_with_deepspeed(make_trainer, monkeypatch):
    """Its Trainer rounds whatever is not an integer to the precision of the model's weights."""
    trainer = make_trainer(make_model())
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    batch = trainer.data_collator(trainer.train_dataset[:4])
    prepared = trainer._prepare_inputs(batch)
    assert prepared["divisor"].dtype == torch.float32
    assert torch.equal(prepared["divisor"], batch["divisor"])


def test_a_temperature_is_not_fitted_to_weights_that_zero3_has_shared_out(
    make_trainer, monkeypatch
):
    trainer = make_trainer(make_model(), method="tempered-cft")
    plugin = SimpleNamespace(zero_stage=3)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin)
    with pytest.raises(InputError, match="expected ZeRO-2 or FSDP2"):
        trainer.train()


def test_restore_stops_early_on_4_bits_and_loads_again(world, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = restore_arguments(
        world, output, "--method", "cft", "--quantize", "nf4", "--activation-checkpointing",
        "--early-stopping", "1", "--best-by", "conf_ece", "--epochs", "30", "--lora-alpha", "8",
        "--lora-dropout", "0.1", "--dora",
    )  # fmt: skip
    assert run(arguments) == 0
    cost = json.loads((output / "cft" / "cost.json").read_text())
    assert 0 < cost["training_steps"] < 30 * 13
    config = json.loads((output / "cft" / "adapter" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["lora_dropout"], config["use_dora"]) == (8, 0.1, True)
    name = next(p for p in (output / "cft" / "answers").glob("*test.parquet"))
    table = AnswerTable.load(name)
    assert table.provenance["quantization"] == "nf4"
    again = calibrant.load(output / "cft").predict_proba(calibrant.load_questions(world["test"]))
    np.testing.assert_allclose(again, table.probs(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantize", "nf4", "--lora-rank", "0"), "weights of 4 bits cannot be trained"),
        (("--push-to-hub", "me/model"), "push_to_hub: me/model-cft cannot be made on the hub"),
        (("--report-to", "wandb"), "report_to wandb: is not installed"),
    ],
)
def test_restore_says_in_a_line_what_it_cannot_do(world, tmp_path, capsys, options, message):
    arguments = restore_arguments(world, tmp_path / "run", "--method", "cft", *options)
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_restore_in_several_processes_is_refused(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(restore_arguments(world, tmp_path / "run", "--method", "cft")) == 1
    assert "restore runs in one process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_restoration_says_that_no_evaluation_was_unharmed(world, tmp_path, capsys):
    arguments = restore_arguments(world, tmp_path / "run", "--method", "cft")
    arguments += ["--early-stopping", "9"]
    assert run(arguments) == 0
    note = "cft: early stopping found no evaluation that was neither harmed nor gamed"
    assert note not in capsys.readouterr().out
    path = tmp_path / "run" / "cft" / "cost.json"
    cost = json.loads(path.read_text())
    assert cost["found_unharmed"] == 1
    path.write_text(json.dumps(cost | {"found_unharmed": 0}))
    assert run(arguments) == 0  # nothing is trained again
    assert note in capsys.readouterr().out
    assert any(note in n for n in json.loads((tmp_path / "run/report.json").read_text())["notes"])


@pytest.mark.slow
def test_a_recipe_trains_the_same_adapter_on_two_processes_as_on_one(world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    content = {
        "model": world["model"],
        "train": [world["train"]],
        "eval": [world["test"]],
        "prompt": "cloze",
        "epochs": 2,
        "batch-size": 8,
        "lora-rank": 4,
    }
    recipe.write_text(yaml.safe_dump(content))
    script = RECIPES.parent / "examples" / "train.py"
    weights = []
    for n in (1, 2):
        output = tmp_path / str(n)
        arguments = (recipe, "--output", output, "--learning-rate", 1e-3)
        done = run_script(script, *arguments, processes=n)
        assert f"60 questions, {n} process" in done.stdout
        weights.append(load_file(output / "trained" / "adapter_model.safetensors"))
    assert any(value.abs().max() > 0 for name, value in weights[0].items() if "lora_B" in name)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=0)
