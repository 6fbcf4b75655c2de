"""Files of kilobytes that stand for gigabytes: one message, and no more memory than is allowed."""

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bad_inputs as bad
from calibrant import unpacking
from calibrant.answers import AnswerTable, padded
from calibrant.errors import InputError
from calibrant.foreign import read_table
from calibrant.preferences import load_preferences
from calibrant.questions import load_questions
from calibrant.unpacking import Parquet

BLOCK = 16 << 20
GIGABYTES = 2 << 30
MEGABYTES = 700  # of memory that a process reading a bomb may take; its imports are some 150


def gzip_bomb(content, size=GIGABYTES, head=b""):
    """A gzip file of a head and then the content over and over: of two gigabytes by default."""
    block = gzip.compress(content * (BLOCK // len(content)), 9)
    return gzip.compress(head) + block * (size // BLOCK)


def text_bomb(n=5000):
    """Questions that share one text of a megabyte: five gigabytes."""
    texts = pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array(["x" * (1 << 20)]))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"question": texts, "answer": [0] * n}), buffer, store_schema=False)
    return buffer.getvalue()


def rows_bomb(n=40):
    """Rows that are all the same: a gigabyte of numbers."""
    million = pa.table({"label": [0] * 10**6, "p_0": [0.5] * 10**6, "p_1": [0.5] * 10**6})
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, million.schema, compression="zstd") as writer:
        for _ in range(n):
            writer.write_table(million)
    return buffer.getvalue()


def lists_bomb(n=3000):
    """Questions whose options are one text of a megabyte: six gigabytes."""
    options = pa.DictionaryArray.from_arrays(np.zeros(2 * n, np.int32), pa.array(["x" * (1 << 20)]))
    lists = pa.ListArray.from_arrays(np.arange(0, 2 * n + 1, 2, dtype=np.int32), options)
    buffer = io.BytesIO()
    columns = {"question": ["q"] * n, "choices": lists, "answer": np.zeros(n, int)}
    pq.write_table(pa.table(columns), buffer, store_schema=False)
    return buffer.getvalue()


def pages_bomb(n=20):
    """Texts that differ, of eight megabytes each and of one letter: they are packed, not shared."""
    buffer = io.BytesIO()
    columns = {
        "question": [f"{i}" + "x" * (8 << 20) for i in range(n)],
        "choices": [["a", "b"]] * n,
    }
    pq.write_table(pa.table(columns), buffer, compression="zstd", use_dictionary=False)
    return buffer.getvalue()


def own_bomb(n=4000):
    """An answer table of ours whose rows share a group's name of a megabyte."""
    plain = {
        "id": [str(i) for i in range(n)], "option_logprobs": [[-0.1, -2.0]] * n,
        "option_mass": [None] * n, "label": [0] * n, "task": [""] * n,
    }  # fmt: skip
    group = pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array(["x" * (1 << 20)]))
    metadata = {b"calibrant": b'{"format_version": 1, "provenance": {}}'}
    table = pa.table({**plain, "group": group}).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


