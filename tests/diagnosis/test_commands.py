"""`calibrant collapse` and `calibrant diagnose` as a user calls them."""

import json
import shutil

import numpy as np
import pytest
import yaml

from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.diagnosis.collapse import CollapseReport, collapse
from calibrant.diagnosis.regime import RegimeReport
from helpers import make_model, make_questions


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Answers of a base model and two sharper ones, and a base run folder."""
    folder = tmp_path_factory.mktemp("stages")
    rng = np.random.default_rng(0)
    z = 1.6 * rng.normal(size=(300, 4))
    q = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (rng.random((300, 1)) > q.cumsum(axis=1)[:, :-1]).sum(axis=1)
    base = AnswerTable.from_probs(q, labels)
    (folder / "base").mkdir()
    base.save(folder / "base" / "answers.parquet")
    base.with_logprobs(1.2 * z).save(folder / "sft.parquet")
    base.with_logprobs(3 * z + np.array([1, 0, 0, 0])).save(folder / "dpo.parquet")
    return folder


def test_collapse_compares_every_stage_with_the_base(stages, tmp_path, capsys):
    arguments = [
        "collapse", "--base", str(stages / "base"), "--aligned", str(stages / "sft.parquet"),
        "--aligned", str(stages / "dpo.parquet"), "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "effective slope" in shown
    content = json.loads((tmp_path / "run" / "collapse.json").read_text())
    assert content["base"] == "base"
    assert list(content["stages"]) == ["base", "sft", "dpo"]
    base = AnswerTable.load(stages / "base" / "answers.parquet")
    expected = collapse(base, AnswerTable.load(stages / "dpo.parquet"))
    assert CollapseReport.from_dict(content["stages"]["dpo"]).to_dict() == expected.to_dict()
    assert not content["stages"]["base"]["paired"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| 3.000 [3.000, 3.000] |" in text
    assert "collapse.png" in text
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.yaml", "report.html", "report.md", "collapse.json", "collapse.png", "collapse.svg",
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["command"] == "collapse"


def test_collapse_asks_models_and_goes_on_where_it_was(tmp_path, tokenizer, stages):
    for seed in (0, 1):
        make_model(seed=seed).save_pretrained(tmp_path / f"model{seed}")
        tokenizer.save_pretrained(tmp_path / f"model{seed}")
    lines = [
        json.dumps({"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer})
        for q in make_questions(30, seed=3)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    arguments = [
        "collapse", "--base", str(tmp_path / "model0"), "--aligned", str(tmp_path / "model1"),
        "--questions", str(tmp_path / "q.jsonl"), "--prompt", "cloze", "--device", "cpu",
        "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert run(arguments) == 0
    tables = [
        AnswerTable.load(tmp_path / "run" / "stages" / name / "answers.parquet")
        for name in ("model0", "model1")
    ]
    first = json.loads((tmp_path / "run" / "collapse.json").read_text())
    assert first["stages"]["model1"] == collapse(*tables).to_dict()
    for seed in (0, 1):  # what is there is not asked for again
        shutil.rmtree(tmp_path / f"model{seed}")
    assert run(arguments) == 0
    assert json.loads((tmp_path / "run" / "collapse.json").read_text()) == first
    assert run([*arguments, "--seed", "1"]) == 1


def test_collapse_tells_letters_from_options_by_cyclic_orders(tmp_path, tokenizer):
    """Asked so, and from runs that were asked so: the letter prior is that of the permutations."""
    from calibrant.permutations import flip_rate, letter_prior

    for seed in (0, 1):
        make_model(seed=seed).save_pretrained(tmp_path / f"model{seed}")
        tokenizer.save_pretrained(tmp_path / f"model{seed}")
    lines = [
        json.dumps({"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer})
        for q in make_questions(12, seed=3, k_min=3, k_max=3)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    models = ["--base", str(tmp_path / "model0"), "--aligned", str(tmp_path / "model1")]
    asking = [
        "--questions", str(tmp_path / "q.jsonl"), "--device", "cpu", "--permutations", "cyclic",
    ]  # fmt: skip
    assert run(["collapse", *models, *asking, "--output-dir", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "collapse.json").read_text())["stages"]
    stages = tmp_path / "run" / "stages"
    for name in ("model0", "model1"):
        rows = AnswerTable.load(stages / name / "permutations.parquet")
        assert len(rows) == 36
        report = CollapseReport.from_dict(found[name])
        assert report["flip_rate"].value == pytest.approx(flip_rate(rows))
        prior = [e.value for e in report.letter_prior[3]]
        assert prior == pytest.approx(letter_prior(rows)[3])
    runs = ["--base", str(stages / "model0"), "--aligned", str(stages / "model1")]
    assert run(["collapse", *runs, "--output-dir", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "collapse.json").read_text())["stages"] == found
    # Cloze formats list no options, so there are no letters to permute.
    assert run(["collapse", *models, *asking, "--prompt", "cloze",
                "--output-dir", str(tmp_path / "cloze")]) == 1  # fmt: skip


def test_collapse_says_what_it_needs(stages, capsys):
    base = str(stages / "base")
    assert run(["collapse", "--base", base, "--aligned", "some/model"]) == 2
    assert "some/model: holds no answers" in capsys.readouterr().err
    assert run(["collapse", "--base", base, "--aligned", base]) == 1
    assert "with different names" in capsys.readouterr().err


def test_figure_does_not_depend_on_the_size_of_the_scores(stages):
    from calibrant.report.collapse import plot_collapse, prepare_collapse
    from calibrant.report.figures import svg_text

    base = AnswerTable.load(stages / "base" / "answers.parquet")
    sure = base.with_logprobs(np.where(np.arange(4) == base.predictions[:, None], 0, -np.inf))
    report = collapse(base, sure, n_resamples=5)
    assert np.isnan(report["effective_slope"].value)
    panels = prepare_collapse(base, sure, report, name="sure")
    assert panels.mean_entropy == 0
    assert panels.entropy[0] == 1
    assert "svg" in svg_text(plot_collapse([panels]))


def test_diagnose_writes_its_verdict_and_evidence(stages, tmp_path, capsys):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 800)
    p = np.where(np.eye(2)[labels] > 0, 0.95, 0.05)
    learnt = AnswerTable.from_probs(p, labels, ids=[f"t{i}" for i in range(800)])
    guess = AnswerTable.from_probs(p, rng.integers(0, 2, 800))
    (tmp_path / "tuned" / "answers").mkdir(parents=True)
    learnt.save(tmp_path / "tuned" / "answers" / "train.parquet")
    guess.save(tmp_path / "tuned" / "answers" / "fresh.parquet")
    tuned = str(tmp_path / "tuned")
    arguments = [
        "diagnose", "--train", tuned, "--test", tuned, "--reference",
        str(tmp_path / "tuned" / "answers" / "fresh.parquet"), "--output-dir", str(tmp_path / "o"),
    ]  # fmt: skip
    assert run(arguments) == 0
    assert "non-calibratable" in capsys.readouterr().out
    found = RegimeReport.load(tmp_path / "o" / "regime.json")
    assert (found.label, found.method) == ("non-calibratable", "rcft")
    assert (found.n_train, found.n_test, found.n_reference) == (800, 800, 800)
    text = (tmp_path / "o" / "report.md").read_text()
    assert "train accuracy − test accuracy" in text
    assert "RCFT" in text


def test_diagnose_does_not_guess_which_table_is_meant(stages, tmp_path, capsys):
    (tmp_path / "answers").mkdir()
    for name in ("one", "two"):
        shutil.copy(stages / "sft.parquet", tmp_path / "answers" / f"{name}.parquet")
    one = str(stages / "sft.parquet")
    for arguments in (
        ["--train", str(tmp_path), "--test", one],
        ["--train", one, "--test", str(tmp_path)],
    ):
        assert run(["diagnose", *arguments]) == 1
        assert "holds 2 answer tables (one, two)" in capsys.readouterr().err
