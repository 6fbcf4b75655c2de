import json

import numpy as np
import pytest
import torch
from peft import LoraConfig

from calibrant.errors import InputError
from calibrant.preferences import Preference, load_preferences
from calibrant.training.losses import catto, dpo, preference_matching
from calibrant.training.preference import (
    PreferenceConfig,
    PreferenceTrainer,
    encode_preferences,
)
from helpers import make_model

P_STAR = torch.tensor([0.45, 0.25, 0.2, 0.1], dtype=torch.float64)
EVERY_PAIR = [(a, b) for a in range(4) for b in range(4) if a != b]


def expected_loss(logits, reference, loss):
    """Exact expectation over Bradley-Terry preferences on p*, every pair equally often."""
    scores, total = logits.log_softmax(0), 0.0
    for a, b in EVERY_PAIR:
        chance = P_STAR[a] / (P_STAR[a] + P_STAR[b])
        pair = torch.stack([scores[a], scores[b]])[None]
        total = total + chance * loss(pair, reference[[a, b]][None])[0]
    return total


def optimum(reference, loss):
    logits = reference.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimiser.zero_grad()
        value = expected_loss(logits, reference, loss)
        value.backward()
        return value

    for _ in range(5):
        optimiser.step(closure)
    return logits.detach().log_softmax(0)


def slope(policy):
    x, y = (v - v.mean() for v in (P_STAR.log(), policy))
    assert torch.allclose(y, (x @ y / (x @ x)) * x, atol=1e-4)  # nothing but sharpening
    return float(x @ y / (x @ x))


@pytest.mark.parametrize("beta", [3.0, 1.0, 0.3, 0.1])
def test_the_optimum_of_dpo_is_the_truth_to_the_power_one_plus_one_over_beta(beta):
    policy = optimum(P_STAR.log(), lambda s, r: dpo(s, r, beta))
    assert slope(policy) == pytest.approx(1 + 1 / beta, abs=1e-3)


def test_the_optimum_of_preference_matching_is_the_truth():
    policy = optimum(P_STAR.log() * 0.3, lambda s, r: preference_matching(s))
    assert slope(policy) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("loss", [lambda s: dpo(s, torch.zeros(3, 2).double(), 0.3),
                                  preference_matching])  # fmt: skip
def test_gradients_are_those_of_finite_differences(loss):
    torch.manual_seed(0)
    scores = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (scores,))


def test_catto_by_hand_and_its_gradient_by_finite_differences():
    """p = (.6, .3, .1): the first token leads by .3, the second is led by .3, the third by .5."""
    p = torch.tensor([[0.6, 0.3, 0.1]] * 3, dtype=torch.float64)
    logits, token = p.log().requires_grad_(), torch.tensor([0, 1, 2])
    lead = torch.tensor([0.3, -0.3, -0.5], dtype=torch.float64).sigmoid()
    value = catto(logits, token)
    assert torch.allclose(value, (0.6 - lead).abs(), atol=1e-12)
    value.sum().backward()
    h = 1e-6
    for i in range(3):
        for k in range(3):
            moved = [p.log()[i].clone() for _ in range(2)]
            moved[0][k] += h
            moved[1][k] -= h
            # The lead is a fixed target: it stays where it was.
            up, down = ((m.softmax(0).max() - lead[i]).abs() for m in moved)
            assert float(logits.grad[i, k]) == pytest.approx(float(up - down) / (2 * h), abs=1e-8)


def test_catto_adds_its_term_over_the_preferred_tokens(tmp_path, tokenizer):
    """Against plain forward passes, one answer at a time; with λ = 0 it is DPO."""
    pairs = make_pairs(6)
    trainers = {
        weight: make_trainer(tmp_path, tokenizer, pairs, loss="catto", max_steps=1,
                             calibration_weight=weight)
        for weight in (0.0, 0.7)
    }  # fmt: skip
    expected = 0.0
    model = make_model().eval()
    for q in encode_preferences(pairs, tokenizer):
        ids = [*q.prefix, *q.branches[0]]
        with torch.no_grad():
            probs = model(torch.tensor([ids])).logits[0].softmax(-1)
        for offset, token in q.reads[0]:
            at = probs[len(q.prefix) - 1 + offset]
            other = max(float(v) for i, v in enumerate(at) if i != token)
            lead = 1 / (1 + np.exp(-(float(at[token]) - other)))
            expected += abs(float(at.max()) - lead)
    found = {}
    for weight, trainer in trainers.items():
        trainer.train()
        found[weight] = losses(trainer)[0]
    assert found[0.0] == pytest.approx(np.log(2), abs=1e-6)
    assert found[0.7] - found[0.0] == pytest.approx(0.7 * expected / len(pairs), rel=1e-5)


WORDS = ["red", "green", "blue", "stone", "river", "seven", "nine", "cat", "dog", "old", "new"]


