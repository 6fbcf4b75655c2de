import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig

from calibrant.errors import InputError
from calibrant.posthoc import TemperatureScaling
from calibrant.prompts import encode
from calibrant.questions import Questions
from calibrant.scoring.batch import option_scores
from calibrant.scoring.local import score
from calibrant.training import (
    METHODS,
    CalibrationConfig,
    CalibrationTrainer,
    NonFiniteLossError,
)
from calibrant.training.targets import tempered_target
from helpers import make_model, make_questions


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    def make(
        model=None,
        train=None,
        *,
        lora=False,
        calibration=None,
        unlabelled=None,
        evaluation=None,
        **settings,
    ):
        settings = {
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
        } | settings
        return CalibrationTrainer(
            model=make_model() if model is None else model,
            args=CalibrationConfig(output_dir=str(tmp_path / "out"), **settings),
            train_dataset=make_questions(24) if train is None else train,
            calibration_dataset=calibration,
            unlabelled_dataset=unlabelled,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        )

    return make


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_an_adapter_begins_as_the_seed_says_whatever_was_drawn_before(make_trainer):
    starts = []
    for seed in (1, 1, 2):
        model = make_model()
        torch.rand(len(starts) + 1)
        starts.append(weights(make_trainer(model, lora=True, seed=seed)))
    one, same, other = starts
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("method", "prompt", "lora"),
    [
        *((m, p, lora) for m in ("cft", "rcft") for p in ("letter", "chat-letter", "cloze")
          for lora in (True, False)),
        *((m, "cloze", False) for m in METHODS if m not in ("cft", "rcft")),
    ],
)  # fmt: skip
def test_training_lowers_the_training_nll(make_trainer, method, prompt, lora):
    questions = make_questions(32)
    trainer = make_trainer(
        train=questions, lora=lora, method=method, prompt=prompt, max_steps=15, ece_weight=0.1,
        anchor_weight=0.1, temperature=1.5 if method == "tempered-cft" else None,
    )  # fmt: skip
    before = trainer.evaluate(questions)["eval_nll"]
    untouched = {
        n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad
    }
    trainer.train()
    assert trainer.evaluate(questions)["eval_nll"] < before - 0.1
    for name, parameter in trainer.model.named_parameters():
        if name in untouched:
            assert torch.equal(parameter, untouched[name]), name
    assert bool(untouched) == lora


def first_batch_loss(trainer):
    """Loss of the whole training set as one batch, by the trainer and its parts by hand."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        scores, question = option_scores(trainer.model, batch)
    return loss, scores, question, batch


def test_cft_letter_loss_is_vocabulary_cross_entropy(make_trainer):
    trainer = make_trainer(method="cft", prompt="letter")
    loss, scores, question, batch = first_batch_loss(trainer)
    assert question is None
    expected = -scores[torch.arange(24), batch["answer"]].mean().item()
    assert loss == pytest.approx(expected, rel=1e-6)
    assert expected > torch.nn.functional.cross_entropy(scores, batch["answer"]).item()


@pytest.mark.parametrize(
    ("method", "strength", "by_hand"),
    [
        ("label-smoothing", 0.3, lambda p, y: -0.7 * math.log(p[y]) - 0.3 * np.log(p).mean()),
        ("entropy", 0.5, lambda p, y: -math.log(p[y]) + 0.5 * (p * np.log(p)).sum()),
        ("focal", 1.5, lambda p, y: -((1 - p[y]) ** 1.5) * math.log(p[y])),
        ("brier", 2.0, lambda p, y: -math.log(p[y]) + 2 * ((p - np.eye(len(p))[y]) ** 2).sum()),
        (
            "cogcalib",
            2.0,
            lambda p, y: -math.log(p[y]) - 2 * (p[y] >= 0.5) * np.log(p).mean(),
        ),
    ],
)
@pytest.mark.parametrize("prompt", ["cloze", "letter"])
def test_losses_over_the_options(make_trainer, method, strength, by_hand, prompt):
    """By hand from option probabilities; letters also pay for what is not an option."""
    trainer = make_trainer(method=method, prompt=prompt, strength=strength)
    loss, scores, question, batch = first_batch_loss(trainer)
    assert question is None
    expected, known = [], 0
    for row, real, y in zip(scores.double().numpy(), batch["option"], batch["answer"], strict=True):
        z = row[real.numpy()]
        p = np.exp(z - np.logaddexp.reduce(z))
        known += p[y] >= 0.5
        format_loss = -np.logaddexp.reduce(z) if prompt == "letter" else 0.0
        expected.append(by_hand(p, int(y)) + format_loss)
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert 0 < known < len(expected)


@pytest.mark.parametrize("prompt", ["cloze", "letter"])
def test_a_temperature_softens_the_options_and_leaves_the_format_loss(make_trainer, prompt):
    trainer = make_trainer(method="cft", prompt=prompt, temperature=2.0)
    loss, scores, _, batch = first_batch_loss(trainer)
    of_options = torch.nn.functional.cross_entropy(scores / 2, batch["answer"])
    of_format = -scores.logsumexp(dim=1).mean() if prompt == "letter" else 0.0
    assert loss == pytest.approx((of_options + of_format).item(), rel=1e-6)


def mostly_answered(model, tokenizer, questions, prompt):
    """The questions with the model's own answers as right ones, but for every fourth."""
    said = score(model, tokenizer, questions, prompt=prompt, show_progress=False).predictions
    return Questions(
        replace(q, answer=(int(y) + (i % 4 == 0)) % len(q.choices))
        for i, (q, y) in enumerate(zip(questions, said, strict=True))
    )


