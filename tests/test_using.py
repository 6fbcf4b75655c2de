"""Using a restored model: load, predict, export, a threshold for a wanted risk."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calibrant
from calibrant import metrics
from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.foreign import no_formula, read_table, without_guard
from calibrant.predictions import write_predictions
from calibrant.questions import Questions, load_questions
from calibrant.scoring.models import load_model
from helpers import make_questions


@pytest.fixture
def unlabelled(world, tmp_path):
    """The test questions without their answers: half of the rows lack it, half hold null."""
    questions = load_questions(world["test"])
    rows = []
    for i, q in enumerate(questions):
        row = {"id": q.id, "question": q.question, "choices": list(q.choices)}
        rows.append(row | ({"answer": None} if i % 2 else {}))
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table_of(restored, method):
    (path,) = (restored / method / "answers").glob("*test.parquet")
    return AnswerTable.load(path)


@pytest.mark.parametrize("method", ["temperature", "cft"])
def test_probabilities_without_answers_are_those_with_them(restored, unlabelled, method):
    questions = load_questions(unlabelled, labelled=False)
    assert {q.answer for q in questions} == {None}
    model = calibrant.load(restored / method)
    expected = table_of(restored, method)
    np.testing.assert_allclose(model.predict_proba(questions), expected.probs(), atol=1e-6)
    assert (model.predict(questions) == expected.predictions).all()


def test_an_answer_that_is_missing_is_refused_where_it_is_needed(restored, unlabelled):
    with pytest.raises(InputError, match=r"new.jsonl: line 1: answer: is missing"):
        load_questions(unlabelled)
    questions = load_questions(unlabelled, labelled=False)
    with pytest.raises(InputError, match="question 't0' has no answer; expected labelled"):
        calibrant.load(restored / "cft").answer(questions)


def test_an_answer_that_is_there_is_checked_even_where_none_is_needed(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("question,A,B,answer\nx,1,2,\ny,1,2,7\n")
    with pytest.raises(InputError, match=r"line 3: answer: 7 is out of range"):
        load_questions(path, labelled=False)
    path.write_text("text,label\nDull.,\nGood.,positive\n")
    loaded = load_questions(path, choices=["positive", "negative"], labelled=False)
    assert [q.answer for q in loaded] == [None, 0]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_predict_writes_every_kind_of_file(restored, unlabelled, tmp_path, kind, capsys):
    output = tmp_path / f"p.{kind}"
    arguments = ["predict", str(restored / "temperature"), "--questions", str(unlabelled)]
    assert run([*arguments, "--output", str(output)]) == 0
    assert "40 predictions" in capsys.readouterr().out
    expected = table_of(restored, "temperature")
    if kind == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [row["id"] for row in rows] == list(expected.ids)
        for row, probs, k in zip(rows, expected.probs(), expected.n_options, strict=True):
            assert set(row) == {"id", "prediction", "confidence", "probs"}
            np.testing.assert_allclose(row["probs"], probs[:k], atol=1e-6)
            assert row["confidence"] == max(row["probs"])
        return
    if kind == "csv":
        import pandas as pd

        columns = pd.read_csv(output)
    else:
        columns = pq.read_table(output).to_pandas()
    assert columns["prediction"].tolist() == expected.predictions.tolist()
    np.testing.assert_allclose(columns["confidence"], expected.confidence, atol=1e-6)
    found = columns[[f"p_{k}" for k in range(expected.probs().shape[1])]]
    beyond = np.arange(found.shape[1]) >= expected.n_options[:, None]
    assert (found.isna().to_numpy() == beyond).all()
    np.testing.assert_allclose(found.fillna(0).to_numpy(), expected.probs(), atol=1e-6)
    assert not list(tmp_path.glob("*.partial"))


def test_predictions_of_labelled_questions_can_be_evaluated(restored, world, tmp_path, capsys):
    output = tmp_path / "p.csv"
    command = ["predict", str(restored / "cft"), "--questions", world["test"]]
    assert run([*command, "--output", str(output)]) == 0
    table = read_table(output)
    expected = table_of(restored, "cft")
    assert table.ids == expected.ids
    assert (table.labels == expected.labels).all()
    np.testing.assert_allclose(table.probs(), expected.probs(), atol=1e-6)
    assert run(["evaluate", "--answers", str(output)]) == 0


def test_only_confidences_above_the_threshold_are_answered(tmp_path):
    questions = make_questions(3, k_min=2, k_max=2)
    probs = np.array([[0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
    write_predictions(tmp_path / "p.jsonl", questions, probs, threshold=0.7)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rows] == [False, True, False]
    assert [row["label"] for row in rows] == [q.answer for q in questions]


def test_ids_are_no_formulas_in_a_spreadsheet(tmp_path):
    ids = ["=1+1", "+a", "-a", "@SUM(A1)", "\uff1dA1", "\t=A1", "'=1+1", "-5", "q=1", "3", "'tis"]
    asked = [replace(q, id=i) for q, i in zip(make_questions(len(ids)), ids, strict=True)]
    probs = np.eye(max(len(q.choices) for q in asked))[[0] * len(ids)]
    for kind in ("csv", "jsonl", "parquet"):
        write_predictions(tmp_path / f"p.{kind}", asked, probs)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        found = [row["id"] for row in csv.DictReader(file)]
    assert found == [f"'{i}" for i in ids[:7]] + ids[7:]
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ids
    assert pq.read_table(tmp_path / "p.parquet")["id"].to_pylist() == ids
    for kind in ("csv", "parquet"):  # read back they are what they were
        assert list(read_table(tmp_path / f"p.{kind}").ids) == ids


@given(st.text("'=+-@0.5a \t\uff1d", max_size=6))
def test_the_guard_against_formulas_can_be_taken_off(text):
    assert without_guard(no_formula(text)) == text
    assert not no_formula(text).lstrip().startswith(("=", "@", "\uff1d"))


def test_predict_refuses_before_it_computes(restored, unlabelled, tmp_path, capsys):
    command = ["predict", str(restored / "cft"), "--questions", str(unlabelled), "--output"]
    for output, message in (
        (tmp_path / "p.txt", "unknown file type; expected one of .csv, .jsonl, .parquet"),
        (tmp_path / "none" / "p.csv", "is no folder that can be written to"),
    ):
        assert run([*command, str(output)]) == 1
        assert message in capsys.readouterr().err
    assert run([*command, str(tmp_path / "p.csv"), "--max-risk", ".001"]) == 1
    assert "no confidence threshold shows it on the run's 40 test questions" in (
        capsys.readouterr().err
    )
    assert {p.name for p in tmp_path.iterdir()} == {"new.jsonl"}


def test_predict_answers_what_the_runs_own_test_questions_allow(
    restored, unlabelled, tmp_path, capsys
):
    """The threshold is the one of the in-domain test set, not of training or other domains."""
    output = tmp_path / "p.jsonl"
    command = ["predict", str(restored / "cft"), "--questions", str(unlabelled)]
    assert run([*command, "--output", str(output), "--max-risk", ".9", "--level", ".8"]) == 0
    table = table_of(restored, "cft")
    found = metrics.threshold_at_risk(
        table.probs(), table.labels, n_options=table.n_options, risk=0.9, level=0.8
    )
    assert found.n == 40
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["answered"] for row in rows] == (table.confidence > found.threshold).tolist()
    assert "all: at most 0.9 wrong, 0.8 sure" in capsys.readouterr().err


def test_held_out_questions_are_independent(restored, tmp_path):
    """An exact duplicate among the test questions would count twice."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(restored, copy)
    (path,) = (copy / "cft" / "answers").glob("*test.parquet")
    table = AnswerTable.load(path)
    replace(table, groups=(table.groups[1], *table.groups[1:])).save(path)
    held_out = calibrant.load(copy / "cft").held_out()
    assert held_out.ids == (table.ids[0], *table.ids[2:])
    (copy / "report.json").unlink()
    with pytest.raises(InputError, match=r"report\.json: cannot be read as JSON"):
        calibrant.load(copy / "cft").held_out()