def make_pairs(n, seed=0):
    rng = np.random.default_rng(seed)

    def text(low, high):
        return " ".join(rng.choice(WORDS, size=rng.integers(low, high)))

    return [
        Preference(f"p{i}", text(3, 9), f"{text(2, 6)} cat", f"{text(1, 4)} dog") for i in range(n)
    ]


def make_trainer(tmp_path, tokenizer, pairs, lora=False, **settings):
    settings = {
        "per_device_train_batch_size": len(pairs),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0.0,
    } | settings
    return PreferenceTrainer(
        model=make_model(),
        args=PreferenceConfig(output_dir=str(tmp_path / "out"), **settings),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore")
def test_training_is_that_of_trl(tmp_path, tokenizer):
    """The same losses, step by step, as TRL's DPOTrainer on the same pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pairs = make_pairs(8)
    ours = make_trainer(tmp_path, tokenizer, pairs, beta=0.3)
    ours.train()
    theirs = DPOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.3, per_device_train_batch_size=8,
            max_steps=3, learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0,
            save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True,
            max_grad_norm=0.0, bf16=False, gradient_checkpointing=False, report_to="none",
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": p.prompt}],
                    "chosen": [{"role": "assistant", "content": p.chosen}],
                    "rejected": [{"role": "assistant", "content": p.rejected}],
                }
                for p in pairs
            ]
        ),
        processing_class=tokenizer,
    )  # fmt: skip
    theirs.train()
    assert losses(ours)[0] == pytest.approx(np.log(2), abs=1e-6)
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=2e-4)
    assert losses(ours)[-1] < 0.6


@pytest.mark.parametrize("loss", ["dpo", "preference-matching", "catto"])
def test_accumulation_changes_nothing(tmp_path, tokenizer, loss):
    pairs = make_pairs(8)
    runs = []
    for size in (8, 2):
        trainer = make_trainer(
            tmp_path, tokenizer, pairs, loss=loss, per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size, learning_rate=1e-3,
        )  # fmt: skip
        trainer.train()
        runs.append(losses(trainer))
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


def test_the_reference_is_the_model_before_training(tmp_path, tokenizer):
    """With an adapter as with every weight, the first loss is ln 2 and later ones are lower."""
    trainer = make_trainer(tmp_path, tokenizer, make_pairs(8), lora=True, max_steps=6)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.01


def test_encoded_scores_are_the_answers_log_probabilities(tokenizer):
    """Against a plain forward pass over prompt and answer, one at a time."""
    from calibrant.scoring.local import score_encoded

    model, pairs = make_model(), make_pairs(5)
    scores = score_encoded(model, tokenizer, encode_preferences(pairs, tokenizer))
    for pair, row in zip(pairs, scores, strict=True):
        turns = [{"role": "user", "content": pair.prompt}]
        head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for value, answer in zip(row, (pair.chosen, pair.rejected), strict=True):
            full = tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": answer}], tokenize=False
            )
            start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
            ids = torch.tensor([tokenizer(full, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                logp = model(input_ids=ids).logits.log_softmax(-1)
            expected = sum(logp[0, t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))
            assert value == pytest.approx(expected, abs=2e-4)


def test_long_pairs_are_left_out(tmp_path, tokenizer):
    pairs = make_pairs(8)
    lengths = sorted(q.longest for q in encode_preferences(pairs, tokenizer))
    trainer = make_trainer(tmp_path, tokenizer, pairs, max_tokens=lengths[3])
    assert all(q.longest <= lengths[3] for q in trainer.train_dataset)
    assert len(trainer.train_dataset) >= 4
    with pytest.raises(InputError, match="no preference pair fits into 2 tokens"):
        make_trainer(tmp_path, tokenizer, pairs, max_tokens=2)
    with pytest.raises(InputError, match="train_dataset: holds no preference pair, expected at"):
        make_trainer(tmp_path, tokenizer, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ipo"}, "loss 'ipo', expected one of dpo, preference-matching"),
        ({"beta": 0.0}, "beta 0.0, expected a positive number"),
    ],
)
def test_a_bad_setting_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        PreferenceConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", "line 2: is not an object, expected the fields prompt, chosen, rejected"),
        ('{"prompt": "a", "chosen": "b"}', r"line 2: lacks \['rejected'\]"),
        ('{"prompt": "a", "chosen": "b", "rejected": " "}', "line 2: rejected: ' ', expected text"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 2: chosen and rejected are the"),
        ('{"prompt": "a", "chosen": 3, "rejected": "b"}', "line 2: chosen: '3', expected text"),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, message):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_preferences(path)
    path.write_text(f"{good}\n")
    assert load_preferences(path) == [Preference("1", "a", "b", "c")]


def test_a_missing_or_empty_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_preferences(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no preference pair"):
        load_preferences(tmp_path / "empty.jsonl")