@pytest.mark.parametrize("prompt", ["cloze", "letter"])
def test_tempered_cft_trains_at_the_temperature_fitted_before(make_trainer, tokenizer, prompt):
    """Temperature and teacher are those of the model as it came, however far it is trained."""
    others = make_questions(20, seed=4, prefix="u")
    labelled = mostly_answered(make_model(), tokenizer, make_questions(40), prompt)
    trainer = make_trainer(
        train=labelled, unlabelled=others, method="tempered-cft", prompt=prompt, anchor_weight=3.0,
        question_weight=0.5,
    )  # fmt: skip
    before = score(trainer.model, tokenizer, labelled, prompt=prompt, show_progress=False)
    scaling = TemperatureScaling().fit(before)
    start = make_model()
    trainer.train()
    assert trainer.temperature == pytest.approx(scaling.temperature, rel=1e-6)
    assert trainer.calibrator.n_questions == 40
    evaluated = trainer.score(others)
    answers = score(trainer.model, tokenizer, others, prompt=prompt, show_progress=False)
    np.testing.assert_allclose(evaluated.probs(), scaling.transform(answers).probs(), atol=1e-6)

    loss, scores, question, batch = first_batch_loss(trainer)
    with torch.no_grad():
        old, _ = option_scores(start, batch)
    new, old = (z.double().numpy() / trainer.temperature for z in (scores, old))
    expected = []
    for i, (z, t, y) in enumerate(zip(new, old, batch["answer"], strict=True)):
        real = np.isfinite(z)
        log_p = z[real] - np.logaddexp.reduce(z[real])
        log_t = t[real] - np.logaddexp.reduce(t[real])
        divergence = (np.exp(log_t) * (log_t - log_p)).sum()
        of_format = -scores[i].logsumexp(dim=0).item() if prompt == "letter" else 0.0
        expected.append(of_format - log_p[y] + 3 * divergence if i < 40 else divergence)
    own_tokens = question.item() / len(batch["question_token"])
    assert loss == pytest.approx(np.mean(expected) + 0.5 * own_tokens, rel=1e-4)
    assert np.abs(new[np.isfinite(new)] - old[np.isfinite(old)]).max() > 0.01  # it has moved


