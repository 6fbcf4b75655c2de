"""The commands as a user calls them, on a tiny model: every step of the workflow is real."""

import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

import calibrant
from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.questions import drop_overlap
from calibrant.runs import answers_in_domain, set_domains, weights_of
from helpers import (
    make_questions,
    restore_arguments,
    restored_arguments,
    train_further,
    write_questions,
)


def names(folder):
    return {p.stem for p in (folder / "answers").glob("*.parquet")}


def test_restore_writes_a_whole_run_folder(restored):
    assert {p.name for p in restored.iterdir()} == {
        "config.yaml", "report.html", "report.json", "report.md", "reliability.svg",
        "reliability.png",
        "plane.svg", "plane.png", "before", "temperature", "cft", "rcft",
    }  # fmt: skip
    for method in ("temperature", "cft", "rcft"):
        assert len(names(restored / method)) == 3  # test, other, train
    assert (restored / "cft" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (restored / "cft" / "checkpoints").exists()
    assert not list(restored.rglob("*.bin")), "a pickle was left in the run folder"


def test_restore_leaves_a_page_with_its_questions_and_a_card_beside_every_result(restored):
    import huggingface_hub

    page = (restored / "report.html").read_text(encoding="utf-8")
    assert page.index("Verdict") < page.index("Methods side by side")
    assert '<ol class="mistakes">' in page
    assert page.count("Which of ") > 3  # how every question here begins
    for folder in ("cft/adapter", "rcft/adapter", "temperature"):
        assert (restored / folder / "reliability.png").is_file()
        card = huggingface_hub.ModelCard.load(restored / folder / "README.md")
        sets = {result.dataset_name for result in card.data.eval_results}
        assert len(sets) == 2
        assert card.data.license == "unknown"
        assert "calibration" in card.data.tags


def test_restore_reports_what_it_did(restored):
    report = json.loads((restored / "report.json").read_text())
    assert [n for n in report["notes"] if "5 questions also in a test set were left out" in n]
    assert report["costs"]["cft"]["labels"] == 60
    assert report["costs"]["temperature"]["labels"] == 60
    for method in ("before", "temperature", "cft", "rcft"):
        assert report["costs"][method]["peak_memory_gb"] > 0
        for name, domain in report["sets"].items():
            table = AnswerTable.load(restored / method / "answers" / f"{name}.parquet")
            value = report["reports"][method][name]["metrics"]["accuracy"]["value"]
            assert value == pytest.approx(table.correct.mean()), (method, name)
            assert (name in report["verdicts"].get(method, {})) == (
                method != "before" and domain != "train"
            )
    text = (restored / "report.md").read_text()
    assert "in domain" in text
    assert "out of domain" in text


def test_training_changed_the_answers_and_temperature_kept_the_predictions(restored):
    name = next(n for n in names(restored / "before") if n.endswith("test"))
    tables = {
        m: AnswerTable.load(restored / m / "answers" / f"{name}.parquet")
        for m in ("before", "temperature", "cft", "rcft")
    }
    assert (tables["temperature"].predictions == tables["before"].predictions).all()
    labelled = np.arange(len(tables["before"]))
    nll = {m: -np.log(t.probs()[labelled, t.labels]).mean() for m, t in tables.items()}
    assert nll["temperature"] < nll["before"]
    assert nll["cft"] < nll["before"]
    assert nll["rcft"] != nll["cft"]


def test_an_interrupted_restore_goes_on_and_ends_the_same(world, restored, tmp_path):
    """Nothing is done twice, a checkpoint half written is none, and the tables are the same."""
    import shutil

    again = tmp_path / "again"
    shutil.copytree(restored, again)
    shutil.rmtree(again / "rcft")
    broken = again / "rcft" / "checkpoints" / "checkpoint-7"
    broken.mkdir(parents=True)
    (broken / "adapter_model.safetensors").write_bytes(b"half")
    (again / "cft" / "answers").rename(again / "cft" / "hidden")
    kept = (again / "before" / "answers").stat().st_mtime_ns
    assert run(restored_arguments(world, again)) == 0
    assert (again / "before" / "answers").stat().st_mtime_ns == kept
    for method in ("cft", "rcft"):
        for name in names(restored / method):
            first = AnswerTable.load(restored / method / "answers" / f"{name}.parquet")
            second = AnswerTable.load(again / method / "answers" / f"{name}.parquet")
            np.testing.assert_allclose(second.probs(), first.probs(), atol=1e-6)


def test_a_folder_of_another_run_is_not_overwritten(world, restored, capsys):
    assert run(restored_arguments(world, restored, "--seed", "7")) == 1
    error = capsys.readouterr().err
    assert "holds a run with another configuration (seed was 0, now 7)" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("method", ["temperature", "cft"])
def test_load_predicts_as_the_run_did(restored, world, method):
    questions = calibrant.load_questions(world["test"])
    name = next(n for n in names(restored / method) if n.endswith("test"))
    expected = AnswerTable.load(restored / method / "answers" / f"{name}.parquet").probs()
    again = calibrant.load(restored / method)
    np.testing.assert_allclose(again.predict_proba(questions), expected, atol=1e-6)


def test_load_refuses_a_run_of_several_methods(restored):
    with pytest.raises(InputError, match="holds 3 restored models"):
        calibrant.load(restored)


POST_HOC = ("isotonic", "vector", "daca")


def test_post_hoc_methods_are_fitted_and_load_again(world, tmp_path, capsys):
    output = tmp_path / "post-hoc"
    asked = [word for method in POST_HOC for word in ("--method", method)]
    # The model stands in for the one before alignment: its temperature is then exactly 1.
    assert run(restore_arguments(world, output, *asked, "--reference-model", world["model"])) == 0
    report = json.loads((output / "report.json").read_text())
    notes = [n for n in report["notes"] if "not applicable" in n]
    assert len(notes) == 1, notes
    assert notes[0].startswith("vector: not applicable: vector: question ")
    assert not (output / "vector").exists()
    questions = calibrant.load_questions(world["test"])
    name = next(n for n in names(output / "before") if n.endswith("test"))
    before = AnswerTable.load(output / "before" / "answers" / f"{name}.parquet")
    for method in set(POST_HOC) - {"vector"}:
        expected = AnswerTable.load(output / method / "answers" / f"{name}.parquet")
        assert (expected.predictions == before.predictions).all()
        predicted = calibrant.load(output / method).predict_proba(questions)
        np.testing.assert_allclose(predicted, expected.probs(), atol=1e-6)
        assert report["costs"][method]["labels"] == (0 if method == "daca" else 60)
        if method == "daca":
            np.testing.assert_allclose(predicted, before.probs(), atol=1e-6)
    assert report["costs"]["reference model"]["scored_questions"] == 60
    page = (output / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="collapse"' in page, "what alignment did"
    slope = page[page.index("effective slope s") :][:400]
    assert "1.000 [1.000, 1.000]" in slope


def test_the_letter_prior_is_divided_out_without_labels(world, tmp_path):
    output = tmp_path / "pride"
    arguments = restore_arguments(world, output, "--method", "pride")
    arguments[arguments.index("--prompt") + 1] = "letter"
    assert run(arguments) == 0
    fitted = json.loads((output / "pride/calibrator.json").read_text())
    assert fitted["n_questions"] == 60, "all of so few"
    asked = AnswerTable.load(output / "pride/reordered.parquet")
    train, tests = (calibrant.load_questions(world[name]) for name in ("train", "test"))
    assert len(asked) == sum(len(q.choices) for q in drop_overlap(train, tests)[0])
    name = next(n for n in names(output / "before") if n.endswith("test"))
    before = AnswerTable.load(output / "before" / "answers" / f"{name}.parquet")
    after = AnswerTable.load(output / "pride" / "answers" / f"{name}.parquet")
    for p, found, k in zip(before.probs(), after.probs(), before.n_options, strict=True):
        divided = p[:k] / fitted["prior"][str(k)]
        np.testing.assert_allclose(found[:k], divided / divided.sum(), atol=1e-6)
    assert abs(after.probs() - before.probs()).max() > 0.01
    predicted = calibrant.load(output / "pride").predict_proba(tests)
    np.testing.assert_allclose(predicted, after.probs(), atol=1e-6)
    report = json.loads((output / "report.json").read_text())
    assert report["costs"]["pride"]["labels"] == 0
    assert report["costs"]["pride"]["scored_questions"] == len(asked)
    assert not (output / "before/training-questions.parquet").exists(), "no label is needed"


@pytest.mark.parametrize("method", ["auto", "pride"])
def test_a_test_set_may_have_more_numbers_of_options_than_the_training_questions(
    world, tmp_path, method
):
    four = make_questions(60, seed=4, k_min=4, k_max=4, prefix="four")
    world = world | {"train": write_questions(tmp_path / "four.jsonl.gz", four)}
    output = tmp_path / "run"
    arguments = restore_arguments(world, output, "--method", method, "--prompt", "letter")
    assert run([*arguments, *(["--fine-tune", "never"] if method == "auto" else [])]) == 0
    if method == "pride":
        fitted = json.loads((output / "pride/calibrator.json").read_text())
        assert set(fitted["prior"]) == set("2345")
        return
    skipped = json.loads((output / "choice.json").read_text())["skipped"]
    vector = next(line for line in skipped if line.startswith("vector"))
    assert "expected 4 for every question" in vector


def test_a_comparison_without_a_reference_is_refused_before_anything_is_done(
    world, tmp_path, capsys
):
    output = tmp_path / "daca"
    assert run(restore_arguments(world, output, "--method", "daca")) == 1
    assert "expected a --reference-model" in capsys.readouterr().err
    assert not output.exists()


def test_all_is_every_method_that_applies():
    from calibrant.posthoc import LABELLED, REFERENCED
    from calibrant.restore import RestoreSettings
    from calibrant.training import METHODS

    def methods(**more):
        return RestoreSettings("m", ("a",), ("b",), **more).methods

    assert methods() == ("auto",)
    assert methods(methods=("all",)) == (*LABELLED, "pride", *METHODS)
    assert methods(methods=("all",), prompt="cloze") == (*LABELLED, *METHODS)
    assert set(methods(methods=("all",), reference_model="base")) >= set(REFERENCED)
    assert methods(methods=("all",), prompt="cloze-pmi") == tuple(LABELLED)
    with pytest.raises(InputError, match="auto chooses one method"):
        methods(methods=("auto", "cft"))
    with pytest.raises(InputError, match="fine_tune 'maybe'"):
        methods(fine_tune="maybe")
    with pytest.raises(InputError, match="expected another format to train with"):
        methods(fine_tune="always", prompt="cloze-pmi")


def test_auto_chooses_on_training_questions_alone_and_its_choice_loads(world, tmp_path, capsys):
    output = tmp_path / "auto"
    arguments = restore_arguments(world, output, "--fine-tune", "always")
    assert run(arguments) == 0
    choice = json.loads((output / "choice.json").read_text())
    assert choice["n_held_out"] == 15
    # Right answers score no higher than wrong ones here: no temperature, so cft without one.
    assert set(choice["verdicts"]) == {"none", "isotonic", "cft"}
    assert choice["explanation"] in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert set(report["reports"]) == {"before", choice["method"]} - {"none"}

    # Other answers to the test questions: the same numbers, to the last digit.
    questions = list(calibrant.load_questions(world["test"]))
    changed = [replace(q, answer=(q.answer + 1) % len(q.choices)) for q in questions]
    other = world | {"test": write_questions(tmp_path / "test.jsonl.gz", changed)}
    assert run(restore_arguments(other, tmp_path / "again", "--fine-tune", "never")) == 0
    again = json.loads((tmp_path / "again" / "choice.json").read_text())
    for name in ("none", "isotonic"):
        assert again["verdicts"][name] == choice["verdicts"][name]

    # Gone on with after the choice of the fine-tuned model: it is not trained a second time.
    trained = output / "selection" / "cft" / "adapter" / "adapter_model.safetensors"
    weights = trained.read_bytes()
    (output / "choice.json").write_text(json.dumps(choice | {"method": "cft"}))
    assert run(arguments) == 0
    assert (output / "cft" / "adapter" / trained.name).read_bytes() == weights
    report = json.loads((output / "report.json").read_text())
    assert list(report["reports"]) == ["before", "cft"]
    assert report["costs"]["cft"]["labels"] == 45
    name = next(n for n in names(output / "cft") if n.endswith("test"))
    table = AnswerTable.load(output / "cft" / "answers" / f"{name}.parquet")
    predicted = calibrant.load(output).predict_proba(questions)
    np.testing.assert_allclose(predicted, table.probs(), atol=1e-6)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The run folder of a full fine-tuning, moved since it was made."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = restore_arguments(world, folder / "made", "--method", "cft", "--lora-rank", "0")
    assert run(arguments) == 0
    return (folder / "made").rename(folder / "run")


def test_full_fine_tuning_saves_a_whole_model_and_a_moved_run_still_loads(world, whole):
    assert (whole / "cft" / "model" / "config.json").is_file()
    (path,) = (whole / "cft" / "answers").glob("*test.parquet")
    expected = AnswerTable.load(path).probs()
    questions = calibrant.load_questions(world["test"])
    np.testing.assert_allclose(calibrant.load(whole).predict_proba(questions), expected, atol=1e-6)


def test_a_whole_model_comes_back_as_it_was_trained_and_without_its_base(
    world, whole, tmp_path, monkeypatch
):
    """The dtype is asked for, not left to the device: "auto" would be bfloat16 on a GPU."""
    import shutil

    from calibrant.scoring import models

    output = tmp_path / "run"
    shutil.copytree(whole, output)
    arguments = restore_arguments(world, output, "--method", "cft", "--lora-rank", "0")
    (path,) = (output / "cft" / "answers").glob("*test.parquet")
    expected = AnswerTable.load(path)
    path.unlink()
    loads = []

    def load_model(model, **how):
        loads.append((model, how["dtype"]))
        return original(model, **how)

    original = models.load_model
    monkeypatch.setattr(models, "load_model", load_model)
    assert run(arguments) == 0
    assert loads == [(str(output / "cft" / "model"), "float32")]
    np.testing.assert_allclose(AnswerTable.load(path).probs(), expected.probs(), atol=1e-6)


def test_compare_prints_the_paired_change(restored, capsys):
    assert run(["compare", str(restored / "before"), str(restored / "cft")]) == 0
    text = capsys.readouterr().out
    assert "N = 40" in " ".join(text.split())
    assert "conf-ECE" in text


def test_compare_of_a_restoration_compares_all_its_methods(restored, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["compare", str(restored), "--output-dir", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    for word in ("before", "temperature", "cft", "rcft", "AURC", "peak GB", "in domain"):
        assert word in text, word
    content = json.loads((tmp_path / "c" / "report.json").read_text())
    assert {row["baseline"] for row in content} == {"before"}
    assert list(dict.fromkeys(row["run"] for row in content)) == ["temperature", "cft", "rcft"]
    assert not [row["set"] for row in content if row["set"].endswith("train")]
    assert {"p_values", "marks", "label", "difference"} <= set(content[0])
    assert (tmp_path / "c" / "changes.png").stat().st_size > 10_000
    assert run(["compare", str(restored), "--baseline", "tempreature"]) == 1
    assert "expected one of before, temperature, cft, rcft" in capsys.readouterr().err


def test_a_set_called_train_can_be_compared_and_a_folder_has_a_name(tmp_path, capsys, monkeypatch):
    for name in ("train", "b"):
        (tmp_path / f"{name}.csv").write_text("label,p_0,p_1\n" + "0,.5,.5\n1,.3,.7\n" * 9)
    assert run(["compare", str(tmp_path / "train.csv"), str(tmp_path / "b.csv")]) == 0
    run(["evaluate", "--answers", str(tmp_path / "b.csv"), "--output-dir", str(tmp_path / "here")])
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    assert run(["compare", ".", str(tmp_path / "train.csv")]) == 0
    assert "here →" in capsys.readouterr().out


def test_of_a_restored_model_its_own_domain_is_meant(restored, capsys):
    method = str(restored / "cft")
    assert run(["diagnose", "--train", method, "--test", method]) == 0
    assert "accuracy on test" in capsys.readouterr().out
    (name,) = (n for n, domain in set_domains(method).items() if domain == "in")
    table = AnswerTable.load(restored / "cft" / "answers" / f"{name}.parquet")
    assert answers_in_domain(method).ids == table.ids
    assert run(["evaluate", "--answers", method]) == 1
    assert f"give its file, as {method}/answers/" in capsys.readouterr().err


def test_compare_of_a_single_run_asks_for_a_second(restored, capsys):
    assert run(["compare", str(restored / "cft")]) == 1
    assert "expected a second one" in capsys.readouterr().err


def test_evaluate_a_model_then_its_answers(world, tmp_path, capsys):
    output = tmp_path / "evaluate"
    arguments = [
        "evaluate", world["model"], "--questions", world["test"], "--output-dir", str(output),
        "--device", "cpu", "--limit", "25",
    ]  # fmt: skip
    assert run(arguments) == 0
    first = capsys.readouterr().out
    assert "N = 25" in first
    assert {p.name for p in output.iterdir()} == {
        "config.yaml", "answers.parquet", "report.html", "report.json", "report.md",
        "reliability.svg", "reliability.png",
    }  # fmt: skip
    assert len(AnswerTable.load(output / "answers.parquet")) == 25
    assert run(["evaluate", "--answers", str(output)]) == 0
    assert "N = 25" in " ".join(capsys.readouterr().out.split())
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["settings"]["limit"] == 25
    assert config["data"]["fingerprint"]
    assert run(arguments) == 0
    assert f"{output} has these answers already: nothing is asked anew" in capsys.readouterr().err


def test_a_model_trained_further_in_its_place_is_not_taken_for_the_old_one(world, tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "run"
    shutil.copytree(world["model"], model)
    arguments = ["evaluate", str(model), "--questions", world["test"], "--output-dir", str(output),
                 "--device", "cpu", "--limit", "5"]  # fmt: skip
    assert run(arguments) == 0
    first = AnswerTable.load(output / "answers.parquet")
    (model / "README.md").write_text("a card changes nothing")
    (model / "model.safetensors").touch()  # nor does a copy's date
    assert run(arguments) == 0
    train_further(model)
    capsys.readouterr()
    assert run(arguments) == 1
    assert "the model's files have changed since" in capsys.readouterr().err
    assert AnswerTable.load(output / "answers.parquet").ids == first.ids
    config = output / "config.yaml"  # a run from before weights were noted is gone on with
    kept = yaml.safe_load(config.read_text())
    assert kept.pop("weights")
    config.write_text(yaml.safe_dump(kept))
    assert run(arguments) == 0


def test_an_adapter_on_another_base_model_is_another_model(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(bytes(300_000))
    config = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    first = weights_of(str(tmp_path / "adapter"))
    assert first == weights_of(str(tmp_path / "adapter"))
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\1" + bytes(299_999))
    assert first != weights_of(str(tmp_path / "adapter"))
    assert weights_of("owner/name") == {}
    (tmp_path / "base" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "adapter")})
    )
    assert weights_of(str(tmp_path / "adapter"))  # each is the other's base: it ends


def test_a_name_too_long_or_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    table = tmp_path / "t.csv"
    table.write_text("label,p_0,p_1\n0,.5,.5\n1,.3,.7\n")
    for command in (
        ["compare", "x" * 300, str(table)],
        ["evaluate", "m", "--questions", "x" * 300 + ".jsonl"],
        ["predict", "x" * 300, "--questions", "q.jsonl", "--output", "o.csv"],
    ):
        assert run(command) == 1
        assert ": File name too long" in capsys.readouterr().err

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "answers.parquet")

    monkeypatch.setattr(AnswerTable, "save", full)
    assert run(["evaluate", "--answers", str(table), "--output-dir", str(tmp_path / "r")]) == 1
    assert capsys.readouterr().err.endswith("Error: answers.parquet: No space left on device\n")


def test_no_message_steers_the_terminal(tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("\x1b[2J\u202elabel,p_0,p_1\n0,.5,.5\n")
    assert run(["evaluate", "--answers", str(table)]) == 1
    error = capsys.readouterr().err
    assert "\\x1b[2J\\u202elabel" in error
    assert run(["evaluate", "--answers", "t", "--seed", "\x1b]0;x\x07"]) == 2
    error += capsys.readouterr().err
    assert "\x1b" not in error
    assert "\u202e" not in error


def test_answers_need_no_other_processes(tmp_path, capsys, monkeypatch):
    table = tmp_path / "t.csv"
    table.write_text("label,p_0,p_1\n" + "0,.5,.5\n1,.3,.7\n" * 5)
    for name in ("MASTER_ADDR", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["evaluate", "--answers", str(table)]) == 0
    (tmp_path / "q.jsonl").write_text('{"question": "1 + 1", "choices": ["1", "2"], "answer": 1}\n')
    asking = ["evaluate", "m", "--questions", str(tmp_path / "q.jsonl")]
    capsys.readouterr()
    assert run(asking) == 1
    assert "WORLD_SIZE=2 in the environment, and" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert run(asking) == 1
    assert "WORLD_SIZE=two in the environment, expected a number" in capsys.readouterr().err


def test_page_and_text_show_the_same_table_of_subjects(tmp_path):
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1], 120)
    labels = rng.integers(2, size=120)
    table = AnswerTable.from_probs(p, labels, tasks=["law", "art", "physics"] * 40)
    table.save(tmp_path / "t.parquet")
    folder = tmp_path / "run"
    asked = ["--answers", str(tmp_path / "t.parquet"), "--output-dir", str(folder), "--seed", "3"]
    assert run(["evaluate", *asked]) == 0
    row = next(x for x in (folder / "report.md").read_text().splitlines() if x.startswith("| law"))
    page = (folder / "report.html").read_text()
    page = page[page.index("<h2>Subjects") :] if "<h2>Subjects" in page else page
    law = re.search(r"law</t[dh]>(.*?)</tr>", page, re.DOTALL)[1]
    assert re.findall(r">([\d.]+)<", law) == [c.strip() for c in row.split("|")[2:-1]]


def test_a_config_file_gives_defaults_and_flags_win(world, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(f"questions: {world['test']}\nlimit: 10\ndevice: cpu\n")
    base = ["evaluate", world["model"], "--config", str(config), "--output-dir"]
    assert run([*base, str(tmp_path / "a")]) == 0
    assert "N = 10" in " ".join(capsys.readouterr().out.split())
    assert run([*base, str(tmp_path / "b"), "--limit", "5"]) == 0
    assert "N = 5" in " ".join(capsys.readouterr().out.split())
    config.write_text("qestions: x\n")
    assert run([*base, str(tmp_path / "c")]) == 2
    assert "unknown key 'qestions'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate"], 2, "expected MODEL with --questions, or --answers alone"),
        (["evaluate", "m", "n", "--questions", "q"], 2, "expected MODEL with --questions"),
        (["evaluate", "--answers", "missing.jsonl"], 1, "no such file or folder"),
        (["evaluate", "nowhere", "--questions", "missing.jsonl"], 1, "missing.jsonl"),
        (["evaluate", "--answers", "missing.parquet"], 1, "no such file or folder"),
        (["evaluate", "m", "--questions", "q", "--timeout", "9"], 2, "--timeout needs --server"),
        (
            ["evaluate", "m", "--questions", "q", "--server", "http://a/v1", "--dtype", "float32"],
            2,
            "--dtype is for a model loaded here",
        ),
        (["restore", "m"], 2, "--train"),
        (["restore", "m", "--train", "a", "--eval", "b", "--method", "magic"], 2, "magic"),
        (["evaluate", "--answers", "a", "--show-prompts", "1"], 2, "goes with MODEL"),
        (["conjure"], 2, "No such command"),
        (["compare"], 2, "RUNS"),
    ],
)
def test_wrong_use_gives_one_message_and_its_code(
    arguments, code, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "wrong use left something behind"


def test_show_prompts_needs_no_weights_and_leaves_nothing(world, tmp_path, capsys, monkeypatch):
    from pathlib import Path
    from shutil import copytree, ignore_patterns

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weightless"
    copytree(world["model"], folder, ignore=ignore_patterns("*.safetensors", "config.json"))
    arguments = ["evaluate", str(folder), "--questions", world["test"], "--show-prompts", "2"]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert text.count("--- question t") == 2
    assert "\nOptions:\nA. " in text
    assert "⟦A⟧" in text
    assert run([*arguments, "--letter-style", "(1)", "--separator", r"\n(", "--shots", "1",
                "--few-shot", world["train"], "--letter-tokens", "single"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "letter, 1 shot" in text
    assert "\nAnswer:\n(\n  1: ⟦1⟧" in text
    assert [p.name for p in Path().iterdir()] == ["weightless"]


def test_a_run_that_fails_before_anything_is_finished_leaves_nothing(world, tmp_path, capsys):
    asked = ["--questions", world["test"], "--device", "cpu", "--output-dir", str(tmp_path / "a")]
    assert run(["evaluate", str(tmp_path / "mistyped"), *asked]) == 1
    assert "mistyped': there is no such file or folder; expected" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_run_that_has_something_to_go_on_with_keeps_it(world, tmp_path):
    from calibrant.runs import nothing_left_of_a_failure, open_run
    from calibrant.scoring.journal import Journal

    folder = open_run(tmp_path / "a", {"n": 1})
    journal = Journal(folder / "answers.partial")
    journal.begin({})
    with journal.writing() as write:
        write(0, [0.5])
    with pytest.raises(InputError), nothing_left_of_a_failure(folder):
        raise InputError("the rest failed")
    assert Journal(folder / "answers.partial").begin({}) == {0: [0.5]}


def test_a_prompt_of_many_settings_is_kept_and_repeated(world, tmp_path, capsys):
    output = tmp_path / "a"
    base = ["evaluate", world["model"], "--questions", world["test"], "--device", "cpu"]
    asked = [
        "--letter-style", "(A)", "--letter-tokens", "single", "--few-shot", world["train"],
        "--shots", "1", "--limit", "8",
    ]  # fmt: skip
    assert run([*base, *asked, "--output-dir", str(output)]) == 0
    table = AnswerTable.load(output / "answers.parquet")
    settings = table.provenance["prompt_settings"]
    assert (settings["letter_style"], settings["separator"]) == ("(A)", " (")
    kept = yaml.safe_load((output / "config.yaml").read_text())["settings"]["prompt"]
    assert kept["letter_tokens"] == "single"
    assert len(kept["examples"]) == 2, "the one that is shown, and one to stand in"
    again = ["evaluate", world["model"], "--config", str(output / "config.yaml")]
    assert run([*again, "--device", "cpu", "--output-dir", str(tmp_path / "b")]) == 0
    repeated = AnswerTable.load(tmp_path / "b" / "answers.parquet")
    assert (repeated.logprobs == table.logprobs).all()
    capsys.readouterr()


def test_permutations_are_averaged_and_kept(world, tmp_path, capsys):
    from calibrant.permutations import average

    base = [
        "evaluate", world["model"], "--questions", world["other"], "--device", "cpu", "--limit",
        "12", "--output-dir",
    ]  # fmt: skip
    assert run([*base, str(tmp_path / "a"), "--permutations", "cyclic"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "N = 12" in " ".join(text.split())
    assert "changes with the order for" in text
    assert "How likely each letter is whatever the option: A" in text
    raw = AnswerTable.load(tmp_path / "a" / "permutations.parquet")
    table = AnswerTable.load(tmp_path / "a" / "answers.parquet")
    assert len(raw) == raw.n_options[np.unique(raw.questions, return_index=True)[1]].sum()
    np.testing.assert_array_equal(average(raw).logprobs, table.logprobs)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["provenance"]["permutations"]["flip_rate"] >= 0
    assert run([*base, str(tmp_path / "b"), "--permutations", "2"]) == 0
    assert len(AnswerTable.load(tmp_path / "b" / "permutations.parquet")) == 24
    assert run([*base, str(tmp_path / "c"), "--permutations", "all"]) == 1
    assert "expected at most 5 options" in capsys.readouterr().err
    assert run(["evaluate", "--answers", str(tmp_path / "a" / "permutations.parquet")]) == 1
    assert "calibrant.permutations.average" in capsys.readouterr().err


def test_debiasing_asks_a_share_in_cyclic_orders(world, tmp_path, capsys):
    output = tmp_path / "a"
    arguments = [
        "evaluate", world["model"], "--questions", world["test"], "--device", "cpu",
        "--output-dir", str(output), "--debias",
    ]  # fmt: skip
    assert run([*arguments, "0.1"]) == 0
    assert "Divided out of the answers" in " ".join(capsys.readouterr().out.split())
    raw = AnswerTable.load(output / "permutations.parquet")
    table = AnswerTable.load(output / "answers.parquet")
    assert len(table) == 40
    assert table.orders is None
    assert 10 < len(set(raw.questions)) <= 40
    prior = table.provenance["letter_prior"]
    assert all(sum(p) == pytest.approx(1) for p in prior.values())
    assert run([*arguments, "0.1", "--permutations", "2"]) == 2
    assert run([*arguments, "0"]) == 2
    assert run([*arguments[:-1], "--permutations", "cycle"]) == 2


def test_labelled_texts_are_evaluated_and_restored(world, tmp_path, capsys):
    films = tmp_path / "films.csv"
    lines = [f"{'red stone' if i % 2 else 'old river'} {i},{'AB'[i % 2]}" for i in range(24)]
    words = {"A": "red", "B": "blue cat"}
    lines = [f"{line[:-1]}{words[line[-1]]}" for line in lines]
    films.write_text("\n".join(["text,label", *lines]) + "\n")
    labels = ["--choices", "red, blue cat", "--prompt", "labels", "--device", "cpu"]
    output = str(tmp_path / "a")
    assert run(
        ["evaluate", world["model"], "--questions", str(films), *labels, "--output-dir", output]
    ) == 0  # fmt: skip
    table = AnswerTable.load(tmp_path / "a" / "answers.parquet")
    assert np.isfinite(table.option_mass).all()
    test = tmp_path / "test.csv"
    test.write_text("text,label\nnew stone,red\nold dog,blue cat\nseven cats,red\n")
    arguments = [
        "restore", world["model"], "--train", str(films), "--eval", str(test), *labels,
        "--method", "cft", "--lora-rank", "4", "--output-dir", str(tmp_path / "r"),
    ]  # fmt: skip
    assert run(arguments) == 0
    questions = calibrant.load_questions(test, choices=["red", "blue cat"])
    restored = calibrant.load(tmp_path / "r")
    assert restored.settings["prompt"]["format"] == "labels"
    expected = next((tmp_path / "r" / "cft" / "answers").glob("*test.parquet"))
    np.testing.assert_allclose(
        restored.predict_proba(questions), AnswerTable.load(expected).probs(), atol=1e-6
    )
    again = tmp_path / "r" / "config.yaml"
    repeated = ["restore", world["model"], "--config", str(again), "--method", "temperature"]
    assert run([*repeated, "--device", "cpu", "--output-dir", str(tmp_path / "r2")]) == 0
    capsys.readouterr()


def test_pmi_is_not_trained_with(world, tmp_path, capsys):
    arguments = restore_arguments(world, tmp_path / "r", "--method", "cft", "--prompt", "cloze-pmi")
    assert run(arguments) == 1
    assert "expected another format to train with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_load_is_one_message(world, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [
        "evaluate",
        str(empty),
        "--questions",
        world["test"],
        "--output-dir",
        str(tmp_path / "o"),
    ]
    assert run(arguments) == 1
    assert "cannot be loaded" in capsys.readouterr().err


def test_import_and_help_load_no_heavy_library():
    code = (
        "import sys, calibrant, calibrant.cli; calibrant.cli.run(['--help']);"
        "bad = {'torch', 'transformers', 'matplotlib', 'scipy', 'pyarrow'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_adapter_is_restored_from_its_own_answers_on(world, restored, tmp_path):
    """Training on top of an adapter starts from the adapted model, and comes back as trained."""
    adapter = str(restored / "cft" / "adapter")
    arguments = restore_arguments(world, tmp_path / "r", "--method", "cft")
    arguments[1] = adapter
    arguments[arguments.index("0.01")] = "1e-9"
    assert run(arguments) == 0
    name = next(n for n in names(tmp_path / "r" / "cft") if n.endswith("test"))
    tables = [
        AnswerTable.load(folder / "answers" / f"{name}.parquet").probs()
        for folder in (restored / "cft", tmp_path / "r" / "before", tmp_path / "r" / "cft")
    ]
    np.testing.assert_allclose(tables[1], tables[0], atol=1e-5)
    np.testing.assert_allclose(tables[2], tables[0], atol=1e-4)
    questions = calibrant.load_questions(world["test"])
    again = calibrant.load(tmp_path / "r").predict_proba(questions)
    np.testing.assert_allclose(again, tables[2], atol=1e-5)


def test_training_data_are_pooled_and_held_apart(world, tmp_path, monkeypatch):
    from calibrant.restore import RestoreSettings, load_data

    def settings(**changes):
        base = {"model": "m", "train": (world["train"],), "evaluate": (world["test"],)}
        return RestoreSettings(**base | changes)

    train, tests, domains, notes = load_data(settings(out_of_domain=(world["other"],)))
    assert len(train) == 60
    assert sorted(domains.values()) == ["in", "out"]
    assert any("5 questions also in a test set were left out" in n for n in notes)
    assert not {q.question for q in train} & {q.question for t in tests.values() for q in t}

    kept, _, _, notes = load_data(settings(overlap="keep"))
    assert len(kept) == 65
    assert any("were kept" in n for n in notes)
    with pytest.raises(InputError, match="5 training questions also occur in a test set"):
        load_data(settings(overlap="error"))

    second = write_questions(tmp_path / "more.jsonl.gz", make_questions(30, seed=8))
    both, _, _, _ = load_data(settings(train=(world["train"], second), train_limit=41))
    assert len(both) == 41  # 21 and 20; both sources number their questions q0, q1, …
    assert len({q.id.rsplit(":", 1)[0] for q in both}) == 2

    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path / "train.jsonl.gz", make_questions(3))
    with pytest.raises(InputError, match="would be called 'train', but it is reserved"):
        load_data(settings(evaluate=("train.jsonl.gz",)))


def test_answers_and_comparisons_can_be_kept(restored, tmp_path, capsys):
    name = next(n for n in names(restored / "before") if n.endswith("test"))
    answers = str(restored / "before" / "answers" / f"{name}.parquet")
    assert run(["evaluate", "--answers", answers, "--output-dir", str(tmp_path / "e")]) == 0
    assert {"answers.parquet", "report.json", "report.md"} <= {
        p.name for p in (tmp_path / "e").iterdir()
    }
    pair = [str(restored / "before"), str(restored / "cft")]
    assert run(["compare", *pair, "--output-dir", str(tmp_path / "c")]) == 0
    results = json.loads((tmp_path / "c" / "report.json").read_text())
    assert [r["set"].endswith("train") for r in results] == [False, False]
    assert run(["evaluate", "--answers", answers, "--limit", "3"]) == 2
    assert "--limit goes with MODEL" in capsys.readouterr().err


def test_a_runs_own_config_repeats_it(world, tmp_path, capsys):
    first = [
        "evaluate", world["model"], "--questions", world["test"], "--limit", "12",
        "--device", "cpu", "--output-dir", str(tmp_path / "a"),
    ]  # fmt: skip
    assert run(first) == 0
    config = str(tmp_path / "a" / "config.yaml")
    assert run(["evaluate", "--config", config, "--output-dir", str(tmp_path / "b")]) == 0
    assert " ".join(capsys.readouterr().out.split()).count("(N = 12)") == 2
    one, two = (AnswerTable.load(tmp_path / x / "answers.parquet") for x in "ab")
    assert (one.logprobs == two.logprobs).all()


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_message(world, tmp_path, capsys, device):
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    arguments = [
        "evaluate", world["model"], "--questions", world["test"], "--device", device,
        "--output-dir", str(tmp_path / "o"),
    ]  # fmt: skip
    assert run(arguments) == 1
    assert f"cannot be loaded on '{device}'" in capsys.readouterr().err


def test_a_loss_that_diverges_is_one_message(world, tmp_path, capsys):
    arguments = restore_arguments(world, tmp_path / "r", "--method", "cft", "--lora-rank", "0")
    arguments[arguments.index("0.01")] = "1e30"
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert "expected a finite number" in error
    assert "Traceback" not in error
