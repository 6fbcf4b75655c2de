"""Logs of a real lm-eval run on a tiny model, beside our own scores and lm-eval's own numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.prompts import LETTERS, Prompt
from calibrant.scoring.harness import harness_logs, read_harness_log
from calibrant.scoring.local import score
from helpers import make_model, make_questions

LISTED = (
    "Question: {{question}}\nOptions:\n"
    "{% for c in choices %}{{letters[loop.index0]}}. {{c}}\n{% endfor %}Answer:"
)
PLAIN = "Question: {{question}}\nAnswer:"
ACC = [{"metric": "acc"}]
ALL = [{"metric": m} for m in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")]
BLANK = {"doc_to_text": "{{contexts}}", "doc_to_target": "{{ending}}", "doc_to_choice": "contexts"}

TASKS = {
    "letter_index": {"doc_to_text": LISTED, "doc_to_choice": "letters", "doc_to_target": "gold"},
    "letter_text": {
        "doc_to_text": LISTED,
        "doc_to_choice": "letters",
        "doc_to_target": "{{letters[gold]}}",
    },
    "cloze_index": {"doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": ALL},
    "cloze_text": {"doc_to_choice": "choices", "doc_to_target": "{{choices[gold]}}"},
    "cloze_letter": {"doc_to_choice": "choices", "doc_to_target": "{{letters[gold]}}"},
    "delimited": {
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": ALL[:3],
        "target_delimiter": "\n\n\n\n",
    },
    "numbers": {"doc_to_choice": "numbers", "doc_to_target": "gold"},
    "winogrande_like": {
        "doc_to_text": "label",
        "doc_to_choice": "contexts",
        "doc_to_target": "ending",
    },
    "generated": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
        "metric_list": [{"metric": "exact_match"}],
    },
    "two_right": {"doc_to_choice": "choices", "doc_to_target": "golds"},
}


def document(q):
    k = len(q.choices)
    return {
        "question": q.question,
        "choices": list(q.choices),
        "letters": list(LETTERS[:k]),
        "numbers": [str(k - 1 - i) for i in range(k)],  # "0" is an index and the text of the last
        "gold": q.answer,
        "golds": [0, 1],
        "contexts": [f"{q.question} {choice}" for choice in q.choices[:2]],
        "label": q.answer % 2,
        "ending": "indeed",
    }


@pytest.fixture(scope="module")
def questions():
    return make_questions(40, k_min=3, k_max=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer, questions):
    """A model's folder, task files over a local data set, and what lm-eval wrote about it."""
    folder = tmp_path_factory.mktemp("lm-eval")
    make_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = [json.dumps(document(q)) for q in questions]
    (folder / "data.jsonl").write_text("\n".join(lines))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "data.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": PLAIN,
        "metric_list": ACC,
    }
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        text = yaml.safe_dump({"task": name} | common | task)
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    return {"folder": folder, "results": run_lm_eval(folder, "out", list(TASKS))}


def run_lm_eval(folder, output, tasks, **model_arguments):
    """What ``lm-eval run --log_samples --output_path`` does, in this process."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(folder / output))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "model"), "dtype": "float32"} | model_arguments,
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        log_samples=True,
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    return results["results"]


def log(world, task, output="out"):
    (path,) = (world["folder"] / output).rglob(f"samples_{task}_*.jsonl")
    return path


@pytest.mark.parametrize("task", ["letter_index", "letter_text", "cloze_index", "cloze_text"])
def test_the_table_is_what_calibrant_scores_itself(world, tokenizer, questions, task):
    table = read_harness_log(log(world, task))
    single = Prompt("letter", letter_tokens="single")  # lm-eval reads one token for a letter
    prompt = single if task.startswith("letter") else "cloze-sum"
    ours = score(make_model(), tokenizer, questions, prompt=prompt, show_progress=False)
    finite = np.isfinite(ours.logprobs)
    assert (np.isfinite(table.logprobs) == finite).all()
    np.testing.assert_allclose(table.logprobs[finite], ours.logprobs[finite], atol=1e-4)
    assert (table.labels == ours.labels).all()
    assert table.correct.mean() == pytest.approx(world["results"][task]["acc,none"])
    assert table.ids[3] == f"{task}:3"
    assert set(table.tasks) == {task}
    assert table.provenance["model"].endswith("model")
    assert table.provenance["versions"]["lm_eval"] == "0.4.13"
    assert table.provenance["notes"] == []


def test_what_stands_before_an_option_is_not_part_of_its_length(world, questions):
    """The results beside the log name the task's delimiter."""
    path = log(world, "delimited")
    likelihoods = read_harness_log(path).logprobs
    table = read_harness_log(path, metric="acc_norm")
    for i, q in enumerate(questions):
        for k, choice in enumerate(q.choices):
            assert table.logprobs[i, k] == likelihoods[i, k] / len(choice)
    assert table.correct.mean() == pytest.approx(world["results"]["delimited"]["acc_norm,none"])


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes", "acc_mutual_info"])
def test_every_metric_comes_out_as_lm_eval_reports_it(world, tokenizer, questions, metric):
    table = read_harness_log(log(world, "cloze_index"), metric=metric)
    reported = world["results"]["cloze_index"][f"{metric},none"]
    assert table.correct.mean() == pytest.approx(reported)
    assert table.provenance["metric"] == metric
    assert (table.n_options == [len(q.choices) for q in questions]).all()  # not 2K
    if metric == "acc_norm":
        ours = score(make_model(), tokenizer, questions, prompt="cloze-char", show_progress=False)
        finite = np.isfinite(ours.logprobs)
        np.testing.assert_allclose(table.logprobs[finite], ours.logprobs[finite], atol=1e-4)