BOMBS = {
    "questions.jsonl.gz": ("q.jsonl.gz", lambda: gzip_bomb(bad.GOOD.encode()), "load_questions"),
    "one line": ("q.jsonl.gz", lambda: gzip_bomb(b" "), "load_questions"),
    "questions.csv.gz": (
        "q.csv.gz",
        lambda: gzip_bomb(b"x,1,2,0\n", head=b"question,A,B,answer\n"),
        "load_questions",
    ),
    "table.csv.gz": (
        "t.csv.gz",
        lambda: gzip_bomb(b"0,.5,.5,%s\n" % (b"x" * 4000), head=b"label,p_0,p_1,note\n"),
        "read_table",
    ),
    "preferences.jsonl.gz": (
        "p.jsonl.gz",
        lambda: gzip_bomb(b'{"prompt": "x", "chosen": "a", "rejected": "%s"}\n' % (b"b" * 4000)),
        "load_preferences",
    ),
    "a shared text": ("q.parquet", text_bomb, "load_questions"),
    "a shared option": ("q.parquet", lists_bomb, "load_questions"),
    "packed texts": ("q.parquet", pages_bomb, "load_questions"),
    "rows without end": ("t.parquet", rows_bomb, "read_table"),
    "answers": ("a.parquet", own_bomb, "AnswerTable.load"),
}
READ = """
import sys
from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.foreign import read_table
from calibrant.preferences import load_preferences
from calibrant.questions import load_questions
try:
    {load}(sys.argv[1])
except InputError as error:
    print(error, file=sys.stderr)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell its memory")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_and_takes_no_memory(bomb, tmp_path):
    name, make, load = BOMBS[bomb]
    path = tmp_path / name
    path.write_bytes(make())
    assert path.stat().st_size < 8 << 20
    done = subprocess.run(
        [sys.executable, "-c", READ.format(load=load), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.startswith(f"{path}: unpacks to more than ")
    assert done.stderr.count("\n") == 1
    assert int(done.stdout) < MEGABYTES << 10  # VmHWM is in kB


def test_what_is_packed_well_but_is_no_bomb_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "ALWAYS", 1 << 20)
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(bad.GOOD.encode() + b"\n" * ((1 << 20) - 200)))
    assert path.stat().st_size < 10_000
    assert len(load_questions(path)) == 1


def test_the_limit_grows_with_the_file(tmp_path, monkeypatch):
    """Twenty times its size: noise that cannot be packed makes room for what can."""
    monkeypatch.setattr(unpacking, "ALWAYS", 1 << 20)
    noise = np.random.default_rng(0).integers(0, 256, 3 << 15, np.uint8).tobytes().hex().encode()
    path = tmp_path / "q.jsonl.gz"
    many = bad.GOOD.encode() + b"\n" * (1 << 20)
    path.write_bytes(gzip.compress(many))
    with pytest.raises(InputError, match="unpacks to more than 1 MiB"):
        load_questions(path)
    row = bad.GOOD.encode().replace(b"1 + 1", noise)
    path.write_bytes(gzip.compress(many) + gzip.compress(row))
    assert len(load_questions(path)) == 2


@pytest.mark.parametrize("rows", [999, 5000])
def test_parquet_gives_what_pyarrow_gives(tmp_path, rows):
    """Shared texts, missing ones, options as lists, floats, several row groups, odd types."""
    n = 5000
    table = pa.table(
        {
            "text": pa.array([None if i % 7 == 0 else f"t{i % 3}" for i in range(n)]),
            "large": pa.array([f"{i}" for i in range(n)], pa.large_string()),
            "lists": pa.array([[f"a{i % 5}", None] if i % 2 else None for i in range(n)]),
            "many": pa.array([[f"{i}-{k}" + "x" * 100 for k in range(3)] for i in range(n)]),
            "numbers": pa.array([[0.5] * (i % 4) for i in range(n)]),
            "struct": pa.array([{"text": ["a", "b"], "label": [1, i]} for i in range(n)]),
            "shared": pa.array([f"t{i % 3}" for i in range(n)]).dictionary_encode(),
            "bytes": pa.array([b"\xff"] * n),
            "day": pa.array([i for i in range(n)], pa.date32()),
        }
    )
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=rows)
    file = Parquet(path)
    assert file.names == table.column_names
    assert file.table(file.names).to_pylist() == table.to_pylist()
    assert list(file.rows(["lists", "text"])) == table.select(["text", "lists"]).to_pylist()


def test_a_parquet_file_that_is_damaged_inside_is_one_message(tmp_path):
    path = tmp_path / "q.parquet"
    path.write_bytes(bad.own().replace(b"task", b"\x8bask"))  # a name that is no text; by atheris
    with pytest.raises(InputError, match=r"q\.parquet: cannot be read as Parquet"):
        AnswerTable.load(path)
    table = pa.table({"label": pa.array([2**62], pa.timestamp("us")), "p_0": [0.5], "p_1": [0.5]})
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"q\.parquet: cannot be read as Parquet"):
        read_table(path)


def test_damaged_gzip_is_one_message(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    packed = bytearray(gzip.compress(os.urandom(4000)))
    packed[40:60] = bytes(20)
    path.write_bytes(packed)
    for load in (load_preferences, load_questions):
        with pytest.raises(InputError, match="damaged or truncated gzip"):
            load(path)


def test_one_long_row_does_not_make_all_rows_long():
    with pytest.raises(InputError, match="100,000 questions of which one has 10,000 options"):
        padded([[-1.0, -1.0]] * 99_999 + [[-1.0] * 10_000])
