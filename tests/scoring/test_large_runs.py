"""Runs that are stopped, share their work, or do not fit in memory."""

import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.prompts import encode
from calibrant.questions import Questions
from calibrant.runs import answers_at
from calibrant.scoring.journal import Journal
from calibrant.scoring.local import (
    LOGITS_BUDGET,
    NUMBERS_PER_THREAD,
    TOKENS_PER_THREAD,
    automatic_batch_tokens,
    plan_batches,
    score,
    score_encoded,
)
from calibrant.scoring.processes import Processes
from calibrant.scoring.tokens import Tokens
from helpers import make_model, make_questions, run_script

# -- the journal ----------------------------------------------------------------------------------


def test_a_journal_gives_back_what_was_written_exactly(tmp_path):
    values = [[-0.1 / 3, -1e-300, -np.inf], [float(np.float32(-2.7182818))]]
    first = Journal(tmp_path / "j")
    assert first.begin({"n": 1}) == {}
    with first.writing() as write:
        write(7, values)
    assert Journal(tmp_path / "j").begin({"n": 1}) == {7: values}


def test_a_torn_last_record_is_dropped_wherever_it_was_torn(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.begin({})
    with journal.writing() as write:
        write(0, [1.5])
        write(1, [2.5])
    file = tmp_path / "j" / "0.jsonl"
    whole = file.read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(second, len(whole)):
        file.write_bytes(whole[:end])
        assert Journal(tmp_path / "j").begin({}) == {0: [1.5]}, end
    with Journal(tmp_path / "j").writing() as write:  # the torn part goes before it is added to
        write(1, [3.5])
    assert Journal(tmp_path / "j").begin({}) == {0: [1.5], 1: [3.5]}


def test_a_damaged_record_and_what_follows_it_are_done_again(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.begin({})
    with journal.writing() as write:
        for i in range(3):
            write(i, [float(i)])
    file = tmp_path / "j" / "0.jsonl"
    file.write_bytes(file.read_bytes().replace(b"[1, [1.0]]", b"[1, [9.0]]"))
    assert Journal(tmp_path / "j").begin({}) == {0: [0.0]}


def test_a_journal_of_another_plan_is_refused_and_untouched(tmp_path):
    with_one = Journal(tmp_path / "j")
    with_one.begin({"questions": "a", "weights": "w"})
    with pytest.raises(InputError, match=r"j: holds partial results of another run \(weights was"):
        Journal(tmp_path / "j").begin({"questions": "a", "weights": "v"})
    assert Journal(tmp_path / "j").plan == {"questions": "a", "weights": "w"}


def test_a_folder_that_is_no_journal_is_not_deleted(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    Journal(tmp_path).remove()
    assert (tmp_path / "mine.txt").exists()


# -- killed and gone on with ----------------------------------------------------------------------


def ask(tokenizer, prompt, model=None, seed=0, batch_tokens=100):
    """What `answers_at` asks: many small batches."""

    def run(partial):
        return score(
            model or make_model(),
            tokenizer,
            make_questions(200, seed=seed),
            prompt=prompt,
            batch_tokens=batch_tokens,
            partial=partial,
            show_progress=False,
        )

    return run


def work(path, tokenizer, begun, forwards):
    torch.set_num_threads(1)
    model = make_model()

    def count(*args):
        begun.set()
        with forwards.get_lock():
            forwards.value += 1
        time.sleep(0.004)

    model.register_forward_pre_hook(count)
    answers_at(path, ask(tokenizer, "cloze", model=model))


def test_a_run_killed_ten_times_ends_with_the_same_table(tokenizer, tmp_path):
    context = multiprocessing.get_context("fork")
    forwards = context.Value("i", 0)

    def start(path):
        begun = context.Event()
        process = context.Process(target=work, args=(path, tokenizer, begun, forwards))
        process.start()
        assert begun.wait(60)
        return process

    start(tmp_path / "whole.parquet").join()
    n_batches, forwards.value = forwards.value, 0
    assert n_batches > 30
    rng = np.random.default_rng(0)
    path = tmp_path / "answers.parquet"
    for _ in range(10):
        passes = forwards.value + rng.integers(1, 5)
        process = start(path)
        while forwards.value < passes:  # so that every kill comes after a little more work
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.008))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not path.exists(), "killed too late to show anything"
    partial = Journal(path.with_suffix(".partial"))
    assert 10 <= len(partial.begin(partial.plan)) < n_batches
    start(path).join()
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert n_batches <= forwards.value <= n_batches + 10, "finished batches were done again"
    assert {p.name for p in tmp_path.iterdir()} == {"answers.parquet", "whole.parquet"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 1}, "questions"),
        ({"model": make_model(seed=1)}, "weights"),
        ({"batch_tokens": 300}, "batch_tokens"),
    ],
)
def test_partial_results_of_another_run_are_refused(tokenizer, tmp_path, changes, what):
    ask(tokenizer, "letter")(tmp_path / "partial")
    with pytest.raises(InputError, match=f"another run .{what} was"):
        ask(tokenizer, "letter", **changes)(tmp_path / "partial")
    with pytest.raises(InputError, match=r"another run .questions was"):
        ask(tokenizer, "cloze")(tmp_path / "partial")


