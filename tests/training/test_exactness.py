"""The same training, however it is run: accumulation, processes, shards, checkpointing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from _runs import RUNS, by_hand, make, trained

from calibrant.errors import InputError
from calibrant.training import CalibrationConfig, CalibrationTrainer
from helpers import make_model, make_questions, run_script


@pytest.fixture(scope="module")
def together(tokenizer, tmp_path_factory):
    """What each of two processes makes of the runs; one launch for all tests."""
    folder = tmp_path_factory.mktemp("two")
    tokenizer.save_pretrained(folder)
    run_script(Path(__file__).with_name("_trained_by_two.py"), folder, processes=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tokenizer):
    """Each run by one process with batches of 8, made once."""
    made = {}
    return lambda name: made.setdefault(name, trained(tokenizer, name, 8))


def assert_same(found, expected):
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_accumulation_gives_the_same_losses_and_weights(tokenizer, alone, name):
    found = trained(tokenizer, name, 1, 8)
    assert_same(found, alone(name))
    assert found["refreshes"] == alone(name)["refreshes"]


def test_accumulation_does_not_change_the_released_regulariser(tokenizer):
    """A ten-millionth of the loss, so that it is looked at alone."""
    scores, option = torch.tensor([[1.0, 0.0], [0.2, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    found = []
    for micro in (8, 2):
        trainer = make(
            tokenizer,
            method="rcft-released",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
        )
        trainer.e_step()
        found.append(trainer._released_loss(scores, option))
    assert found[0].max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_same_losses_and_weights(together, alone, name):
    """Though the last batch of an epoch, of 5 questions, falls to them as 4 and 1."""
    for rank in (0, 1):
        assert_same(together[rank][name], alone(name))
    assert_same(together[0]["accumulated"], alone("rcft-cloze"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if "rcft" in name])
def test_processes_share_the_e_step_and_know_the_same(together, alone, name):
    found = [together[rank][name]["refreshes"] for rank in (0, 1)]
    assert found[0] == found[1] == alone(name)["refreshes"]
    assert len(found[0]) == 6


@pytest.mark.slow
def test_processes_share_an_evaluation_and_report_the_same(together, alone):
    for name in RUNS:
        results = [together[rank][name] for rank in (0, 1)]
        assert results[0]["evaluation"] == results[1]["evaluation"]
        for metric, value in alone(name)["evaluation"].items():
            assert results[0]["evaluation"][metric] == pytest.approx(value, abs=1e-5)
        shares = [r["evaluated"] for r in results]
        assert sum(shares) == alone(name)["evaluated"] == 19
        assert min(shares) > 0


@pytest.mark.slow
def test_sharded_weights_give_the_same_losses_weights_and_statistics(tokenizer, together):
    expected = by_hand(tokenizer)
    for rank in (0, 1):
        found = together[rank]["sharded"]
        assert_same(found, expected)
        assert found["statistics"] == expected["statistics"]
        # Twice the E-step was a single batch: one process made an idle pass with the other.
        assert 2 * found["forwards"] == expected["forwards"] + 2


@pytest.mark.slow
def test_fsdp_that_would_quietly_be_data_parallel_is_refused(together):
    for rank in (0, 1):
        message = together[rank]["refused"]
        assert message.startswith("FSDP was asked for and accelerate runs MULTI_CPU on cpu")


def test_a_launcher_that_starts_too_few_processes_is_found_out(tokenizer, monkeypatch, tmp_path):
    args = CalibrationConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="1 processes train, expected WORLD_SIZE = 2"):
        CalibrationTrainer(make_model(), args, make_questions(4), processing_class=tokenizer)


@pytest.mark.parametrize("name", ["cft-letter", "rcft-cloze"])
def test_activation_checkpointing_changes_nothing(tokenizer, alone, name):
    found = trained(tokenizer, name, 8, gradient_checkpointing=True)
    assert_same(found, alone(name))


def test_the_padding_side_changes_nothing(tokenizer, alone, monkeypatch):
    expected = alone("rcft-cloze")
    monkeypatch.setattr("calibrant.training.base.ROW_TOKENS", 0)  # a padded row for each question
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    assert_same(trained(tokenizer, "rcft-cloze", 8), expected)


def test_bfloat16_autocast_stays_near(tokenizer, alone):
    """Losses within 1 % of float32's, all along."""
    found = trained(tokenizer, "rcft-letter", 8, bf16=True)
    np.testing.assert_allclose(found["losses"], alone("rcft-letter")["losses"], rtol=0.01)
    assert found["losses"] != alone("rcft-letter")["losses"]


@pytest.mark.parametrize("name", ["cft-letter", "rcft-cloze"])
def test_the_same_seed_gives_the_same_bits(tokenizer, alone, name):
    found = trained(tokenizer, name, 8)
    assert found["losses"] == alone(name)["losses"]
    for weight, value in alone(name)["weights"].items():
        assert torch.equal(found["weights"][weight], value)