def test_answers_of_unlabelled_questions_are_not_used(make_trainer, tokenizer):
    labelled = mostly_answered(make_model(), tokenizer, make_questions(24), "letter")
    others = make_questions(20, seed=4, prefix="u")
    changed = [replace(q, answer=(q.answer + 1) % len(q.choices)) for q in others]
    found = []
    for unlabelled in (others, changed):
        trainer = make_trainer(
            train=labelled, unlabelled=unlabelled, method="tempered-cft", prompt="letter"
        )
        trainer.train()
        found.append(weights(trainer))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_resumed_tempered_training_has_the_same_teacher(make_trainer, tokenizer, tmp_path):
    labelled = mostly_answered(make_model(), tokenizer, make_questions(24), "cloze")
    settings = {"train": labelled, "method": "tempered-cft", "prompt": "cloze"}
    settings["save_strategy"] = "steps"
    whole = make_trainer(save_steps=2, **settings)
    whole.train()
    resumed = make_trainer(save_steps=2, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert resumed.temperature == whole.temperature
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=1e-7)


def test_cft_cloze_loss_is_cross_entropy_over_the_options(make_trainer):
    trainer = make_trainer(method="cft", prompt="cloze")
    loss, scores, _, batch = first_batch_loss(trainer)
    expected = torch.nn.functional.cross_entropy(scores, batch["answer"]).item()
    assert loss == pytest.approx(expected, rel=1e-6)


def test_cloze_vocabulary_loss_is_the_likelihood_of_the_answer_text(make_trainer, tokenizer):
    questions = make_questions(6)
    trainer = make_trainer(train=questions, method="cft", prompt="cloze", answer_loss="vocabulary")
    table = score(trainer.model, tokenizer, questions, prompt="cloze-sum", show_progress=False)
    expected = -table.logprobs[np.arange(6), table.labels].mean()
    assert first_batch_loss(trainer)[0] == pytest.approx(expected, rel=1e-5)