def test_a_run_goes_on_with_the_batch_size_it_was_begun_with(tokenizer, tmp_path, monkeypatch):
    """The automatic size depends on the free memory, which may have changed."""
    from calibrant.scoring import local

    run = ask(tokenizer, "letter", batch_tokens=None)
    monkeypatch.setattr(local, "automatic_batch_tokens", lambda *_: 150)
    first = run(tmp_path / "partial")
    monkeypatch.setattr(local, "automatic_batch_tokens", lambda *_: 400)
    again = run(tmp_path / "partial")
    assert (again.logprobs == first.logprobs).all()
    assert json.loads((tmp_path / "partial/plan.json").read_text())["batch_tokens"] == 150


# -- several processes ----------------------------------------------------------------------------


@pytest.fixture
def world(tokenizer, tmp_path):
    """Arguments of `calibrant evaluate` on a tiny model and 150 questions, all in files."""
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    fields = ("id", "question", "choices", "answer")
    lines = [json.dumps({f: getattr(q, f) for f in fields}) for q in make_questions(150)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return ["evaluate", str(tmp_path / "model"), "--questions", str(tmp_path / "q.jsonl")]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one_and_make_its_table(world, one_thread, tmp_path):
    from calibrant.cli import run
    from calibrant.questions import load_questions
    from calibrant.scoring.models import load_model

    one, two = tmp_path / "one", tmp_path / "two"
    assert run([*world, "--output-dir", str(one)]) == 0
    two.mkdir()
    shutil.copy(one / "config.yaml", two)
    partial = two / "answers.partial"
    score(*load_model(world[1]), load_questions(world[3]), partial=partial, show_progress=False)
    file = partial / "0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # as if killed while writing
    begun = Journal(partial).begin(Journal(partial).plan)

    script = Path(__file__).with_name("_two_processes.py")
    done = run_script(script, tmp_path / "copy", *world, "--output-dir", two, processes=2)
    assert (two / "answers.parquet").read_bytes() == (one / "answers.parquet").read_bytes()
    assert done.stdout.count("Written to") == 1, "only the first process reports"
    assert done.stderr.count("2 processes share the questions") == 1
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    lines = [(tmp_path / "copy" / f"{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    batches = [[json.loads(line[9:])[0] for line in part] for part in lines]
    assert len(batches[0]) > len(begun) > 0
    assert len(batches[1]) > 0
    assert sorted(batches[0] + batches[1]) == list(range(len(batches[0] + batches[1])))


def test_a_launcher_that_starts_fewer_processes_than_it_says_is_found_out(monkeypatch):
    from torch import distributed

    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match="1 processes have met, expected WORLD_SIZE = 2"):
            Processes.join()
    finally:
        distributed.destroy_process_group()


# -- memory ---------------------------------------------------------------------------------------


def real_failure():
    torch.empty(2**60, dtype=torch.uint8)


def cuda_failure():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [real_failure, cuda_failure])
@pytest.mark.parametrize("prompt", ["letter", "cloze"])
def test_a_batch_that_does_not_fit_is_halved_and_no_question_is_lost(
    tokenizer, prompt, fail, capsys
):
    model, questions = make_model(), make_questions(60)
    expected = score(model, tokenizer, questions, prompt=prompt, show_progress=False).logprobs
    seen = []

    def refuse(module, args, kwargs):
        rows = len(kwargs["input_ids"])
        seen.append(rows)
        if rows > 5:
            fail()

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    found = score(
        model, tokenizer, questions, prompt=prompt, batch_tokens=2000, show_progress=False
    ).logprobs
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(rows for rows in seen if rows <= 5) == 60, "each question once"
    assert sum(rows > 5 for rows in seen) <= 4, "the size that fits is kept"
    assert "from here on a batch is scored in 2 pieces" in capsys.readouterr().err


def test_where_forward_passes_run_can_be_said(tokenizer):
    """Under ZeRO-3 a model's first weight, frozen, seems to be on the CPU."""
    model, questions = make_model(), make_questions(6)
    expected = score(model, tokenizer, questions, show_progress=False).logprobs

    class Husk(type(model)):
        @property
        def device(self):
            raise AssertionError("asked where the first weight is")

    model.__class__ = Husk
    here = Processes(device=torch.device("cpu"))
    encoded = encode(list(questions), tokenizer, "letter")
    found = score_encoded(model, tokenizer, encoded, processes=here, show_progress=False)
    np.testing.assert_array_equal(found, expected)


def test_a_question_that_does_not_fit_alone_is_named(tokenizer):
    model = make_model()
    model.register_forward_pre_hook(lambda *args: cuda_failure())
    with pytest.raises(InputError, match=r"question 'q\d+' takes \d+ tokens and does not fit in"):
        score(model, tokenizer, make_questions(4), show_progress=False)


def test_other_errors_of_the_forward_pass_are_not_taken_for_lack_of_memory(tokenizer):
    model = make_model()

    def fail(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        score(model, tokenizer, make_questions(4), show_progress=False)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("prompt", ["letter", "cloze"])
def test_batches_hold_every_question_once_and_little_padding(tokenizer, prompt, packed):
    tokens = Tokens.of(encode(list(make_questions(500)), tokenizer, prompt))
    batches = plan_batches(tokens, 1024, 512, packed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    each_option = prompt == "cloze" and not packed
    rows = tokens.n_options if each_option else np.ones(500, dtype=int)
    width = tokens.longest if each_option else tokens.n_tokens
    grid = [rows[b].sum() * width[b].max() for b in batches]
    assert max(grid) <= 1024
    # Separate options of one question differ in length, which no order of questions mends.
    assert sum(grid) < (1.25 if each_option else 1.05) * (rows * width).sum()


def test_batches_hold_no_more_logits_than_their_budget(tokenizer):
    tokens = Tokens.of(encode(list(make_questions(50)), tokenizer, "letter"))
    batches = plan_batches(tokens, 10**6, LOGITS_BUDGET // 7, packed=True)
    assert [len(b) for b in batches] == [7] * 7 + [1]
    assert tokens.n_kept.tolist() == [1] * 50
    cloze = encode(list(make_questions(50)), tokenizer, "cloze")
    kept = [len({(k if o > 0 else 0, o) for k, r in enumerate(q.reads) for o, _ in r})
            for q in cloze]  # fmt: skip
    assert Tokens.of(cloze).n_kept.tolist() == kept


def test_the_batch_size_follows_threads_and_free_memory(monkeypatch, one_thread):
    import psutil

    free = {"available": 10**12}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), free))
    assert automatic_batch_tokens(make_model(hidden_size=1024)) == TOKENS_PER_THREAD
    assert automatic_batch_tokens(make_model()) == NUMBERS_PER_THREAD // 48
    free["available"] = 2 * (3 * 4 * LOGITS_BUDGET) + 2 * 100 * 4 * (10 * 48 + 4 * 96)
    assert automatic_batch_tokens(make_model()) == 100
    free["available"] = 0
    assert automatic_batch_tokens(make_model()) == 1


# -- how little is computed -----------------------------------------------------------------------


def forward_tokens(model):
    """What the model is given from now on: a list of tokens per pass, padding included."""
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return seen


def test_hardly_a_token_is_computed_in_vain(tokenizer):
    """Against one row of 1,024 tokens a question, and against a whole sequence per option.

    In batches of the size that a real model gets on one thread.
    """
    how = {"batch_tokens": TOKENS_PER_THREAD, "show_progress": False}
    model, questions = make_model(), make_questions(300, k_min=4, k_max=4)
    seen = forward_tokens(model)
    letter = score(model, tokenizer, questions, **how)
    assert sum(seen) < 1.05 * letter.provenance["tokens"]
    assert 1024 * len(questions) > 20 * sum(seen)
    seen.clear()
    cloze = score(model, tokenizer, questions, prompt="cloze", **how)
    assert sum(seen) < 1.05 * cloze.provenance["tokens"]
    encoded = encode(list(questions), tokenizer, "cloze")
    whole = sum(len(q.prefix) + len(branch) for q in encoded for branch in q.branches)
    assert whole > 1.5 * sum(seen), "each question's prefix is computed once"


# -- many questions -------------------------------------------------------------------------------


def test_encoded_questions_never_exist_as_lists_all_at_once(tokenizer, monkeypatch):
    """Only a chunk of them does, and none while the model runs; flat, they take 4 bytes a token."""
    from calibrant import prompts

    gc.freeze()  # what is there already need not be looked through
    chunk = 40
    monkeypatch.setattr(prompts, "CHUNK", chunk)

    def alive():
        gc.collect()
        return sum(type(o) is prompts.EncodedQuestion for o in gc.get_objects())

    counts = []
    of = Tokens.of.__func__
    monkeypatch.setattr(
        Tokens, "of", classmethod(lambda cls, q: (counts.append(alive()), of(cls, q))[1])
    )
    model = make_model()
    model.register_forward_pre_hook(lambda *args: counts.append(-alive()))
    score(model, tokenizer, make_questions(5 * chunk), batch_tokens=4_000, show_progress=False)
    assert chunk <= max(counts) <= 2 * chunk
    assert min(counts) == 0
    encoded = encode(list(make_questions(200)), tokenizer, "letter")
    tokens = Tokens.of(encoded)
    size = sum(getattr(tokens, f.name).nbytes for f in fields(tokens) if f.name != "ids")
    assert size < 4 * len(tokens.token) + 400 * len(tokens)


def large(n, queue, tokenizer, path):
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = make_questions(100)
    questions = Questions(
        replace(base[i % 100], id=str(i), question=f"{base[i % 100].question} {i}")
        for i in range(n)
    )
    model = make_model(num_hidden_layers=1, hidden_size=8, num_attention_heads=1,
                       num_key_value_heads=1)  # fmt: skip
    answers_at(
        path,
        lambda partial: score(
            model, tokenizer, questions, batch_tokens=4096, partial=partial, show_progress=False
        ),
    )
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


@pytest.mark.slow
def test_a_hundred_thousand_questions_take_two_kilobytes_each(tokenizer, tmp_path):
    context = multiprocessing.get_context("fork")
    peaks = {}
    for n in (10_000, 100_000):
        queue = context.Queue()
        process = context.Process(
            target=large, args=(n, queue, tokenizer, tmp_path / f"{n}.parquet")
        )
        process.start()
        peaks[n] = queue.get(timeout=580)
        process.join()
    assert len(AnswerTable.load(tmp_path / "100000.parquet")) == 100_000
    each = (peaks[100_000] - peaks[10_000]) * 1024 / 90_000  # kB of a further question
    assert each < 4.0, peaks


# -- how tokens are kept --------------------------------------------------------------------------


def test_flat_tokens_take_and_join_as_lists_do(tokenizer):
    encoded = encode(list(make_questions(40)), tokenizer, "cloze")
    rows = np.array([7, 3, 39, 0])
    taken = Tokens.of(encoded).take(rows)
    for found in (taken, Tokens.join([encoded, encoded[:5]]).take(rows)):
        assert found.fingerprint == Tokens.of([encoded[i] for i in rows]).fingerprint
    assert taken.n_tokens.tolist() == [encoded[i].n_tokens for i in rows]
    assert taken.longest.tolist() == [encoded[i].longest for i in rows]
    assert Tokens.of(encoded[::-1]).fingerprint != Tokens.of(encoded).fingerprint
