"""Every loader, given any bytes: it loads them or raises the documented error."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import LOADERS, try_to_load

TOKENS = [
    b"{}", b"[]", b"null", b"true", b"NaN", b"1e999", b"-1", b"0", b'""', b'"', b",", b"\n", b"\r",
    b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"9" * 400, b"[" * 1200, b"&a [*a]",
    b'"\\ud800"', b"!!python/name:os.system", b"question", b"format_version",
]  # fmt: skip


@st.composite
def damaged(draw, valid):
    """A valid file with a few bytes replaced, cut out, repeated or put in; or any bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = valid
    for _ in range(draw(st.integers(1, 4))):
        i, j = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        new = draw(st.sampled_from(TOKENS) | st.binary(max_size=3) | st.just(data[i:j] * 2))
        data = data[:i] + new + data[j if draw(st.booleans()) else i :]
    return data[: 1 << 14]


def fuzz(loader, examples):
    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 100,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged(LOADERS[loader][1]))
    def check(data):
        with tempfile.TemporaryDirectory() as folder:
            try_to_load(loader, data, folder)

    check()


@pytest.mark.parametrize("loader", LOADERS)
def test_no_crash(loader):
    fuzz(loader, 30)


@pytest.mark.fuzz
@pytest.mark.parametrize("loader", LOADERS)
def test_no_crash_in_a_thousand(loader):
    fuzz(loader, 1000)


@pytest.mark.fuzz
@pytest.mark.parametrize("loader", LOADERS)
def test_no_crash_led_by_coverage(loader, tmp_path):
    """atheris looks for inputs that reach code not reached before, for five seconds at most."""
    pytest.importorskip("atheris")
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), loader, "-seed=1", "-runs=20000", "-max_total_time=5",
         f"-artifact_prefix={tmp_path}/"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.glob("crash-*"))


def test_the_fuzzer_finds_a_loader_that_crashes(tmp_path, monkeypatch):
    def careless(path):
        if b"9" * 9 in path.read_bytes():
            raise KeyError("format")

    monkeypatch.setitem(LOADERS, "careless", ("x", b"{}", careless))
    with pytest.raises(KeyError):
        fuzz("careless", 400)