def run_of(folder, tables, **settings):
    """What `held_out` reads of a run: its report, and one method's folder with answers."""
    answers = folder / "cft" / "answers"
    answers.mkdir(parents=True)
    for name, table in tables.items():
        table.save(answers / f"{name}.parquet")
    report = {"settings": settings, "sets": dict.fromkeys(tables, "in")}
    (folder / "report.json").write_text(json.dumps(report))
    saved = {"method": "cft", "model": "m", "prompt": "letter", "dtype": "float32"}
    (folder / "cft" / "restored.json").write_text(json.dumps(saved | {"gguf_file": None}))
    return folder / "cft"


def test_held_out_questions_of_two_files_may_have_the_same_ids(tmp_path):
    """Without ids of their own, questions are called by their lines."""
    law, art = (
        replace(
            AnswerTable.from_probs([[0.7, 0.3], [0.4, 0.6]], [0, 1], ids=["1", "2"]),
            groups=(f"{name} 1", "in both"),
        )
        for name in ("law", "art")
    )
    folder = run_of(tmp_path, {"law": law, "art": art}, overlap="drop")
    assert calibrant.load(folder).held_out().ids == ("law:1", "law:2", "art:1")


def test_test_questions_that_were_learnt_from_promise_nothing(tmp_path, capsys):
    table = AnswerTable.from_probs([[0.9, 0.1]] * 300, [0] * 300)
    folder = run_of(tmp_path, {"test": table}, overlap="keep")
    command = ["predict", str(folder), "--questions", "new.jsonl", "--max-risk", ".2"]
    assert run([*command, "--output", str(tmp_path / "p.csv")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(overlap keep)" in line
    assert not (tmp_path / "p.csv").exists()


def test_an_exported_model_is_the_restored_one(restored, world, tmp_path, capsys):
    """Loaded by transformers alone, it answers as base model and adapter do together."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "exported"
    assert run(["export", str(restored / "cft"), str(folder)]) == 0
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith(".bin") or name.startswith("adapter")]
    AutoModelForCausalLM.from_pretrained(folder)
    model, tokenizer = load_model(str(folder), device="cpu")
    questions = load_questions(world["test"])
    answers = calibrant.score(model, tokenizer, questions, prompt="cloze")
    np.testing.assert_allclose(answers.probs(), table_of(restored, "cft").probs(), atol=1e-5)

    assert run(["export", str(restored / "cft"), str(folder)]) == 1
    assert "is there already; expected a new folder" in capsys.readouterr().err
    assert run(["export", str(restored / "temperature"), str(tmp_path / "t")]) == 1
    assert "temperature changed no weights" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"exported"}


def test_an_adapter_on_4_bits_is_not_merged_into_full_weights(tmp_path, capsys):
    run_folder = tmp_path / "cft"
    (run_folder / "adapter").mkdir(parents=True)
    settings = {
        "method": "cft", "model": "me/model", "prompt": "cloze", "dtype": "bfloat16",
        "gguf_file": None, "quantize": "nf4",
    }  # fmt: skip
    (run_folder / "restored.json").write_text(json.dumps(settings))
    assert run(["export", str(run_folder), str(tmp_path / "exported")]) == 1
    error = capsys.readouterr().err
    assert "was trained and measured on a base model of 4 bits (nf4)" in error
    assert "Expected a run without --quantize; or serve" in error
    assert not (tmp_path / "exported").exists()


def test_a_pickled_adapter_is_not_read(restored, world, tmp_path):
    import shutil

    copy = tmp_path / "cft"
    shutil.copytree(restored / "cft", copy)
    weights = copy / "adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors"):
        calibrant.load(copy).predict(Questions(load_questions(world["test"])[:2]))


# -- a threshold for a wanted risk ---------------------------------------------------------------

RISK, LEVEL = 0.1, 0.9


def _broken_promises(error_rate, n, runs, rng):
    """Share of held-out samples whose threshold breaks the promise, and mean coverage.

    The truth is known: confidences are uniform on [0, 1] and ``error_rate`` is a function of them.
    """
    grid = (np.arange(100_000) + 0.5) / 100_000
    above = np.cumsum(error_rate(grid)[::-1])[::-1] / np.arange(100_000, 0, -1)  # risk of c > grid
    broken, coverage = 0, 0.0
    for _ in range(runs):
        c = rng.random(n)
        correct = rng.random(n) >= error_rate(c)
        found = metrics.threshold_at_risk_from_confidence(c, correct, risk=RISK, level=LEVEL)
        coverage += found.coverage
        if found.threshold < 1:
            broken += above[max(0, int(max(found.threshold, 0) * 100_000))] > RISK
    return broken / runs, coverage / runs


@pytest.mark.parametrize(
    ("name", "error_rate"),
    [
        ("just too risky everywhere", lambda c: np.full_like(c, 0.102)),
        ("safe at the top", lambda c: np.where(c > 0.6, 0.02, 0.4)),
        ("falls with confidence", lambda c: 0.3 * (1 - c)),
        ("over-confident at the very top", lambda c: np.where(c > 0.9, 0.3, 0.04)),
    ],
)
@pytest.mark.parametrize("n", [200, 1500])
def test_the_promised_risk_holds_for_new_questions(name, error_rate, n):
    """In 400 simulated held-out samples it breaks at most 10 % of the time (+ 2 sd of 400)."""
    broken, coverage = _broken_promises(error_rate, n, 400, np.random.default_rng(0))
    assert broken <= (1 - LEVEL) + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 400)
    if n == 1500 and name == "safe at the top":
        assert 0.3 < coverage < 0.5, "the promise is kept, but by answering too little"


def test_a_naive_threshold_would_break_the_promise():
    """Why `coverage_at_risk` is not enough: taken at its word it fails half of the time."""
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        c = rng.random(500)
        correct = rng.random(500) >= 0.102
        broken += metrics.coverage_at_risk_from_confidence(c, correct, risk=RISK) > 0
    assert broken > 100


def test_threshold_by_hand():
    """59 right answers of 59 are the fewest that show 5 % at 95 % alone; 20 tries need 117."""
    confidence = np.linspace(0.5, 0.99, 117)
    found = metrics.threshold_at_risk_from_confidence(confidence, np.ones(117), risk=0.05)
    assert (found.threshold, found.coverage) == (-math.inf, 1.0)
    assert 0.95**117 < 0.05 / 20 < 0.95**116
    found = metrics.threshold_at_risk_from_confidence(confidence[1:], np.ones(116), risk=0.05)
    assert (found.threshold, found.n_answered) == (math.inf, 0)
    tied = np.repeat([0.9, 0.6], 200)
    found = metrics.threshold_at_risk_from_confidence(tied, tied > 0.7, risk=0.05)
    assert (found.threshold, found.n_answered, found.wrong) == (0.6, 200, 0)


@pytest.mark.parametrize(("risk", "level"), [(0, 0.9), (1, 0.9), (0.1, 1), (float("nan"), 0.9)])
def test_a_risk_or_level_that_cannot_be_is_refused(risk, level):
    with pytest.raises(InputError, match="expected a number in"):
        metrics.threshold_at_risk_from_confidence([0.9] * 9, [1] * 9, risk=risk, level=level)