def test_rcft_loss_is_question_plus_answer_plus_ece(make_trainer, tokenizer):
    questions = make_questions(10)
    trainer = make_trainer(
        train=questions,
        calibration=make_questions(40, seed=3, prefix="c"),
        method="rcft",
        prompt="cloze",
        ece_weight=7.0,
        e_step_share=4.0,
    )
    trainer.e_step()
    loss, scores, question, batch = first_batch_loss(trainer)

    # Question tokens, by plain transformers.
    total = count = 0
    for q in questions:
        ids = tokenizer(f"Question: {q.question}\nAnswer:", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logprobs = trainer.model(ids).logits[0, :-1].log_softmax(-1)
        total += logprobs.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert len(batch["question_token"]) == count
    assert question.item() == pytest.approx(-total, rel=1e-5)

    # Target, from the calibration questions' table.
    held_out = score(
        trainer.model,
        tokenizer,
        make_questions(40, seed=3, prefix="c"),
        prompt="cloze",
        show_progress=False,
    )
    probs = scores.softmax(1)
    confidence = probs.max(1).values.numpy()
    bins = np.minimum((held_out.confidence * 10).astype(int), 9)
    pooled = held_out.correct.mean()
    top = [
        (held_out.correct[bins == b].sum() + 10 * pooled) / ((bins == b).sum() + 10)
        for b in np.minimum((confidence * 10).astype(int), 9)
    ]
    target = tempered_target(scores, torch.tensor(top, dtype=torch.float32))
    ece = ((probs - target) ** 2).sum(1).mean().item()
    answer = torch.nn.functional.cross_entropy(scores, batch["answer"]).item()
    assert loss == pytest.approx(answer - total / count + 7.0 * ece, rel=1e-5)


def test_rcft_sets_calibration_questions_aside(make_trainer):
    trainer = make_trainer(train=make_questions(50), method="rcft", calibration_fraction=0.2)
    trained, held = {q.id for q in trainer.train_dataset}, set(trainer._calibration.ids)
    assert len(trained) == 40
    assert len(held) == 10
    assert not trained & held


@pytest.mark.parametrize(
    ("settings", "held_out"),
    [
        ({"num_train_epochs": 1}, 0),
        ({"num_train_epochs": 0.5}, 0),
        ({"num_train_epochs": 1.5}, 10),
        ({"max_steps": 6}, 0),  # 4 questions a step: 24 of 50
        ({"max_steps": 13}, 10),
        ({"e_step_data": "training", "num_train_epochs": 2}, 0),
        ({"num_train_epochs": 1, "lora_dropout": 0.1}, 10),
        ({"num_train_epochs": 1, "calibration_fraction": 0.4}, 20),
    ],
)
def test_rcft_trains_on_all_where_each_is_answered_before_it_is_learnt(
    tokenizer, tmp_path, settings, held_out
):
    settings = {"max_steps": -1} | settings
    dropout = settings.pop("lora_dropout", 0.0)
    trainer = CalibrationTrainer(
        model=make_model(),
        args=CalibrationConfig(
            output_dir=str(tmp_path), method="rcft", use_cpu=True, per_device_train_batch_size=4,
            report_to="none", **settings,
        ),
        train_dataset=make_questions(50),
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear", lora_dropout=dropout),
    )  # fmt: skip
    assert len(trainer.train_dataset) == 50 - held_out
    assert len(trainer._calibration) == (held_out or 50)


def test_e_steps_come_as_often_as_asked(make_trainer):
    trainer = make_trainer(
        train=make_questions(32),
        calibration=make_questions(8, prefix="c"),
        method="rcft",
        max_steps=16,  # 8 steps an epoch, two epochs
        e_steps_per_epoch=4,
    )
    steps = []
    e_step = trainer.e_step
    trainer.e_step = lambda: (steps.append(trainer.state.global_step), e_step())
    trainer.train()
    assert steps == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_strong_regulariser_pulls_confidence_to_held_out_accuracy(make_trainer, tokenizer):
    """Labels are noise, so held-out accuracy is chance: SFT alone grows sure, RCFT may not."""
    rng = np.random.default_rng(0)
    questions = make_questions(64, k_min=4, k_max=4)
    from dataclasses import replace

    noise = [replace(q, answer=int(rng.integers(4))) for q in questions]
    held_out = [
        replace(q, id=f"h{q.id}", answer=int(rng.integers(4)))
        for q in make_questions(64, seed=9, k_min=4, k_max=4)
    ]
    confidence = {}
    for method in ("cft", "rcft"):
        trainer = make_trainer(
            train=noise,
            calibration=held_out if method == "rcft" else None,
            method=method,
            prompt="cloze",
            max_steps=80,
            ece_weight=30.0,
            question_weight=0.0,
            lr_scheduler_type="constant",
        )
        trainer.train()
        confidence[method] = trainer.score(held_out).confidence.mean()
    assert confidence["cft"] > 0.6
    assert confidence["rcft"] < 0.45


@pytest.mark.parametrize(
    ("method", "default"), [("rcft", 1), ("tempered-cft", 1), ("cft", 0), ("brier", 0)]
)
def test_question_tokens_are_learnt_by_default_only_where_the_loss_has_them(method, default):
    assert CalibrationConfig(output_dir="out", method=method).question_weight == default
    assert CalibrationConfig(method=method, question_weight=0.5).question_weight == 0.5


@pytest.mark.parametrize("method", ["cft", "brier", "tempered-cft"])
def test_any_method_can_keep_the_questions_own_tokens(make_trainer, tokenizer, method):
    """Their likelihood is that of plain transformers."""
    questions = make_questions(24)

    def question_nll(model):
        texts = [encode([q], tokenizer, "cloze")[0].prefix for q in questions]
        rows = [torch.tensor([text]) for text in texts]
        with torch.no_grad():
            return np.mean([model(row, labels=row).loss.item() for row in rows])

    after = {}
    for weight in (0.0, 1.0):
        trainer = make_trainer(
            method=method, prompt="cloze", question_weight=weight, max_steps=60, learning_rate=5e-3,
            temperature=1.5 if method == "tempered-cft" else None, anchor_weight=0.0,
        )  # fmt: skip
        trainer.train()
        after[weight] = question_nll(trainer.model)
    assert after[1.0] < after[0.0] - 1


@pytest.mark.parametrize("method", ["cft", "rcft"])
def test_a_resumed_run_ends_as_an_undisturbed_one(make_trainer, tmp_path, method):
    settings = {
        "method": method,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "lora": True,
    }
    whole = make_trainer(**settings)
    whole.train()
    again = make_trainer(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


def test_e_step_statistics_are_in_the_checkpoint_as_json(make_trainer, tmp_path):
    trainer = make_trainer(method="rcft", save_strategy="steps", save_steps=2)
    trainer.train()
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["EStepState"]["attributes"]
    assert sum(saved["statistics"]["count"]) > 0


def test_nan_loss_stops_with_the_step_and_the_questions(make_trainer):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    trainer = make_trainer(model, train=make_questions(4))
    with pytest.raises(NonFiniteLossError, match=r"step 0: the loss is nan on questions 'q\d'"):
        trainer.train()


def test_evaluate_reports_calibration(make_trainer, tokenizer):
    from calibrant import metrics

    trainer = make_trainer()
    sets = {"one": make_questions(20, seed=1), "two": make_questions(10, seed=2)}
    result = trainer.evaluate(sets)
    table = score(trainer.model, tokenizer, sets["one"], show_progress=False)
    expected = metrics.conf_ece(table.probs(), table.labels, n_options=table.n_options)
    assert result["eval_one_conf_ece"] == pytest.approx(expected)
    assert result["eval_two_accuracy"] == pytest.approx(
        score(trainer.model, tokenizer, sets["two"], show_progress=False).correct.mean()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sgd"}, "method 'sgd', expected one of sft, cft, tempered-cft, rcft"),
        ({"temperature": 0.0}, "temperature 0.0, expected more than 0, or None"),
        ({"anchor_weight": -1.0}, "anchor_weight -1.0, expected 0 to inf"),
        ({"target": "linear"}, "expected one of tempered, tanh"),
        ({"ece_weight": -1}, "ece_weight -1, expected 0 to inf"),
        ({"calibration_fraction": 1.0}, "calibration_fraction 1.0"),
        ({"prompt": "essay"}, "prompt format 'essay'"),
    ],
)
def test_a_bad_setting_is_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        CalibrationConfig(output_dir=str(tmp_path), **settings)


def test_it_writes_a_standard_adapter(make_trainer, tmp_path, tokenizer):
    from peft import PeftModel

    questions = make_questions(6)
    trainer = make_trainer(lora=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert (Path(tmp_path) / "adapter" / "adapter_model.safetensors").exists()
    again = PeftModel.from_pretrained(make_model(), str(tmp_path / "adapter"))
    np.testing.assert_allclose(
        score(again, tokenizer, questions, show_progress=False).probs(),
        trainer.score(questions).probs(),
        atol=1e-6,
    )


def test_a_second_training_begins_with_its_own_e_step(make_trainer):
    trainer = make_trainer(method="rcft")
    steps = []
    e_step = trainer.e_step
    trainer.e_step = lambda: (steps.append(trainer.state.global_step), e_step())
    trainer.train()
    once = len(steps)
    trainer.train()
    assert steps[once] == 0
    assert len(steps) == 2 * once


def test_the_best_checkpoint_is_chosen_by_nll_unless_told(make_trainer):
    trainer = make_trainer(
        evaluation=make_questions(12, seed=4, prefix="e"), load_best_model_at_end=True,
        eval_strategy="steps", save_strategy="steps", eval_steps=2, save_steps=2, lora=True,
    )  # fmt: skip
    trainer.train()
    found = [e["eval_nll"] for e in trainer.state.log_history if "eval_nll" in e]
    assert trainer.state.best_metric == min(found)


def test_the_collator_can_be_sent_to_a_worker(make_trainer):
    import pickle

    trainer = make_trainer(prompt="cloze", method="rcft")
    again = pickle.loads(pickle.dumps(trainer.data_collator))
    one, two = (c(list(trainer.train_dataset)[:3]) for c in (trainer.data_collator, again))
    assert torch.equal(one["input_ids"], two["input_ids"])


def test_what_has_no_meaning_here_is_refused(make_trainer, tmp_path):
    with pytest.raises(InputError, match="label_smoothing_factor"):
        CalibrationConfig(output_dir=str(tmp_path), label_smoothing_factor=0.1)
    with pytest.raises(NotImplementedError, match="AnswerTable"):
        make_trainer().predict(make_questions(2))
