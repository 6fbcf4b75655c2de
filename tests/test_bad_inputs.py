"""Whatever a user gets wrong: one message, the right exit code, no traceback, no file left."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bad_inputs as bad
from calibrant.cli import run

GOOD_FILES = {
    "q.jsonl": bad.GOOD,
    "t.csv": "label,p_0,p_1\n0,.5,.5\n1,.3,.7\n",
    "t2.csv": "label,p_0,p_1\n0,.5,.5\n",
    "u.csv": "id,label,p_0,p_1\nx,0,.5,.5\n",
    "full/x": "x",
}


def cases():
    """(command, files, exit code, message) of every bad input."""
    for row, message in bad.ROWS:
        yield bad.ASK, {"q.jsonl": f"{bad.GOOD}{row}\n"}, 1, f"q.jsonl: line 2: {message}"
    for command, files, message in bad.QUESTION_FILES + bad.TABLES:
        yield command, files, 1, message
    for file, message in bad.QUESTION_PARQUET:
        command = "evaluate MODEL --questions q.parquet"
        yield command, {"q.parquet": file}, 1, f"q.parquet: {message}"
    for file, message in bad.TABLE_PARQUET + bad.OWN:
        yield "evaluate --answers t.parquet", {"t.parquet": file}, 1, f"t.parquet: {message}"
    for file, message in bad.LOGS:
        name = bad.LOG_NAME
        yield f"evaluate --answers {name}", {name: file}, 1, f"{name}: {message}"
    for command, message in bad.USAGE:
        yield command, GOOD_FILES, 2, message
    for command, message in bad.VALUES:
        yield command, GOOD_FILES, 1, message
    for file, message in bad.CONFIGS:
        files = {"q.jsonl": bad.GOOD, "c.yaml": file}
        yield f"{bad.ASK} --config c.yaml", files, 2, message
    for prompt, message in bad.PROMPTS:
        files = {"q.jsonl": bad.GOOD, "c.yaml": f"prompt: {prompt}"}
        yield f"{bad.ASK} --config c.yaml", files, 1, message
    for arguments, files, message in bad.RUNS:
        yield f"predict run {arguments}", {"q.jsonl": bad.GOOD} | files, 1, message
    for file, message in bad.CALIBRATORS:
        files = {"q.jsonl": bad.GOOD} | bad.restored(calibrator=file)
        yield f"predict run {bad.P}", files, 1, f"run/calibrator.json: {message}"


CASES = list(cases())


def lay_out(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check(code, expected_code, error, message):
    assert code == expected_code, error
    text = " ".join(error.split())
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("command", "files", "code", "message"),
    CASES,
    ids=[f"{command[:40]}-{message[:50]}" for command, _, _, message in CASES],
)
def test_bad_input(command, files, code, message, tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, files)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = run(shlex.split(command))
    captured = capsys.readouterr()
    check(found, code, captured.err, message)
    assert captured.out == ""
    assert contents(tmp_path) == before


def test_there_are_enough():
    assert len(CASES) >= 250


@pytest.mark.parametrize("section", ["ROWS", "USAGE"])
def test_the_program_itself_ends_so(section, tmp_path):
    """As a process, not a function: exit code, and nothing but the message."""
    command, files, code, message = next(
        case for case in CASES if case[2] == (1 if section == "ROWS" else 2)
    )
    lay_out(tmp_path, files)
    done = subprocess.run(
        [sys.executable, "-m", "calibrant", *shlex.split(command)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    check(done.returncode, code, done.stderr, message)


def test_the_check_itself_is_not_blind(tmp_path):
    """A traceback, a wrong code, another message: each fails."""
    check(1, 1, "Error: q: bad", "q: bad")
    for code, error, message in ((0, "q: bad", "q: bad"), (1, "q: good", "q: bad")):
        with pytest.raises(AssertionError):
            check(code, 1, error, message)
    with pytest.raises(AssertionError):
        check(1, 1, "Traceback (most recent call last): q: bad", "q: bad")
    lay_out(tmp_path, {"a/b": "x"})
    assert contents(tmp_path) == {Path("a/b"): b"x"}
