"""What befalls long runs, made to happen: limits of the system, damaged files, failing layers."""

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from peft import LoraConfig
from safetensors.torch import load_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
    offload_wrapper,
)
from transformers import PrinterCallback, TrainerCallback

from calibrant.errors import InputError
from calibrant.training import CalibrationConfig, CalibrationTrainer, NonFiniteLossError
from calibrant.training.base import weigh
from calibrant.training.checkpoints import DRAFT, MANIFEST, defect, last_whole, whole
from helpers import make_model, make_questions


class At(TrainerCallback):
    """Do something after a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


@pytest.fixture
def make_trainer(tokenizer, tmp_path):
    def make(output=None, model=None, *callbacks, train=None, evaluation=None, **settings):
        settings = {
            "method": "rcft",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 8,
            "learning_rate": 1e-2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
        } | settings
        trainer = CalibrationTrainer(
            model=make_model() if model is None else model,
            args=CalibrationConfig(output_dir=str(output or tmp_path / "out"), **settings),
            train_dataset=make_questions(40) if train is None else train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)  # what it prints goes to a file, maybe limited
        return trainer

    return make


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def same_bits(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def done(tokenizer, tmp_path_factory):
    """Folder of an undisturbed run with all its checkpoints, and its final weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer = make_trainer.__wrapped__(tokenizer, folder)(folder / "out")
    trainer.train()
    return folder / "out", weights(trainer)


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "out")
    return tmp_path / "out"


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_lists_its_files_and_no_draft_is_left(done):
    folder, _ = done
    assert {p.name for p in folder.glob("checkpoint-*")} == {
        f"checkpoint-{n}" for n in (2, 4, 6, 8)
    }
    assert not list((folder / DRAFT).glob("*"))
    listed = set(json.loads((folder / "checkpoint-2" / MANIFEST).read_text()))
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
            "trainer_state.json"} <= listed  # fmt: skip
    assert listed == {p.name for p in (folder / "checkpoint-2").iterdir()} - {MANIFEST}


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("adapter_model.safetensors", truncate, r"adapter_model.safetensors has \d+ bytes, exp"),
        ("optimizer.pt", flip, "optimizer.pt is not as it was written"),
        ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
        (MANIFEST, Path.unlink, "manifest.json is missing"),
        (MANIFEST, truncate, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(copied, caplog, file, damage, reason):
    damage(copied / "checkpoint-8" / file)
    assert whole(copied / "checkpoint-8") == copied / "checkpoint-6"
    assert last_whole(copied) == copied / "checkpoint-6"
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    for record in caplog.records:
        assert "checkpoint-8: is damaged" in record.getMessage()
    for step in (2, 4, 6):
        shutil.rmtree(copied / f"checkpoint-{step}")
    with pytest.raises(InputError, match=f"the checkpoint is damaged .{reason}"):
        whole(copied / "checkpoint-8")


def test_a_run_resumed_from_the_one_before_a_damaged_checkpoint_ends_the_same(
    make_trainer, copied, done, caplog
):
    flip(copied / "checkpoint-6" / "optimizer.pt")
    shutil.rmtree(copied / "checkpoint-8")
    (copied / DRAFT / "checkpoint-8").mkdir(parents=True)  # killed while it was being written
    (copied / DRAFT / "checkpoint-8" / "optimizer.pt").write_bytes(b"half")
    again = make_trainer(copied)
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-6: is damaged" in caplog.text
    assert same_bits(weights(again), done[1])
    assert not defect(copied / "checkpoint-6")
    assert not defect(copied / "checkpoint-8")


def test_resuming_without_a_checkpoint_is_refused(make_trainer, tmp_path):
    with pytest.raises(InputError, match="out: holds no whole checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_named_where_it_came_to_lie(make_trainer, tmp_path):
    trainer = make_trainer(
        evaluation=make_questions(12, seed=4, prefix="e"),
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=1,
    )
    trainer.train()
    kept = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert str(kept[0]) == trainer.state.best_model_checkpoint
    state = json.loads((kept[-1] / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).parent == tmp_path / "out"


# -- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1_000, 60_000])  # the adapter, or the optimiser's state
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    make_trainer, tmp_path, done, limit
):
    """The system refuses to make a file longer than the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    act = At(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1])))
    trainer = make_trainer(None, None, act, save_total_limit=1)
    try:
        with pytest.raises(InputError) as error:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "checkpoint-6: the checkpoint cannot be written: " in str(error.value)
    assert f"The last good checkpoint is {tmp_path / 'out' / 'checkpoint-4'};" in str(error.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint-4"]
    again = make_trainer()
    again.train(resume_from_checkpoint=True)
    assert same_bits(weights(again), done[1])


@pytest.fixture
def nobody():
    """Become a user who may not write here; the superuser may write anywhere."""
    user = os.geteuid()

    def become():
        os.seteuid(65534)

    yield become if user == 0 else lambda: None
    os.seteuid(user)


def test_a_folder_that_cannot_be_written_is_refused_before_training(make_trainer, tmp_path, nobody):
    (tmp_path / "locked").mkdir(mode=0o555)
    nobody()
    with pytest.raises(InputError, match=r"locked/out: cannot be written: .*Permission denied"):
        make_trainer(tmp_path / "locked" / "out")


def test_a_folder_locked_during_training_keeps_the_last_checkpoint(make_trainer, nobody):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)

        def lock():
            Path(folder, "out").chmod(0o555)
            nobody()

        with pytest.raises(InputError) as error:
            make_trainer(Path(folder, "out"), None, At(2, lock)).train()
        assert "checkpoint-4: the checkpoint cannot be written: " in str(error.value)
        assert "Permission denied" in str(error.value)
        assert f"The last good checkpoint is {folder}/out/checkpoint-2;" in str(error.value)
        os.seteuid(os.getuid())
        assert not defect(Path(folder, "out", "checkpoint-2"))


# -- adapters -------------------------------------------------------------------------------------


def wrap_layers(model, wrapper):
    for name, layer in list(model.named_modules()):
        if type(layer).__name__ == "LlamaDecoderLayer":
            model.set_submodule(name, wrapper(layer))


@pytest.mark.parametrize(
    "wrapper", [checkpoint_wrapper, lambda layer: offload_wrapper(checkpoint_wrapper(layer))]
)
def test_an_adapter_is_whole_under_checkpoint_wrappers(make_trainer, tmp_path, wrapper):
    """FSDP's own activation checkpointing puts them around layers; PEFT loses its weights there."""
    trainer = make_trainer(save_strategy="no")
    trainer.train()
    trainer.save_model(str(tmp_path / "plain"))
    wrap_layers(trainer.model, wrapper)
    wrapped = [name for name, _ in trainer.model.named_modules()]
    trainer._save(str(tmp_path / "wrapped"), state_dict=trainer.model.state_dict())
    plain, found = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "wrapped")
    )
    assert len(plain) == 28
    assert plain.keys() == found.keys()
    assert same_bits(plain, found)
    assert [name for name, _ in trainer.model.named_modules()] == wrapped


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights, name: weights.clear(), "lacks 28 of its 28 trained weights"),
        (lambda weights, name: weights.pop(name), "lacks 1 of its 28 trained weights"),
        (lambda weights, name: weights.update({name: torch.empty(0)}), "lacks 1 of its 28 trained"),
    ],
)
def test_an_adapter_that_lacks_a_weight_is_not_saved(make_trainer, tmp_path, damage, message):
    """Empty is what DeepSpeed's ZeRO-3 leaves of a weight in each process."""
    trainer = make_trainer()
    weights = trainer.model.state_dict()
    damage(weights, next(n for n, p in trainer.model.named_parameters() if p.requires_grad))
    with pytest.raises(InputError, match=message):
        trainer._save(str(tmp_path / "adapter"), state_dict=weights)
    assert not (tmp_path / "adapter").exists()


