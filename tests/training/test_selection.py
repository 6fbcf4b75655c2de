"""What is reported while a model trains, and which of its checkpoints is the best."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrant import metrics
from calibrant.diagnosis.verdict import verdict
from calibrant.errors import InputError
from calibrant.questions import Questions
from calibrant.restore import RestoreSettings
from calibrant.scoring.local import score
from calibrant.training import CalibrationConfig, CalibrationTrainer
from calibrant.training.base import weigh
from calibrant.training.selection import BEFORE
from calibrant.training.tuning import training_arguments
from helpers import make_model, make_questions

KNOWN = Questions(
    [q for q in make_questions(80, k_min=4, k_max=4) if len(set(q.choices)) == 4][:40]
)


@pytest.fixture(scope="module")
def informed(tokenizer, tmp_path_factory):
    """Weights of a model that knows the answers to `KNOWN`."""
    model = make_model()
    trainer = CalibrationTrainer(
        model=model,
        args=settings(tmp_path_factory.mktemp("informed"), max_steps=60, learning_rate=3e-3),
        train_dataset=KNOWN,
        processing_class=tokenizer,
    )
    trainer.train()
    return model.state_dict()


def settings(folder, **changes):
    return CalibrationConfig(
        output_dir=str(folder / "out"),
        **{
            "method": "cft",
            "prompt": "cloze",
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
        }
        | changes,
    )


@pytest.fixture
def make_trainer(tmp_path, tokenizer, informed):
    def make(evaluation=KNOWN, *, args=None, **changes):
        model = make_model()
        model.load_state_dict(informed)
        return CalibrationTrainer(
            model=model,
            args=args or settings(tmp_path, **changes),
            train_dataset=KNOWN,
            eval_dataset=evaluation,
            processing_class=tokenizer,
        )

    return make


SELECTING = {
    "save_strategy": "steps",
    "eval_strategy": "steps",
    "save_steps": 4,
    "eval_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_conf_ece",
}
# Taught that every option is as likely: confidence 1/K, and in the end no error of calibration.
TO_A_CONSTANT = {"method": "label-smoothing", "strength": 1.0, "learning_rate": 1e-3}


def evaluations(trainer):
    return [e for e in trainer.state.log_history if "eval_conf_ece" in e]


def test_a_model_that_gives_up_knowing_is_never_the_best(make_trainer, caplog):
    """Sure, and wrong four times in ten: to know nothing would be the better calibrated."""
    asked = Questions(
        replace(q, id=f"e{q.id}", answer=(q.answer + (i < 16)) % 4) for i, q in enumerate(KNOWN)
    )
    trainer = make_trainer(asked, max_steps=40, **SELECTING, **TO_A_CONSTANT)
    before = trainer.score(asked)
    trainer.train()
    found = evaluations(trainer)
    assert before.correct.mean() > 0.55
    flat = min(found, key=lambda e: e["eval_conf_ece"])
    assert flat["eval_accuracy"] < 0.45
    assert f"step {flat['step']}: not taken as the best, harmed: accuracy" in caplog.text
    assert flat["eval_conf_ece"] < trainer.state.best_metric < found[0]["eval_conf_ece"] + 1e-9
    after = trainer.score(asked)
    assert metrics.conf_ece(after.probs(), after.labels) == pytest.approx(trainer.state.best_metric)
    assert verdict(before, after, seed=1).label not in ("harmed", "gamed")


def test_patience_counts_evaluations_that_are_not_better_and_survives_a_resume(
    make_trainer, tmp_path, caplog
):
    chosen = SELECTING | TO_A_CONSTANT | {"learning_rate": 3e-3, "early_stopping_patience": 2}
    trainer = make_trainer(max_steps=60, **chosen)
    trainer.train()
    assert trainer.state.global_step < 60
    kept = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    last = trainer.state.global_step
    assert "2 evaluations without a better one; stopping" in caplog.text
    steps = [e["step"] for e in evaluations(trainer)]
    # Resumed before the last evaluation, and when it had just stopped.
    for step in (last - 4, last):
        again = make_trainer(max_steps=60, **chosen)
        again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{step}"))
        assert [e["step"] for e in evaluations(again)] == steps
        if trainer.state.best_model_checkpoint is not None:
            for name, value in again.model.named_parameters():
                assert torch.equal(value, kept[name]), name


def test_a_restoration_that_stops_early_evaluates_four_times_an_epoch_and_at_its_end(
    make_trainer, tmp_path
):
    """RCFT sets 8 of 40 questions aside: 16 steps of 2, evaluated at every fourth."""
    chosen = RestoreSettings(
        model="-", train=("-",), evaluate=("-",), methods=("rcft",), prompt="cloze", batch_size=2,
        epochs=1.0, early_stopping=9, calibration_fraction=0.2, learning_rate=1e-3, lora_rank=0,
    )  # fmt: skip
    args = training_arguments(chosen, "rcft", tmp_path / "out", on_cpu=True)
    trainer = make_trainer(KNOWN[:12], args=args)
    trainer.train()
    assert [e["step"] for e in evaluations(trainer)] == [4, 8, 12, 16]


def test_the_last_step_can_be_the_best(make_trainer):
    trainer = make_trainer(
        KNOWN[:12], max_steps=3, **SELECTING | {"save_steps": 2, "eval_steps": 2}
    )
    trainer.train()
    assert [e["step"] for e in evaluations(trainer)] == [2, 3]


def test_a_step_done_again_leaves_the_answers_of_the_steps_before(make_trainer):
    """Forgetting the second of three steps, begun twice: every question is counted once."""
    trainer = make_trainer(learning_rate=0.0)
    batches = [trainer.data_collator(trainer.train_dataset[i : i + 8]) for i in (0, 8, 8, 16)]
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    for i, batch in enumerate(batches):
        weigh(batch, torch.ones(8))
        counts = torch.tensor([8, 0])
        if i == 1:  # it fails before it is complete
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
            trainer.forget_step()
        else:
            trainer.training_step(trainer.model, batch, counts)
    table = trainer.score(KNOWN[:24])
    found = trainer._answered.take(trainer.accelerator)
    assert found["accuracy"] == table.correct.mean()
    assert found["mean_confidence"] == pytest.approx(table.confidence.mean(), abs=1e-6)
    assert found["nll"] == pytest.approx(metrics.nll(table.probs(), table.labels), abs=1e-6)


def test_a_resumed_selection_needs_the_answers_before_training(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=4, **SELECTING)
    trainer.train()
    (tmp_path / "out" / BEFORE).unlink()
    with pytest.raises(InputError, match=r"before.parquet: is missing; expected the answers"):
        make_trainer(max_steps=8, **SELECTING).train(resume_from_checkpoint=True)


def test_of_several_sets_the_metric_names_the_one_that_counts(make_trainer):
    sets = {"one": KNOWN, "two": make_questions(12, seed=9, prefix="t")}
    trainer = make_trainer(
        sets, max_steps=4, **SELECTING | {"metric_for_best_model": "eval_two_nll"}
    )
    trainer.train()
    assert len(trainer._before) == 12
    with pytest.raises(InputError, match="names no evaluation set, expected one of eval_one_nll"):
        make_trainer(sets, **SELECTING | {"metric_for_best_model": "eval_three_nll"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early_stopping_patience": 2}, "with load_best_model_at_end and an eval_strategy"),
        (SELECTING | {"metric_for_best_model": "eval_f1"}, "expected one of eval_accuracy, eval_c"),
        (SELECTING | {"early_stopping_patience": 0}, "early_stopping_patience 0, expected 1 or"),
        ({"report_to": "wandb"}, "report_to wandb: is not installed; install it with pip install"),
    ],
)
def test_a_bad_choice_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(("name", "greater"), [("accuracy", True), ("conf_ece", False)])
def test_which_way_is_better_is_known(tmp_path, name, greater):
    args = settings(tmp_path, **SELECTING | {"metric_for_best_model": f"eval_{name}"})
    assert args.greater_is_better is greater


def test_a_line_of_the_log_has_the_numbers_of_the_questions_since_the_last(make_trainer, tokenizer):
    """With no learning, a line over a whole epoch is an evaluation on the training questions, and
    lines over its steps, each of as many questions, have its NLL on average."""
    lines = {}
    for steps in (1, 5):
        trainer = make_trainer(learning_rate=0.0, logging_steps=steps)
        trainer.train()
        lines[steps] = [e for e in trainer.state.log_history if "loss" in e]
    table = score(trainer.model, tokenizer, KNOWN, prompt="cloze", show_progress=False)
    assert [line["step"] for line in lines[5]] == [5]
    assert lines[5][0]["accuracy"] == table.correct.mean()
    assert lines[5][0]["mean_confidence"] == pytest.approx(table.confidence.mean(), abs=1e-6)
    for name in ("conf_ece", "nll"):
        expected = getattr(metrics, name)(table.probs(), table.labels)
        assert lines[5][0][name] == pytest.approx(expected, abs=1e-6), name
    parts = [line["nll"] for line in lines[1]]
    assert len(set(parts)) == 5
    assert sum(parts) / 5 == pytest.approx(lines[5][0]["nll"], abs=1e-6)


def test_tensorboard_gets_the_calibration_of_training_and_evaluation(
    make_trainer, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(
        max_steps=4, report_to="tensorboard", eval_strategy="steps", eval_steps=2
    )
    trainer.train()
    folder = next(p.parent for p in (tmp_path / "board").rglob("events*"))
    events = EventAccumulator(str(folder)).Reload()
    for name in ("conf_ece", "accuracy", "nll"):
        values = [event.value for event in events.Scalars(f"eval/{name}")]
        expected = [e[f"eval_{name}"] for e in evaluations(trainer)]
        assert values == pytest.approx(expected)
        assert len(events.Scalars(f"train/{name}")) == 4


def test_pushing_without_a_network_fails_before_training(make_trainer):
    with pytest.raises(InputError, match=r"push_to_hub: me/model cannot be made on the hub: .*off"):
        make_trainer(push_to_hub=True, hub_model_id="me/model", hub_token="hf_none")


def test_nothing_is_reported_or_pushed_unless_asked(tmp_path):
    args = settings(tmp_path)
    assert not args.push_to_hub
    assert args.report_to == []
    assert not json.loads(args.to_json_string())["push_to_hub"]
    assert not list(Path(tmp_path).rglob("*"))
