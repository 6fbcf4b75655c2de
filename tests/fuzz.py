"""Loaders under fuzzing: by `test_fuzz` with hypothesis, and by hand with atheris.

python tests/fuzz.py LOADER [-max_total_time=60 and other options of libFuzzer]
"""

import contextlib
import gc
import gzip
import io
import json
import sys
import tempfile
import time
import types
from functools import cache, partial
from pathlib import Path

import bad_inputs as bad
from calibrant import posthoc, runs
from calibrant.answers import AnswerTable
from calibrant.choice import Choice
from calibrant.cli import run
from calibrant.cli.compare import _cost_table
from calibrant.diagnosis.collapse import CollapseReport, collapse
from calibrant.diagnosis.regime import RegimeReport, regime
from calibrant.diagnosis.report import CalibrationReport, evaluate
from calibrant.diagnosis.verdict import Verdict, verdict
from calibrant.errors import InputError
from calibrant.files import json_text
from calibrant.foreign import read_table
from calibrant.preferences import load_preferences
from calibrant.prompts import EncodedQuestion, Prompt
from calibrant.questions import Question, Questions, load_questions
from calibrant.report.card import CardFacts, model_card
from calibrant.scoring import server
from calibrant.scoring.harness import read_harness_log
from calibrant.scoring.journal import Journal
from calibrant.training.checkpoints import defect

QUESTION_CSV = b'id,question,A,B,answer\nq1,x,1,2,A\nq2,"y, z",3,4,1\n'
TABLE_CSV = b"id,label,p_0,p_1\nq1,0,.5,.5\nq2,B,.1,.9\n"
PAIR = b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n'
RESULTS = {
    "config": {"model_args": "pretrained=x", "model_dtype": "torch.float32"},
    "model_name": "x", "n-shot": {"t": 0}, "task_hashes": {"t": "0"},
    "configs": {"t": {"target_delimiter": " "}}, "lm_eval_version": "0.4.13",
}  # fmt: skip
RUN = {"command": "evaluate", "settings": {"seed": 1, "choices": None}, "versions": {"x": "1"}}
MANIFEST = {"config.json": {"size": 2, "sha256": "0" * 64}}
CARD = b"---\nlicense: apache-2.0\ndate: 2026-01-01\ntags: [a, b]\n---\n# Model\n"
SECONDS = 5  # processor time that any input of these sizes may take


@cache
def _table():
    return AnswerTable.from_probs([[0.9, 0.1], [0.4, 0.6]] * 3, [0, 1, 0, 0, 1, 1])


def _report():
    return evaluate(_table(), n_resamples=10)


def _verdict():
    return verdict(_table(), _table(), n_resamples=10)


def _permuted():
    return bad.own(id=["a#0", "a#1"], order=[[0, 1], [1, 0]])


def _choice():
    return Choice("temperature", "Because.", {"temperature": _verdict()}, 4, 2)


def _questions(path):
    questions = load_questions(path)
    assert len(questions.warnings) < 9
    assert questions.fingerprint


def _calibrator(kind):
    if kind == "pride":
        return {"kind": kind, "format_version": 1, "prior": {"2": [0.5, 0.5]}, "n_questions": 6}
    return (posthoc.LABELLED | posthoc.REFERENCED)[kind]().fit(_table(), _sharper()).to_dict()


def _sharper():
    return _table().with_logprobs(2 * _table().logprobs)


def _applied(path):
    posthoc.load(path).transform(_table())


def _restored(path):
    runs.load(path.parent)


def _journal(path):
    Journal(path.parent).begin({"batches": 3})


def _config(path):
    """The configuration file of a command that then has nothing to do."""
    with contextlib.redirect_stderr(io.StringIO()):
        assert run(["evaluate", "--config", str(path)]) in (1, 2)


def _run_folder(path):
    runs.open_run(path.parent, RUN)


def _results(path):
    """The results beside a log of lm-eval."""
    log = path.with_name(bad.LOG_NAME)
    log.write_text(bad.log())
    read_harness_log(log)


def _report_of_a_run(path):
    runs.run_folders([str(path.parent)])
    runs.set_domains(path.parent / "cft")


def _checkpoint(path):
    assert defect(path.parent)


def _cost(path):
    for table in _cost_table({"run": str(path.parent)}):
        table.to_text()


QUESTION = Question("q", "x?", ("yes", "no"), 0)
ENCODED = EncodedQuestion("q", [1], [[3], [4]], [[(0, 3), (1, 5)], [(0, 4)]], [1.0, 1.0], 0)
TASKS = {
    "letters": server._likeliest(QUESTION, "m", Prompt("letter"), 5),
    "chat": server._likeliest(QUESTION, "m", Prompt("chat-letter"), 5),
    "tokens": server._exact_letters(ENCODED, "m"),
    "echo": server._echoed(ENCODED, [], "m", False),
}


def _reply(kind):
    """What a server says to one question, in the form asked for."""
    if kind == "chat":
        top = [{"token": "A", "logprob": -0.5}, {"token": "B", "logprob": -1.5}]
        logprobs = {"content": [{"token": "A", "logprob": -0.5, "top_logprobs": top}]}
    elif kind == "echo":
        logprobs = {"token_logprobs": [None, -1.0, -2.0]}
    else:
        names = [f"token_id:{k}" for k in (3, 4, 5)] if kind == "tokens" else [" A", "B"]
        top = {name: -1.0 - k for k, name in enumerate(names)}
        logprobs = {"top_logprobs": [top], "tokens": names[:1], "token_logprobs": [-1.0]}
    return {"choices": [{"index": 0, "logprobs": logprobs}]}


