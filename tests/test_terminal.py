"""How the commands speak: to people, to scripts, to nobody; how they stop, and are completed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from calibrant import progress as progress_module
from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.diagnosis import collapse as stages
from calibrant.diagnosis import regime as regimes
from calibrant.diagnosis import report
from calibrant.diagnosis import verdict as verdicts
from calibrant.diagnosis.collapse import collapse
from calibrant.diagnosis.comparison import compare
from calibrant.diagnosis.regime import regime
from calibrant.diagnosis.report import evaluate
from calibrant.diagnosis.verdict import verdict
from calibrant.progress import hushed, measuring, note, progress, step
from calibrant.report.tables import interval, number
from helpers import make_model, make_questions


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A file of over-confident answers in two subjects."""
    path = tmp_path_factory.mktemp("answers") / "answers.parquet"
    table = AnswerTable.from_probs(
        [[0.9, 0.1]] * 300, [0] * 180 + [1] * 120, tasks=["a", "b"] * 150
    )
    table.save(path)
    return str(path)


def calibrant(*arguments, **environment):
    """Run the command as a user does, its output not a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "calibrant", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=300,
    )


def test_json_is_all_that_standard_output_holds(answers, tmp_path):
    done = calibrant("evaluate", "--answers", answers, "--json", "--output-dir",
                     str(tmp_path / "run"))  # fmt: skip
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["finding"]["label"] == "over-confident"
    assert found["report"]["metrics"]["accuracy"]["value"] == 0.6
    assert found["output_dir"] == str(tmp_path / "run")
    assert "conf-ECE" in done.stderr  # a person at the terminal still sees the table


def test_quiet_says_nothing_but_errors(answers, tmp_path, capfd):
    assert run(["evaluate", "--answers", answers, "-q", "--output-dir", str(tmp_path / "run")]) == 0
    assert capfd.readouterr() == ("", "")  # nor does any library, which may write past Python
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["evaluate", "--answers", "nosuch.parquet", "-q"], 1),
        (["evaluate", "--answers", "nosuch.parquet", "--json"], 1),
        (["evaluate", "--nosuch"], 2),
        (["completion", "tcsh"], 2),
    ],
)
def test_errors_are_shown_and_counted_whatever_was_asked(arguments, code, capsys):
    assert run(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "rror" in err
    assert "Traceback" not in err


def test_the_verdict_is_said_in_words_and_without_colour(answers, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(["evaluate", "--answers", answers]) == 0
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert "over-confident: confidence is 0.900 on average, and 0.600 of the answers are" in said
    assert re.search(r"conf-ECE ↓ +\.300 +\[\.2\d+, \.3\d+\]", out)
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", out)


def test_every_command_gives_json(answers, tmp_path, capsys):
    stages = ["--base", answers, "--aligned"]
    other = tmp_path / "other.parquet"
    table = AnswerTable.load(answers)
    table.with_logprobs(table.logprobs / 3).save(other)
    for arguments, key in (
        (["compare", answers, str(other)], "comparisons"),
        (["diagnose", "--train", answers, "--test", str(other)], "label"),
        (["collapse", *stages, str(other), "--output-dir", str(tmp_path / "run")], "stages"),
    ):
        assert run([*arguments, "--json"]) == 0
        assert key in json.loads(capsys.readouterr().out)


def test_a_bar_of_measuring_is_shown_only_where_it_takes_more_than_a_moment(capsys, monkeypatch):
    with measuring("measuring", 3):
        step()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_module, "_MOMENT", 0.2)
    with measuring("measuring", 3):
        time.sleep(0.3)
        step()
        shown = capsys.readouterr().err
    assert "left" in shown + capsys.readouterr().err
    step()  # of nobody's work: nothing happens
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("work", "steps"),
    [
        (lambda a, b: evaluate(a), report.STEPS),
        (lambda a, b: verdict(a, b), verdicts.STEPS),
        (lambda a, b: regime(a, b, a), regimes.STEPS),
        (lambda a, b: collapse(a, b), stages.STEPS),
    ],
    ids=["evaluate", "verdict", "regime", "collapse"],
)
def test_measuring_takes_the_steps_it_says(answers, monkeypatch, work, steps):
    """Else a bar would stand still at the end, or end before."""
    done = []
    table = AnswerTable.load(answers)
    other = table.with_logprobs(table.logprobs / 3)
    token = progress_module._STEPS.set(done.append)
    try:
        work(table, other)
    finally:
        progress_module._STEPS.reset(token)
    assert sum(done) == steps


@pytest.mark.parametrize(
    ("arguments", "bars"),
    [
        (("evaluate", "--answers", "A"), ("measuring",)),
        (("compare", "A", "B", "--output-dir", "OUT"), ("comparing", "measuring")),
        (("diagnose", "--train", "A", "--test", "B", "--output-dir", "OUT"),
         ("diagnosing", "measuring")),
        (("collapse", "--base", "A", "--aligned", "B", "--output-dir", "OUT"), ("measuring",)),
    ],
    ids=lambda value: value[0],
)  # fmt: skip
def test_what_measures_for_long_shows_how_far_it_is(
    answers, tmp_path, capsys, monkeypatch, arguments, bars
):
    monkeypatch.setattr(progress_module, "_MOMENT", 0.0)
    other = tmp_path / "other.parquet"
    table = AnswerTable.load(answers)
    table.with_logprobs(table.logprobs / 3).save(other)
    places = {"A": answers, "B": str(other), "OUT": str(tmp_path / "out")}
    asked = [places.get(word, word) for word in arguments]
    assert run(asked) == 0
    err = capsys.readouterr().err
    for bar in bars:
        assert bar in err
        done, total = re.findall(bar + r".* ([\d,]+)/([\d,]+) ", err)[-1]
        assert done == total
    if "OUT" in arguments:
        asked[asked.index(places["OUT"])] += "-again"
    assert run([*asked, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_many_runs_are_compared_with_their_intervals(answers, tmp_path, capsys):
    paths = []
    table = AnswerTable.load(answers)
    for i, t in enumerate((2, 3)):
        paths.append(str(tmp_path / f"t{t}.parquet"))
        table.with_logprobs(table.logprobs / t).save(paths[i])
    assert run(["compare", answers, *paths]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "answers, 95 % intervals (N = 300)" in out
    change = compare({"x": table}, {"t2": {"x": AnswerTable.load(paths[0])}}).verdicts["x"]["t2"]
    nll = change.difference["nll"]
    assert number(nll.value) in out
    assert interval(nll.low, nll.high).split()[0] in out
    assert interval(nll.low, nll.high).split()[1] in out


def test_a_hushed_bar_and_note_show_nothing(capsys):
    with hushed(), progress("scoring", 3, "q") as advance:
        advance(3)
        note("hello")
    assert capsys.readouterr() == ("", "")
    note("hello")
    with progress("scoring", 3, "q") as advance:
        advance(3)
    err = capsys.readouterr().err
    assert "hello" in err
    assert "3/3" in err
    assert "left" in err


@pytest.mark.slow
def test_interrupted_scoring_stops_cleanly_says_how_to_go_on_and_goes_on(tmp_path, tokenizer):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = [
        json.dumps(
            {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer}
        )
        for q in make_questions(6000, seed=3)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = tmp_path / "run"
    arguments = [
        "evaluate", str(tmp_path / "model"), "--questions", str(tmp_path / "questions.jsonl"),
        "--prompt", "cloze", "--device", "cpu", "--output-dir", str(output),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "calibrant", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        # A shell that runs the tests in the background has had Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    journal = output / "answers.partial"
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        if sum(p.stat().st_size for p in journal.glob("*.jsonl")) > 1000:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "calibrant evaluate" in err  # the command to give again
    assert "Traceback" not in err
    assert not (output / "answers.parquet").exists()
    kept = sum(len(p.read_text().splitlines()) for p in journal.glob("*.jsonl"))
    assert kept > 0
    assert run([*arguments, "-q"]) == 0
    assert len(AnswerTable.load(output / "answers.parquet")) == 6000


def complete(words):
    """What bash is told for a command line that ends in the last word."""
    done = calibrant(
        _CALIBRANT_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(words),
        COMP_CWORD=str(len(words) - 1),
    )
    return [line.split(",", 1)[1] for line in done.stdout.splitlines()]


def test_verbs_options_and_values_are_completed():
    assert {"compare", "completion", "collapse"} == set(complete(["calibrant", "co"]))
    assert "--questions" in complete(["calibrant", "compare", "--qu"])
    assert complete(["calibrant", "completion", "f"]) == ["fish"]


@pytest.mark.parametrize(
    "words",
    ["evaluate", "evaluate --answers", "restore m --train", "compare a", "export a", "predict a "
     "--output", "collapse --base", "diagnose --test", "plan --answers", "evaluate --output-dir"],
)  # fmt: skip
def test_files_are_left_to_the_shell(words):
    done = calibrant(
        _CALIBRANT_COMPLETE="bash_complete",
        COMP_WORDS=f"calibrant {words} ru",
        COMP_CWORD=str(len(words.split()) + 1),
    )
    assert done.stdout.splitlines() == ["file,ru"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_of_the_shell(shell, capsys, tmp_path):
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_CALIBRANT_COMPLETE={shell}_complete" in script
    if shell == "bash":
        path = tmp_path / "script"
        path.write_text(script)
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_a_closed_pipe_is_no_error(answers):
    process = subprocess.Popen(
        [sys.executable, "-m", "calibrant", "evaluate", "--answers", answers, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    process.stdout.close()
    _, err = process.communicate(timeout=240)
    assert "Traceback" not in err
    assert process.returncode == 1


def test_the_labelled_domain_is_compared_first(restored, capsys):
    assert run(["compare", str(restored), "--json", "--quiet"]) == 0
    sets = [one["set"] for one in json.loads(capsys.readouterr().out)["comparisons"]]
    assert list(dict.fromkeys(sets)) == ["world-test", "world-other"]
