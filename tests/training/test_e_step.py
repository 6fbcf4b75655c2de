"""What the E-step reads, and what that costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from _runs import make
from peft import LoraConfig, get_peft_model

from calibrant.questions import Questions
from calibrant.scoring.local import score
from calibrant.training import trainer as trainer_module
from helpers import make_model, make_questions


@pytest.fixture
def scored(monkeypatch):
    """Ids of the questions of every scoring pass of an E-step."""
    asked, plain = [], trainer_module.score_encoded

    def noted(model, tokenizer, encoded, **how):
        asked.append(encoded.ids)
        return plain(model, tokenizer, encoded, **how)

    monkeypatch.setattr(trainer_module, "score_encoded", noted)
    return asked


def run(tokenizer, **settings):
    """Statistics after every refresh of a training that forgets them, of 40 questions by 4."""
    settings = {
        "method": "rcft",
        "prompt": "cloze",
        "train": make_questions(40),
        "calibration": make_questions(30, seed=5, prefix="c"),
        "per_device_train_batch_size": 4,
        "e_steps_per_epoch": 2,
        "e_step_decay": 0.0,
        "train_sampling_strategy": "sequential",
    } | settings
    trainer = make(tokenizer, lora=False, **settings)
    found, e_step = [], trainer.e_step

    def noted():
        e_step()
        found.append(trainer._e_state().statistics)

    trainer.e_step = noted
    trainer.train()
    return trainer, found


def tally(tokenizer, questions):
    """Questions and right answers of an untrained model in ten bins of confidence, by hand."""
    table = score(make_model(), tokenizer, questions, prompt="cloze", show_progress=False)
    bins = np.minimum((table.confidence * 10).astype(int), 9)
    return {
        "count": [float((bins == b).sum()) for b in range(10)],
        "sum_correct": [float(table.correct[bins == b].sum()) for b in range(10)],
    }


def test_the_first_epoch_takes_what_training_has_just_read(tokenizer, scored):
    """A model that does not move answers in training what scoring finds."""
    questions = make_questions(40)
    _, found = run(tokenizer, max_steps=10, learning_rate=0.0)
    assert len(scored) == 1, "only the E-step before training scores"
    assert len(found) == 2
    assert found[1] == tally(tokenizer, questions[:20])


def test_without_questions_of_its_own_the_e_step_has_no_learnt_answer(tokenizer, scored):
    """Before the first step .15 of the training questions; then what training reads, in order."""
    questions = make_questions(40)
    _, found = run(tokenizer, calibration=None, max_steps=10, learning_rate=0.0)
    first = Questions(q for q in questions if q.id in scored[0])
    assert [len(ids) for ids in scored] == [6]
    assert found == [tally(tokenizer, first), tally(tokenizer, questions[:20])]


def test_questions_asked_again_and_again_leave_the_first_e_step_as_it_is(tokenizer, scored):
    questions = list(make_questions(20))
    twins = [replace(q, id=f"twin {q.id}") for q in questions]
    _, found = run(tokenizer, train=Questions([*questions, *twins]), calibration=None, max_steps=10)
    assert [len(ids) for ids in scored] == [6]
    assert found[1] == found[0]


@pytest.mark.parametrize("where", ["layer", "attention", "adapter"])
def test_with_dropout_the_first_epoch_is_scored_like_the_others(tokenizer, scored, where):
    """What training reads is noised; a model that does not move is found as it is evaluated."""
    model, questions = make_model(), make_questions(30, seed=5, prefix="c")
    if where == "layer":
        model.model.layers[0].mlp = torch.nn.Sequential(
            model.model.layers[0].mlp, torch.nn.Dropout(0.5)
        )
    elif where == "attention":
        model.model.layers[0].self_attn.attention_dropout = 0.5
    else:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", lora_dropout=0.5))
    _, found = run(tokenizer, model=model, calibration=questions, max_steps=10, learning_rate=0.0)
    assert [len(ids) for ids in scored] == [3, 3]
    for ids, statistics in zip(scored, found, strict=True):
        assert statistics == tally(tokenizer, Questions(q for q in questions if q.id in ids))


def test_a_question_asked_more_than_once_is_not_held_out(tokenizer):
    questions = list(make_questions(39))
    twin = replace(questions[3], id="twin", choices=questions[3].choices[::-1])
    _, found = run(tokenizer, train=Questions([*questions, twin]), max_steps=10, learning_rate=0.0)
    alone = [q for i, q in enumerate(questions[:20]) if i != 3]
    assert found[1] == tally(tokenizer, alone)


def test_each_epoch_scores_its_share_in_turn(tokenizer, scored):
    """.15 of 40 questions: 6 before the first epoch, 3 at a refresh in later ones, whose first
    still has what the end of the first epoch read."""
    run(tokenizer, max_steps=30)
    assert [len(ids) for ids in scored] == [6, 3, 3, 3]
    assert len({name for ids in scored for name in ids}) == 15, "none twice before all had a turn"


def test_a_small_pool_begins_again(tokenizer, scored):
    run(tokenizer, calibration=make_questions(5, seed=5, prefix="c"), max_steps=30)
    assert [len(ids) for ids in scored] == [5, 3, 3, 3]
    assert {*scored[1], *scored[2]} == set(scored[0])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"e_steps_per_epoch": 0}, [30]),
        ({"e_step_data": "training"}, [40, 40]),
        ({"method": "rcft-released"}, [40]),
    ],
)
def test_the_published_e_steps_score_every_question(tokenizer, scored, settings, sizes):
    run(tokenizer, max_steps=10, **settings)
    assert [len(ids) for ids in scored] == sizes


def test_questions_trained_on_before_are_scored_instead(tokenizer, scored):
    trainer, _ = run(tokenizer, max_steps=10)
    scored.clear()
    trainer.train()
    assert [len(ids) for ids in scored] == [6, 3]


def test_a_run_resumed_within_the_first_epoch_keeps_what_was_read(tokenizer, tmp_path):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    settings["output_dir"] = str(tmp_path)
    _, whole = run(tokenizer, **settings)
    trainer = make(
        tokenizer, lora=False, method="rcft", prompt="cloze", train=make_questions(40),
        calibration=make_questions(30, seed=5, prefix="c"), per_device_train_batch_size=4,
        e_steps_per_epoch=2, e_step_decay=0.0, train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer._e_state().statistics == whole[-1]
    assert sum(whole[-1]["count"]) == 20