def _replied(kind, path):
    """Read a reply as the client does: it may be of no use, and then says so."""
    plan = {"top_logprobs": 5}
    with contextlib.suppress(server._MalformedError, ValueError, RecursionError):
        reply = json.loads(path.read_bytes())
        task = TASKS[kind]
        try:
            value = task.read([reply] * len(task.bodies))
        except (ValueError, RecursionError) as error:
            raise AssertionError("read is to say what is malformed") from error
        json.loads(json_text(value))
        server._table(Questions([QUESTION]), Prompt("letter"), [value], plan)


def _card(path):
    """The base model's own card, whose licence a new one repeats."""
    facts = CardFacts(str(path.parent), "temperature", "calibrator", "letter", ["x"], 1, {}, {})
    model_card(facts, {}, {})


# Loader -> (name of its file, what makes a valid one, the function).
LOADERS = {
    "questions.jsonl": ("q.jsonl", lambda: bad.GOOD.encode() * 2, _questions),
    "questions.jsonl.gz": ("q.jsonl.gz", lambda: _zipped(bad.GOOD.encode()), _questions),
    "questions.csv": ("q.csv", lambda: QUESTION_CSV, _questions),
    "questions.parquet": (
        "q.parquet",
        lambda: bad.parquet(question=["x"], choices=[["a", "b"]], answer=[1]),
        _questions,
    ),
    "table.csv": ("t.csv", lambda: TABLE_CSV, read_table),
    "table.csv.gz": ("t.csv.gz", lambda: _zipped(TABLE_CSV), read_table),
    "table.parquet": (
        "t.parquet",
        lambda: bad.parquet(label=[0], p_0=[0.5], p_1=[0.5]),
        read_table,
    ),
    "answers": ("a.parquet", bad.own, AnswerTable.load),
    "answers in several orders": ("a.parquet", _permuted, AnswerTable.load),
    "lm-eval": (bad.LOG_NAME, bad.log, read_harness_log),
    "lm-eval results": (bad.LOG_NAME.replace("samples_t_", "results_"), lambda: RESULTS, _results),
    **{
        f"calibrator {kind}": ("calibrator.json", partial(_calibrator, kind), _applied)
        for kind in (*posthoc.LABELLED, *posthoc.REFERENCED, *posthoc.REORDERED)
    },
    **{
        f"server reply, {kind}": ("reply.json", partial(_reply, kind), partial(_replied, kind))
        for kind in TASKS
    },
    "cost": ("cost.json", lambda: {"labels": 3, "training_seconds": 0.5}, _cost),
    "adapter": (
        "adapter_config.json",
        lambda: {"base_model_name_or_path": "x", "r": 4},
        lambda path: runs.weights_of(str(path.parent)),
    ),
    "restored": ("restored.json", lambda: bad.restored()["run/restored.json"], _restored),
    "journal": ("plan.json", lambda: {"batches": 3}, _journal),
    "report": ("report.json", lambda: _report().to_dict(), CalibrationReport.load),
    "verdict": ("verdict.json", lambda: _verdict().to_dict(), Verdict.load),
    "collapse": (
        "collapse.json",
        lambda: collapse(_table(), _table(), n_resamples=10).to_dict(),
        CollapseReport.load,
    ),
    "regime": (
        "regime.json",
        lambda: regime(_table(), _table(), n_resamples=10).to_dict(),
        RegimeReport.load,
    ),
    "choice": ("choice.json", lambda: _choice().to_dict(), Choice.load),
    "preferences": ("p.jsonl", lambda: PAIR, load_preferences),
    "config": ("c.yaml", lambda: b"limit: 3\nprompt: cloze\nseed: 1\n", _config),
    "run folder": ("config.yaml", lambda: RUN, _run_folder),
    "report of a run": (
        "report.json",
        lambda: {"sets": {"a": "in"}, "reports": {"before": {}}},
        _report_of_a_run,
    ),
    "checkpoint": ("manifest.json", lambda: MANIFEST, _checkpoint),
    "card": ("README.md", lambda: CARD, _card),
}


def _zipped(data):
    return gzip.compress(data, mtime=0)


@cache
def valid(loader):
    """Bytes of a file that the loader takes."""
    made = LOADERS[loader][1]()
    made = json_text(made) if isinstance(made, dict) else made
    return made.encode() if isinstance(made, str) else made


def try_to_load(loader, data, folder):
    """Load a file of these bytes: that it is refused is fine, any other error is not."""
    name, _, load = LOADERS[loader]
    path = Path(folder) / name
    path.write_bytes(data)
    start = time.process_time()
    with contextlib.suppress(InputError):
        load(path)
    taken = time.process_time() - start
    assert taken < SECONDS, f"{len(data)} bytes took {taken:.1f} s"


def main():
    import atheris

    loader = sys.argv.pop(1)
    # All functions there are, as instrument_all takes them, are five minutes' work.
    parts = ("calibrant", "json", "csv", "gzip", "yaml")
    for each in gc.get_objects():
        if isinstance(each, types.FunctionType) and str(each.__module__).startswith(parts):
            atheris.instrument_func(each)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "valid").write_bytes(valid(loader))
        atheris.Setup([*sys.argv, corpus], lambda data: try_to_load(loader, data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
