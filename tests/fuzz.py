"""Loaders under fuzzing: by `test_fuzz` with hypothesis, and by hand with atheris.

python tests/fuzz.py LOADER [-max_total_time=60 and other options of libFuzzer]
"""

import contextlib
import gzip
import json
import sys
import tempfile
from pathlib import Path

import bad_inputs as bad
from calibrant import posthoc, runs
from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.diagnosis.report import CalibrationReport
from calibrant.diagnosis.verdict import Verdict
from calibrant.errors import InputError
from calibrant.foreign import read_table
from calibrant.preferences import load_preferences
from calibrant.questions import load_questions
from calibrant.scoring.harness import read_harness_log
from calibrant.scoring.journal import Journal

QUESTION_CSV = b'id,question,A,B,answer\nq1,x,1,2,A\nq2,"y, z",3,4,1\n'
TABLE_CSV = b"id,label,p_0,p_1\nq1,0,.5,.5\nq2,B,.1,.9\n"
PAIR = b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n'


def _restored(path):
    runs.load(path.parent)


def _journal(path):
    Journal(path.parent).begin({"batches": 3})


def _config(path):
    """The configuration file of a command that then has nothing to do."""
    code = run(["evaluate", "--config", str(path)])
    assert code in (1, 2)


# Loader -> (name of its file, a valid one, the function).
LOADERS = {
    "questions.jsonl": ("q.jsonl", bad.GOOD.encode() * 2, load_questions),
    "questions.jsonl.gz": ("q.jsonl.gz", gzip.compress(bad.GOOD.encode(), mtime=0), load_questions),
    "questions.csv": ("q.csv", QUESTION_CSV, load_questions),
    "questions.parquet": (
        "q.parquet",
        bad.parquet(question=["x"], choices=[["a", "b"]], answer=[1]),
        load_questions,
    ),
    "table.csv": ("t.csv", TABLE_CSV, read_table),
    "table.parquet": ("t.parquet", bad.parquet(label=[0], p_0=[0.5], p_1=[0.5]), read_table),
    "answers": ("a.parquet", bad.own(), AnswerTable.load),
    "lm-eval": (bad.LOG_NAME, bad.log().encode(), read_harness_log),
    "calibrator": ("calibrator.json", bad.scaling().encode(), posthoc.load),
    "restored": ("restored.json", bad.restored()["run/restored.json"].encode(), _restored),
    "journal": ("plan.json", json.dumps({"batches": 3}).encode(), _journal),
    "report": ("report.json", b'{"format_version": 1}', CalibrationReport.load),
    "verdict": ("verdict.json", b'{"format_version": 1}', Verdict.load),
    "preferences": ("p.jsonl", PAIR, load_preferences),
    "config": ("c.yaml", b"limit: 3\nprompt: cloze\nseed: 1\n", _config),
}


def try_to_load(loader, data, folder):
    """Load a file of these bytes: that it is refused is fine, any other error is not."""
    name, _, load = LOADERS[loader]
    path = Path(folder) / name
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        load(path)


def main():
    import atheris

    loader = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "valid").write_bytes(LOADERS[loader][1])
        atheris.instrument_all()
        atheris.Setup([*sys.argv, corpus], lambda data: try_to_load(loader, data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