def test_a_checkpoint_whose_adapter_lacks_its_weights_stops_the_run(
    make_trainer, tmp_path, monkeypatch
):
    """Wrapped layers, without what mends their names."""
    monkeypatch.setattr("calibrant.training.faults.plain_names", contextlib.nullcontext)
    trainer = make_trainer()
    trainer.add_callback(At(4, lambda: wrap_layers(trainer.model, checkpoint_wrapper)))
    with pytest.raises(InputError) as error:
        trainer.train()
    assert "checkpoint-6: the checkpoint cannot be written: the adapter lacks" in str(error.value)
    assert f"The last good checkpoint is {tmp_path / 'out' / 'checkpoint-4'};" in str(error.value)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"checkpoint-2", "checkpoint-4"}


def test_weights_that_would_stay_in_parts_are_refused(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", plugin, raising=False)
    with pytest.raises(InputError, match="expected fsdp_state_dict_type: FULL_STATE_DICT"):
        trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter").exists()


# -- numbers --------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(make_trainer, tmp_path):
    trainer = make_trainer()
    first = next(p for p in trainer.model.parameters() if p.requires_grad)
    kept = {}

    def spoil():
        kept.update(weights(trainer))
        first.register_hook(lambda gradient: gradient * math.nan)

    trainer.add_callback(At(5, spoil))
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    assert "step 5: the gradient's norm is nan" in str(error.value)
    assert f"The last good checkpoint is {tmp_path / 'out' / 'checkpoint-4'}" in str(error.value)
    assert same_bits(weights(trainer), kept)


# -- memory ---------------------------------------------------------------------------------------


class Cramped:
    """Make a layer fail for lack of memory above so many tokens, going forward or half-way back."""

    def __init__(self, trainer, tokens, when):
        self.tokens, self.failures = tokens, 0
        layer = trainer.model.get_base_model().model.layers[0]
        if when == "forward":
            layer.register_forward_hook(lambda layer, inputs, output: self.fail(output))
        else:
            layer.register_full_backward_hook(lambda layer, inputs, outputs: self.fail(outputs[0]))

    def fail(self, hidden):
        if hidden.shape[:2].numel() > self.tokens:
            self.failures += 1
            torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("prompt", ["letter", "cloze"])
def test_a_micro_batch_that_does_not_fit_is_cut_and_trains_the_same(
    make_trainer, tmp_path, caplog, when, prompt
):
    widths = []
    runs = []
    for name in ("roomy", "cramped"):
        trainer = make_trainer(
            tmp_path / name, prompt=prompt, max_steps=3, learning_rate=1e-3, save_strategy="no"
        )
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # the pieces would draw another one
        if name == "roomy":
            layer = trainer.model.get_base_model().model.layers[0]
            layer.register_full_backward_hook(lambda *a: widths.append(a[2][0].shape[:2].numel()))
        else:
            cramped = Cramped(trainer, 0.9 * max(widths), when)
        trainer.train()
        losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        runs.append((weights(trainer), losses))
    assert cramped.failures >= 1
    assert "does not fit in memory; from here on it is taken in 2 pieces" in caplog.text
    (roomy, roomy_losses), (cut, cut_losses) = runs
    assert cut_losses == pytest.approx(roomy_losses, rel=1e-5)
    for name, value in roomy.items():
        torch.testing.assert_close(cut[name], value, atol=2e-5, rtol=0)


def test_the_pieces_of_a_micro_batch_leave_out_what_it_leaves_out(make_trainer):
    """Of four questions the last two are repeats of another process's: neither they nor their
    tokens are learnt, whole or cut."""
    losses = []
    for n in (1, 2, 4):
        trainer = make_trainer(method="sft", save_strategy="no")
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        batch = trainer.data_collator(trainer.train_dataset[:4])
        weigh(batch, torch.tensor([1.0, 1.0, 0.0, 0.0]))
        counts = torch.tensor([2, int((batch["question_token"] >= 0).sum())])
        trainer._pieces().n = n
        losses.append(float(trainer._step_on(trainer.model, batch, counts)))
    alone = trainer.data_collator(trainer.train_dataset[:2])
    weigh(alone, torch.ones(2))
    trainer._pieces().n = 1
    expected = float(trainer._step_on(trainer.model, alone, counts))
    assert losses == pytest.approx([expected] * 3, rel=1e-5)


def test_a_resumed_run_cuts_as_the_one_before_did(make_trainer, tmp_path):
    ends = []
    for resume in (None, str(tmp_path / "out" / "checkpoint-6")):
        trainer = make_trainer()
        Cramped(trainer, 80, "backward")
        trainer.train(resume_from_checkpoint=resume)
        ends.append(weights(trainer))
        assert trainer._pieces().n > 1
    assert same_bits(*ends)


def test_a_question_that_does_not_fit_alone_is_named(make_trainer):
    trainer = make_trainer(method="cft", per_device_train_batch_size=2)
    Cramped(trainer, 0, "forward")
    with pytest.raises(InputError, match=r"step 0: a single question of q\d+, q\d+ does not fit"):
        trainer.train()


def test_other_errors_of_a_step_are_not_taken_for_lack_of_memory(make_trainer):
    trainer = make_trainer()

    def fail(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    trainer.model.get_base_model().model.layers[0].register_full_backward_hook(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.train()
