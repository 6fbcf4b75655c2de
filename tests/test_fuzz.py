"""Every loader, given any bytes: it loads them or raises the documented error, and soon."""

import json
import math
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz
from fuzz import LOADERS, try_to_load, valid

TOKENS = [
    b"{}", b"[]", b"null", b"true", b"NaN", b"1e999", b"-1", b"0", b'""', b'"', b",", b"\n", b"\r",
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"9" * 400, b"[" * 1200, b"&a [*a]",
    b'"\\ud800"', b"!!python/name:os.system", b"question", b"format_version", b"!!int x",
    b"2026-13-32", b"9" * 5000,
]  # fmt: skip
VALUES = [
    None, True, [], {}, "", "x", "\ud800", "\x00", -1, 0, 1.5, 2**63, 10**400, -(10**400), math.inf,
    -math.inf, math.nan,
    [[1, 2]], {"a": 1}, [None], "²",
]  # fmt: skip


@st.composite
def damaged(draw, good):
    """A valid file with a few bytes replaced, cut out, repeated or put in; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = good
    for _ in range(draw(st.integers(1, 4))):
        i, j = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        new = draw(st.sampled_from(TOKENS) | st.binary(max_size=3) | st.just(data[i:j] * 2))
        data = data[:i] + new + data[j if draw(st.booleans()) else i :]
    return data[: 1 << 14]


@st.composite
def altered(draw, good):
    """A valid JSON file (which is YAML, too) of which a few values are others, or left out."""
    content = json.loads(good)
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while place:
            name = draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            if isinstance(place[name], dict | list) and place[name] and draw(st.integers(0, 3)):
                place = place[name]
                continue
            if draw(st.integers(0, 3)):
                place[name] = deepcopy(draw(st.sampled_from(VALUES)))
            else:
                del place[name]
            break
    return json.dumps(content).encode()


def files(loader):
    """Strategy of files for a loader, near to valid ones."""
    good = valid(loader)
    try:
        json.loads(good)
    except ValueError:
        return damaged(good)
    return damaged(good) | altered(good)


def search(loader, examples):
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 100,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(files(loader))
    def check(data):
        with tempfile.TemporaryDirectory() as folder:
            try_to_load(loader, data, folder)

    check()


@pytest.mark.parametrize("loader", LOADERS)
def test_no_crash(loader):
    search(loader, 30)


@pytest.mark.fuzz
@pytest.mark.parametrize("loader", LOADERS)
def test_no_crash_in_a_thousand(loader):
    search(loader, 1000)


@pytest.mark.fuzz
@pytest.mark.parametrize("loader", LOADERS)
def test_no_crash_led_by_coverage(loader, tmp_path):
    """atheris looks for inputs that reach code not reached before, for five seconds at most."""
    pytest.importorskip("atheris")
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), loader, "-seed=1", "-runs=20000", "-max_total_time=5",
         "-timeout=30", f"-artifact_prefix={tmp_path}/"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.glob("*-*"))  # crash-…, timeout-…, oom-…, slow-unit-…


def test_the_fuzzer_finds_a_loader_that_crashes(monkeypatch):
    def careless(path):
        if b"9" * 9 in path.read_bytes():
            raise KeyError("format")

    monkeypatch.setitem(LOADERS, "careless", ("x", lambda: b"{}", careless))
    with pytest.raises(KeyError):
        search("careless", 400)


def test_the_fuzzer_finds_a_loader_that_trusts_json(monkeypatch):
    def careless(path):
        len(json.loads(path.read_text(errors="replace"))["sets"]["a"])

    monkeypatch.setitem(LOADERS, "careless", ("x", lambda: {"sets": {"a": []}}, careless))
    with pytest.raises((KeyError, TypeError, ValueError, BaseExceptionGroup)):
        search("careless", 400)


def test_the_fuzzer_finds_a_loader_that_takes_too_long(monkeypatch, tmp_path):
    def slow(path):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.01)
    monkeypatch.setitem(LOADERS, "slow", ("x", lambda: b"{}", slow))
    with pytest.raises(AssertionError, match="2 bytes took"):
        try_to_load("slow", b"{}", tmp_path)
