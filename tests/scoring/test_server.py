"""Scores from a real server process on loopback, beside those of the same weights in this one."""

import json
import math
import multiprocessing
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch

from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.prompts import LETTERS, Prompt, context
from calibrant.questions import Questions
from calibrant.scoring import server as server_module
from calibrant.scoring.local import score
from calibrant.scoring.server import score_server
from helpers import make_model, make_questions


class Served:
    """A server process, and its switches."""

    def __init__(self, folder):
        from _server import serve

        context = multiprocessing.get_context("fork")  # all that it imports is here already
        here, there = context.Pipe(duplex=False)
        self.process = context.Process(target=serve, args=(folder, there.send), daemon=True)
        self.process.start()
        there.close()
        port = here.recv()
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"

    def control(self, **settings):
        data = json.dumps(settings).encode()
        request = urllib.request.Request(f"{self.root}/control", data, method="POST")
        urllib.request.urlopen(request, timeout=10).read()

    def log(self):
        return json.load(urllib.request.urlopen(f"{self.root}/log", timeout=10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("served") / "model"
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def process(folder):
    served = Served(folder)
    yield served
    served.process.kill()
    served.process.join()


@pytest.fixture
def served(process, monkeypatch):
    """The server without faults; waits between tries are a hundredth of the real ones."""
    process.control()
    real = server_module._delay
    monkeypatch.setattr(server_module, "_delay", lambda attempt: real(attempt) / 100)
    return process


@pytest.fixture(scope="module")
def questions():
    return make_questions(30, k_max=6)


def ask(served, questions, **options):
    return score_server(
        questions, served.url, "tiny", **({"show_progress": False, "timeout": 20} | options)
    )


def same(table, expected, tolerance=1e-5):
    finite = np.isfinite(expected.logprobs)
    assert (np.isfinite(table.logprobs) == finite).all()
    assert np.abs(table.logprobs[finite] - expected.logprobs[finite]).max() < tolerance
    np.testing.assert_allclose(table.option_mass, expected.option_mass, atol=tolerance)
    assert (table.labels == expected.labels).all()
    assert table.ids == expected.ids
    assert table.groups == expected.groups


@pytest.mark.parametrize(
    "prompt",
    [
        "letter",
        "chat-letter",
        "labels",
        "cloze",
        "cloze-char",
        "cloze-sum",
        "cloze-pmi",
        Prompt("letter", letter_tokens="single"),
        Prompt("letter", letter_style="(A)"),
        Prompt("chat-letter", letter_style="1.", system_prompt="Be brief."),
        Prompt("cloze", examples=tuple(make_questions(2, seed=9, prefix="e"))),
    ],
    ids=str,
)
def test_with_the_tokenizer_the_table_is_that_of_the_local_model(
    served, tokenizer, questions, prompt
):
    some = questions[:12]
    if prompt == "labels":  # words shared by all questions, none the beginning of another
        words = ("good", "bad", "so so")
        some = Questions([replace(q, choices=words, answer=q.answer % 3) for q in some])
    table = ask(served, some, prompt=prompt, tokenizer=tokenizer)
    same(table, score(make_model(), tokenizer, some, prompt=prompt, show_progress=False))
    assert table.provenance["missing_options"] == {}


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        "letter",
        "chat-letter",
        Prompt("letter", letter_style="(A)"),
        Prompt("chat-letter", examples=tuple(make_questions(2, seed=9, prefix="e"))),
    ],
    ids=str,
)
def test_without_it_the_same_where_every_letter_is_returned(
    served, tokenizer, questions, prompt, as_content
):
    served.control(most=1000, as_content=as_content)
    some = questions[:12]
    table = ask(served, some, prompt=prompt, top_logprobs=1000)
    same(table, score(make_model(), tokenizer, some, prompt=prompt, show_progress=False))
    asked = served.log()["requests"][0]
    assert ("messages" in asked) == Prompt.of(prompt).is_chat
    assert "logprob_token_ids" not in asked


