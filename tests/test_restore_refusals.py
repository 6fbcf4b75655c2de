"""What `restore` refuses, before anything is loaded or written; and how it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.restore import RestoreSettings, load_data
from helpers import make_questions, restore_arguments, train_further, write_questions


@pytest.fixture
def unloaded(monkeypatch):
    """No model may be loaded."""
    from calibrant.scoring import models

    def load_model(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load_model", load_model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "label-smoothing", "--strength", "3"), "strength 3.0, expected 0 to 1"),
        (("--method", "all", "--strength", "3"), "strength 3.0, expected 0 to 1"),
        (("--method", "cft", "--report-to", "bogus"), "report_to 'bogus', expected of azure_ml, "),
        (("--report-to", "bogus"), "report_to 'bogus', expected of azure_ml, "),
        (("--method", "cft", "--report-to", "neptune"), "report_to neptune: is not installed"),
        (("--method", "pride"), "prompt format 'cloze' lists no options, so their order changes"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_loaded(
    world, tmp_path, capsys, unloaded, options, message
):
    assert run(restore_arguments(world, tmp_path / "run", *options)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "cft", "--best-by", "brier"), "--best-by goes with --early-stopping"),
        (("--method", "cft", "--min-accuracy", ".5"), "--min-accuracy goes with --method auto"),
        (("--fine-tune", "never", "--min-accuracy", ".5"), "--min-accuracy goes with --method"),
        (("--method", "cft", "--fine-tune", "never"), "--fine-tune goes with --method auto"),
        (("--method", "all", "--selection-fraction", ".5"), "--selection-fraction goes with"),
        (("--method", "temperature", "--push-to-hub", "a/b"), "--push-to-hub goes with a --method"),
        (("--method", "vector", "--early-stopping", "2"), "--early-stopping goes with a --method"),
        (("--fine-tune", "never", "--report-to", "wandb"), "--report-to goes with a --method that"),
        (("--reference-model", "base"), "--reference-model goes with --method base-kl or daca"),
        (("--method", "cft", "--reference-model", "b"), "--reference-model goes with --method"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    world, tmp_path, capsys, unloaded, options, message
):
    assert run(restore_arguments(world, tmp_path / "run", *options)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_recipe_may_hold_flags_of_other_methods(world, tmp_path, capsys, unloaded):
    """They are refused on the command line alone; the next refusal shows that these were not."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("best-by: brier\nreference-model: base\nmin-accuracy: 0.5\nstrength: 3\n")
    asked = ("--config", str(recipe), "--method", "label-smoothing")
    assert run(restore_arguments(world, tmp_path / "run", *asked)) == 1
    assert "strength 3.0" in capsys.readouterr().err


# -- training questions ---------------------------------------------------------------------------


def settings(train, test, **more):
    return RestoreSettings("m", tuple(train), (test,), **more)


def test_no_training_question_left_is_said_at_once_and_where_they_are(world, tmp_path, unloaded):
    same = write_questions(tmp_path / "copy.jsonl.gz", make_questions(20))
    test = write_questions(tmp_path / "test.jsonl.gz", make_questions(20))
    other = write_questions(tmp_path / "other.jsonl.gz", make_questions(20, seed=9, prefix="o"))
    overlap = rf"no training question is left: .*\({same} with \S*test\); expected other"
    with pytest.raises(InputError, match=overlap):
        load_data(settings([same], test, out_of_domain=(other,)))
    assert len(load_data(settings([same], test, overlap="keep"))[0]) == 20


def test_a_short_source_leaves_its_share_to_the_others(tmp_path):
    test = write_questions(tmp_path / "test.jsonl.gz", make_questions(20, prefix="t"))
    gone = write_questions(tmp_path / "gone.jsonl.gz", make_questions(20))
    short = write_questions(tmp_path / "short.jsonl.gz", make_questions(3, seed=7))
    long = write_questions(tmp_path / "long.jsonl.gz", make_questions(50, seed=8))

    def sizes(limit):
        train = load_data(settings([gone, short, long], test, train_limit=limit))[0]
        names = [q.id.rpartition(":")[0].rpartition("-")[2] for q in train]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    assert sizes(30) == {"short": 3, "long": 27}
    assert sizes(5) == {"short": 3, "long": 2}
    assert sizes(90) == {"short": 3, "long": 50}