def test_mutual_information_subtracts_the_options_own_likelihood(world, tokenizer, questions):
    model = make_model()
    log_ratio = read_harness_log(log(world, "cloze_index"), metric="acc_mutual_info").logprobs
    conditional = read_harness_log(log(world, "cloze_index")).logprobs
    for i, q in enumerate(questions[:5]):
        for k, choice in enumerate(q.choices):
            ids = torch.tensor([tokenizer("<s> " + choice)["input_ids"]])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            alone = logprobs.gather(1, ids[0, 1:, None]).sum().item()
            assert conditional[i, k] - log_ratio[i, k] == pytest.approx(alone, abs=1e-4)


def test_numbers_as_options_are_told_from_indices_by_the_logged_accuracy(world, questions):
    table = read_harness_log(log(world, "numbers"))
    assert table.labels.tolist() == [q.answer for q in questions]
    assert table.correct.mean() == pytest.approx(world["results"]["numbers"]["acc,none"])


def test_without_an_accuracy_in_the_log_two_readings_are_refused(world, tmp_path):
    path = edited(world, tmp_path, "numbers", lambda row: row.pop("acc"))
    with pytest.raises(InputError, match=r"may be an index or an option's text"):
        read_harness_log(path)


def test_letters_for_options_that_are_texts_are_positions(world, questions):
    """lm-eval matches them with nothing and logs accuracy 0 throughout."""
    assert world["results"]["cloze_letter"]["acc,none"] == 0
    table = read_harness_log(log(world, "cloze_letter"))
    assert table.labels.tolist() == [q.answer for q in questions]
    assert any("read as positions" in note for note in table.provenance["notes"])


def test_options_inside_the_context_are_judged_by_the_logged_accuracy(world, questions):
    table = read_harness_log(log(world, "winogrande_like"))
    assert table.labels.tolist() == [q.answer % 2 for q in questions]
    assert (table.n_options == 2).all()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("generated", "line 1: arguments and filtered_resps are not those of a multiple-choice"),
        ("two_right", r"line 1: target '\[0, 1\]' is neither an index"),
    ],
)
def test_tasks_without_one_right_option_are_refused(world, task, message):
    with pytest.raises(InputError, match=message):
        read_harness_log(log(world, task))


def test_rounded_log_probabilities_are_noticed(world):
    tasks = ["letter_index"]
    run_lm_eval(world["folder"], "bf16", tasks, dtype="bfloat16")
    run_lm_eval(world["folder"], "wide", tasks, dtype="bfloat16", softmax_dtype="float32")
    (note,) = read_harness_log(log(world, "letter_index", "bf16")).provenance["notes"]
    assert "bfloat16" in note
    assert "softmax_dtype=float32" in note
    assert read_harness_log(log(world, "letter_index", "wide")).provenance["notes"] == []