@pytest.mark.parametrize("draw", [False, True])
def test_options_outside_the_list_are_bounded_and_counted(served, tokenizer, questions, draw):
    """A drawn token far down the vocabulary, which a server adds to the list, is no bound."""
    served.control(draw=draw, as_content=True)
    table = ask(served, questions, top_logprobs=20)
    model, missing = make_model(), {}
    for i, q in enumerate(questions):
        ids = tokenizer(context(q, "letter"), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            values, tokens = model(ids).logits[0, -1].log_softmax(-1).topk(20)
        names = [tokenizer.decode([t]).strip() for t in tokens]
        listed = [LETTERS[k] in names for k in range(len(q.choices))]
        missing |= {q.id: listed.count(False)} if not all(listed) else {}
        for k in range(len(q.choices)):
            of_letter = [v for v, name in zip(values, names, strict=True) if name == LETTERS[k]]
            expected = torch.stack(of_letter).logsumexp(0) if of_letter else values[-1]
            assert table.logprobs[i, k] == pytest.approx(expected.item(), abs=1e-5)
    assert len(missing) > 10
    assert table.provenance["missing_options"] == missing
    note, undecided = table.provenance["notes"]
    assert note.startswith(f"{sum(missing.values())} options of {len(missing)} of 30 questions")
    none = sum(missing.get(q.id) == len(q.choices) for q in questions)
    assert undecided.startswith(f"{none} of 30 questions had none of their options returned")
    local = score(model, tokenizer, questions, show_progress=False)
    assert (table.option_mass <= local.option_mass + 1e-6).all()


@pytest.mark.parametrize(
    ("prompt", "with_tokenizer", "settings", "message"),
    [
        ("letter", False, {"logprobs": False}, "the reply has no log-probabilities"),
        ("chat-letter", False, {"logprobs": False}, "the reply has no log-probabilities"),
        ("letter", True, {"token_ids": False}, "does not have the tokens asked for by id"),
        ("cloze", True, {"echo": False}, "does not echo the prompt it was given"),
        (
            "chat-letter",
            False,
            {"thinks": "<think>"},
            r"begins its answer with thoughts \('<think>",
        ),
        ("chat-letter", False, {"thinks": "<|channel|>"}, "thinking turned off on the server"),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused_at_once(
    served, tokenizer, questions, prompt, with_tokenizer, settings, message
):
    served.control(**settings)
    with pytest.raises(InputError, match=message):
        ask(served, questions, prompt=prompt, tokenizer=tokenizer if with_tokenizer else None)
    assert len(served.log()["requests"]) <= 6  # the first question's


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "cloze"}, "on a server one needs to know where an option's tokens begin"),
        ({"prompt": Prompt("letter", letter_tokens="single")}, "expected 'merged'"),
        ({"top_logprobs": 0}, "top_logprobs is 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(served, questions, changes, message):
    with pytest.raises(InputError, match=message):
        ask(served, questions, **changes)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://me:secret@host/v1"])
def test_an_address_that_cannot_be_used_is_refused(questions, url):
    with pytest.raises(InputError, match=r"expected a(n| plain) address") as caught:
        score_server(questions, url, "tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "fault", ["drop", "slow", "429", "500", "garbage", "empty", "nan", "bare", "deep"]
)
def test_what_fails_once_is_asked_again(served, tokenizer, questions, fault):
    """Every other request of the first twenty fails, the very first one included."""
    some = questions[:12]
    faults = [None, *[fault, None] * 8] if fault == "bare" else [fault, None] * 8
    served.control(faults=faults, most=1000)
    start = time.monotonic()
    table = ask(served, some, top_logprobs=1000, timeout=0.5, concurrency=4)
    same(table, score(make_model(), tokenizer, some, show_progress=False))
    assert len(served.log()["requests"]) == 12 + 8
    if fault == "429":  # 8 waits of 0.2 s, over 4 workers
        assert time.monotonic() - start > 0.4


def test_what_keeps_failing_is_named_and_the_rest_is_kept(served, questions, tmp_path):
    served.control(faults=[None, "400", "500", "500", "500"])
    partial = tmp_path / "partial"
    with pytest.raises(InputError) as caught:
        ask(served, questions, partial=partial, concurrency=1, retries=2)
    message = str(caught.value)
    assert "2 questions have no usable answer" in message
    assert "'q1': status 400" in message
    assert "'q2': status 500: out of order (3 tries)" in message
    served.control()
    table = ask(served, questions, partial=partial)
    assert len(served.log()["requests"]) == 2
    served.control()
    assert (table.logprobs == ask(served, questions).logprobs).all()


def test_a_server_that_dies_on_the_way_is_given_up(served, questions):
    served.control(faults=[None] * 5 + ["500"] * 100)
    with pytest.raises(InputError, match="8 questions in a row have no usable answer"):
        ask(served, questions, concurrency=2, retries=0)


def test_a_redirect_is_not_followed(served, questions):
    served.control(faults=["redirect"])
    with pytest.raises(InputError, match="status 307"):
        ask(served, questions)


def test_a_reply_that_unpacks_to_gigabytes_is_dropped(served, questions):
    """By us, or by an aiohttp that has a limit of its own."""
    served.control(faults=["bomb"] * 2)
    with pytest.raises(InputError, match=r"longer than 64 MiB|ecompress"):
        ask(served, questions, retries=0)


def test_nobody_listening_is_one_message(questions):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=r"the first question failed: Client.*1 tries"):
        score_server(
            questions, f"http://127.0.0.1:{port}/v1", "tiny", retries=0, show_progress=False
        )


def test_requests_go_out_together_and_no_more_than_asked(served, questions):
    served.control(delay=0.05)
    start = time.monotonic()
    ask(served, questions, concurrency=8)
    assert 4 <= served.log()["most_at_once"] <= 8
    assert time.monotonic() - start < 30 * 0.05


def test_the_key_goes_to_the_server_and_nowhere_else(
    served, questions, tmp_path, monkeypatch, capsys
):
    served.control(key="sk-right")
    path = tmp_path / "q.jsonl"
    write(path, questions)
    arguments = [
        "evaluate", "tiny", "--server", served.url, "--questions", str(path),
        "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert run([*arguments, "--api-key-env", "NO_SUCH_KEY"]) == 1
    assert "NO_SUCH_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("SERVER_KEY", "sk-wrong")
    assert run([*arguments, "--api-key-env", "SERVER_KEY"]) == 1
    error = capsys.readouterr().err
    assert "status 401" in error
    assert "sk-wrong" not in error
    assert not (tmp_path / "run").exists(), (
        "nothing was answered, so there is nothing to go on with"
    )
    monkeypatch.setenv("SERVER_KEY", "sk-right")
    assert run([*arguments, "--api-key-env", "SERVER_KEY"]) == 0
    printed = capsys.readouterr()
    assert "sk-right" not in printed.out + printed.err
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or b"sk-right" not in file.read_bytes(), file


def write(path, questions):
    rows = [
        {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer}
        for q in questions
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def test_the_command_killed_goes_on_where_it_stopped(served, questions, tmp_path):
    path = tmp_path / "q.jsonl"
    write(path, questions)

    def command(output):
        return [
            sys.executable, "-c", "from calibrant.cli import main; main()",
            "evaluate", "tiny", "--server", served.url,
            "--questions", str(path), "--output-dir", str(tmp_path / output), "--concurrency", "2",
        ]  # fmt: skip

    served.control(delay=0.1)
    with subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL) as process:
        while len(served.log()["requests"]) < 9:
            time.sleep(0.02)
            assert process.poll() is None
        process.kill()
    served.control()
    assert run(command("killed")[3:]) == 0
    assert 30 - 9 <= len(served.log()["requests"]) <= 30 - 9 + 3  # those on their way are lost
    assert run([*command("whole")[3:]]) == 0
    tables = [AnswerTable.load(tmp_path / x / "answers.parquet") for x in ("killed", "whole")]
    assert tables[0].logprobs.tobytes() == tables[1].logprobs.tobytes()


def test_options_are_permuted_for_a_served_model_too(served, folder, tokenizer, tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    questions = make_questions(4, k_max=4)
    write(path, questions)
    arguments = [
        "evaluate", "tiny", "--server", served.url, "--tokenizer", str(folder), "--questions",
        str(path), "--permutations", "cyclic", "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert run(arguments) == 0
    raw = AnswerTable.load(tmp_path / "run" / "permutations.parquet")
    here = score(make_model(), tokenizer, questions, permutations="cyclic", show_progress=False)
    same(raw, here)
    assert (raw.orders == here.orders).all()
    assert len(AnswerTable.load(tmp_path / "run" / "answers.parquet")) == 4
    capsys.readouterr()


def test_it_works_where_an_event_loop_is_running_as_in_a_notebook(served, questions):
    import asyncio

    async def cell():
        return ask(served, questions[:3])

    assert len(asyncio.run(cell())) == 3


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("1e9", 120, 120), ("-3", 0, 0), ("nan", None, None), ("soon", None, None)],
)
def test_retry_after_is_read(value, low, high):
    seconds = server_module._retry_after(value)
    assert (seconds is None) if low is None else (low <= seconds <= high)


def test_retry_after_may_be_a_date():
    from email.utils import formatdate

    assert 5 < server_module._retry_after(formatdate(time.time() + 9, usegmt=True)) <= 9


@pytest.mark.slow
def test_a_real_model_behind_a_server_answers_as_it_does_here(smollm2, data_folder):
    import calibrant
    from calibrant.scoring.models import load_model

    some = calibrant.load_questions(data_folder / "arc_easy/test.jsonl.gz", limit=5, seed=3)
    model, tokenizer = load_model(str(smollm2), device="cpu")
    served = Served(smollm2)
    served.control(most=1000)
    try:
        for prompt in ("letter", "chat-letter", "cloze"):
            options = {"prompt": prompt, "timeout": 120, "concurrency": 2}
            local = score(model, tokenizer, some, prompt=prompt, show_progress=False)
            same(ask(served, some, tokenizer=tokenizer, **options), local, 2e-4)
            if prompt != "cloze":
                top = ask(served, some, top_logprobs=1000, **options)
                listed = [q.id not in top.provenance["missing_options"] for q in some]
                assert any(listed)
                assert np.abs(top.probs() - local.probs())[listed].max() < 1e-3
    finally:
        served.process.kill()
        served.process.join()


@pytest.mark.parametrize("value", [-(10**400), math.nan, math.inf, 0.1, None, "-1"])
def test_a_log_probability_that_cannot_be_is_malformed(value):
    with pytest.raises(server_module._MalformedError, match="expected a number up to 0"):
        server_module._number(value)
    assert server_module._number(-math.inf) == -math.inf