def test_fewer_training_questions_than_sources_are_refused_by_name(tmp_path):
    paths = [
        write_questions(tmp_path / f"{i}.jsonl.gz", make_questions(9, seed=i)) for i in range(4)
    ]
    with pytest.raises(InputError, match="--train-limit 2 for 3 --train sources, expected at"):
        load_data(settings(paths[:3], paths[3], train_limit=2))


def test_two_training_sources_of_one_name_are_explained(tmp_path):
    paths = []
    for i, folder in enumerate(("one/x", "two/x", "test")):
        (tmp_path / folder).mkdir(parents=True)
        questions = make_questions(9, seed=i)
        paths.append(write_questions(tmp_path / folder / "train.jsonl.gz", questions))
    said = f"{paths[1]}: would be called 'x-train', but so would {paths[0]}; rename it"
    with pytest.raises(InputError, match=said):
        load_data(settings(paths[:2], paths[2]))
    with pytest.raises(InputError, match="give a source once"):
        load_data(settings([paths[0]] * 2, paths[2]))


# -- going on -------------------------------------------------------------------------------------


def test_a_reference_model_replaced_in_place_is_noticed(world, tmp_path, capsys):
    base, output = tmp_path / "base", tmp_path / "run"
    shutil.copytree(world["model"], base)
    arguments = restore_arguments(world, output, "--method", "daca", "--reference-model", str(base))
    assert run(arguments) == 0
    assert run(arguments) == 0
    train_further(base)
    capsys.readouterr()
    assert run(arguments) == 1
    assert "(the reference model's files have changed since)" in capsys.readouterr().err


def test_a_gpus_peak_memory_is_measured_anew_for_each_method(world, tmp_path, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        reset_peak_memory_stats=lambda: calls.append("reset"),
        max_memory_allocated=lambda: 2_000_000_000 - 1_000_000_000 * (len(calls) > 1),
    )
    from calibrant import restore

    asked = RestoreSettings("m", ("a",), ("b",), methods=("temperature",))
    work = restore._Work(asked, tmp_path, [], {}, print)
    monkeypatch.setattr(torch, "cuda", fake)
    for method in ("first", "second"):
        restore.forget_peak_memory()
        work._note_cost(method)
    assert [work.cost(m)["peak_memory_gb"] for m in ("first", "second")] == [2, 1]

    monkeypatch.setattr(work, "score_all", lambda *_: {})
    monkeypatch.setattr(work, "_finished", lambda method: None)
    monkeypatch.setattr(work, "_trained_model", lambda *_: (None, None))
    monkeypatch.setattr(work, "_write_restored", lambda method: None)
    work.fine_tune("cft")
    work.settings = RestoreSettings("m", ("a",), ("b",), methods=("cft",))
    work.before()
    assert len(calls) == 4


def test_interrupted_in_training_restore_says_how_to_go_on_and_does(world, tmp_path):
    output = tmp_path / "run"
    arguments = restore_arguments(world, output, "--method", "cft", "--epochs", "8")
    child = subprocess.Popen(
        [sys.executable, "-m", "calibrant", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What runs these tests in the background may have told its children to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 300
        while not list(output.glob("cft/checkpoints/checkpoint-*/trainer_state.json")):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130, error[-3000:]
    assert "Interrupted. To go on from what is finished, give the same command again:" in error
    assert f"calibrant restore {world['model']} --train" in error
    assert "Traceback" not in error
    assert not (output / "cft" / "adapter").exists()

    assert run(arguments) == 0
    cost = json.loads((output / "cft" / "cost.json").read_text())
    assert cost["training_steps"] == 8 * 15
    assert (output / "cft" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (output / "cft" / "checkpoints").exists()
    assert (output / "report.md").is_file()