def edited(world, tmp_path, task, change, line=None):
    """Copy a log with one row (or every row) changed."""
    rows = [json.loads(text) for text in log(world, task).read_text().splitlines()]
    for i, row in enumerate(rows):
        if line is None or i == line - 1:
            change(row)
    path = tmp_path / log(world, task).name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def set_response(text):
    return lambda row: row["filtered_resps"].__setitem__(0, [text, "False"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("target"), "line 7: lacks target; expected a row of lm-eval"),
        (lambda row: row["filtered_resps"].pop(), "line 7: .* continuations and .* log-likelihoo"),
        (set_response("nan"), "line 7: filtered_resps: a log-likelihood is NaN"),
        (set_response("much"), "line 7: arguments and filtered_resps are not those"),
        (lambda row: row.update(doc_id=2), "line 7: doc_id 2 is also in line 3"),
        (lambda row: row.update(acc=1 - row["acc"]), "line 7: target '.*', read as an index, does"),
        (lambda row: row.update(acc_norm=1 - row["acc_norm"]), "line 7: lm-eval logged acc_norm"),
        (lambda row: row.update(target="none of them"), "line 1: target .* is neither an index"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(world, tmp_path, change, message):
    path = edited(world, tmp_path, "cloze_index", change, line=7)
    if "neither" in message:  # no reading fits every row, so the first row is the first to fail
        path = edited(world, tmp_path, "cloze_index", change)
    with pytest.raises(InputError, match=message):
        read_harness_log(path, metric="acc_norm")


def test_only_rows_of_the_filter_none_are_read(world, tmp_path):
    path = edited(world, tmp_path, "cloze_index", lambda row: None)
    twice = path.read_text() + path.read_text().replace('"filter": "none"', '"filter": "first"')
    path.write_text(twice)
    assert len(read_harness_log(path)) == 40
    path.write_text(path.read_text().replace('"filter": "none"', '"filter": "first"'))
    with pytest.raises(InputError, match=r"only the filter\(s\) first; expected"):
        read_harness_log(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"),
        (b"[1]\n", "line 1: expected a JSON object"),
        (b"{\n", "line 1: invalid JSON"),
        (b"\xff\n", "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    path = tmp_path / "samples_a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_harness_log(path)


def test_of_a_folder_the_newest_log_of_each_task_is_read(tmp_path):
    run = tmp_path / "model"
    run.mkdir()
    names = [
        "samples_arc_easy_2026-01-02T00-00-00.000001.jsonl",
        "samples_arc_easy_2026-01-01T23-59-59.999999.jsonl",
        "samples_mmlu_law_2025-01-01T00-00-00.000001.jsonl",
    ]
    for name in names:
        (run / name).touch()
    assert [path.name for path in harness_logs(tmp_path)] == [names[0], names[2]]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / names[2]).touch()
    with pytest.raises(InputError, match="in 2 folders"):
        harness_logs(tmp_path)


def test_a_newer_log_of_another_model_does_not_hide_the_older_one(tmp_path):
    for model, day in (("a", 1), ("b", 2)):
        (tmp_path / model).mkdir()
        (tmp_path / model / f"samples_arc_easy_2026-01-0{day}T00-00-00.000001.jsonl").touch()
    with pytest.raises(InputError, match=r"in 2 folders \(.*/a, .*/b\); expected those of"):
        harness_logs(tmp_path)


def test_the_command_takes_files_and_folders(world, tmp_path, capsys):
    out = str(world["folder"] / "out")
    assert run(["evaluate", "--answers", out]) == 1
    assert "not those of a multiple-choice" in capsys.readouterr().err
    logs = [str(log(world, task)) for task in ("letter_index", "cloze_index", "cloze_letter")]
    folder = tmp_path / "run"
    assert run(["evaluate", "--answers", *logs, "--output-dir", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "3 tasks (N = 120)" in text
    assert "read as positions" in (folder / "report.md").read_text()
    table = AnswerTable.load(folder / "answers.parquet")
    for task in ("letter_index", "cloze_index"):
        accuracy = table.correct[np.array(table.tasks) == task].mean()
        assert accuracy == pytest.approx(world["results"][task]["acc,none"])
    config = str(folder / "config.yaml")
    assert run(["evaluate", "--config", config, "--output-dir", str(tmp_path / "again")]) == 0
    (tmp_path / "copy").mkdir()
    again = shutil.copy(logs[0], tmp_path / "copy")
    assert run(["compare", logs[0], str(again)]) == 0
    (tmp_path / "out" / "model").mkdir(parents=True)  # as lm-eval writes: a folder for each model
    shutil.copy(logs[0], tmp_path / "out" / "model")
    stages = ["--base", str(tmp_path / "out"), "--aligned", logs[0]]
    assert run(["collapse", *stages, "--output-dir", str(tmp_path / "collapse")]) == 0
    assert run(["evaluate", "--answers", *logs[:1], *logs[:1]]) == 1
    assert "another table of letter_index; expected each once" in capsys.readouterr().err
    assert run(["evaluate", "--answers", logs[1], "--lm-eval-metric", "acc_norm"]) == 0
