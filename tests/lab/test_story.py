import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from calibrant import posthoc
from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.lab.page import write_page
from calibrant.lab.story import CHAPTERS, IN, OUT, LabSettings, plan, tell
from calibrant.runs import TRAIN
from helpers import TINY_LAB

REPOSITORY = Path(__file__).parents[2]


def test_a_step_comes_after_the_one_it_starts_from():
    seen = set()
    waiting = plan(LabSettings())
    for _ in range(5):
        seen |= {s.name for s in waiting if not s.after or s.after in seen}
    assert seen == {s.name for s in waiting}
    assert {s.chapter for s in waiting} == set(range(len(CHAPTERS)))


@pytest.mark.slow
def test_every_checkpoint_has_its_tables(tiny_story):
    for checkpoint in tiny_story.checkpoints_in_order():
        step = checkpoint.step
        tuned = step.data in ("fresh", "few", "repeated") and step.kind == "fine-tune"
        tuned = tuned or step.name in ("sft2-temperature", "sft1-early-temperature")
        assert set(checkpoint.tables) == {IN, OUT} | ({TRAIN} if tuned else set()), step.name
        assert (checkpoint.folder / "model").is_dir() == (checkpoint.step.kind != "temperature")


@pytest.mark.slow
def test_methods_of_a_chapter_see_the_same_labels_and_no_test_question(tiny_story):
    few = {
        c.step.name: c.tables[TRAIN].ids
        for c in tiny_story.of(3)
        if c.step.name != "few-temperature"
    }
    assert len(set(few.values())) == 1
    tested = set(tiny_story["sft2"].tables[IN].groups)
    for name in ("sft2", "cft"):
        shared = tested & set(tiny_story[name].tables[TRAIN].groups)
        assert not shared


@pytest.mark.slow
def test_a_temperature_is_fitted_on_labels_its_model_has_not_seen(tiny_story):
    """By hand: on the held-out half for a tuned model, on every label for the aligned one."""
    from calibrant.lab.story import _Lab, _model

    lab = _Lab(tiny_story.settings)
    step = next(s for s in plan(tiny_story.settings) if s.name == "sft2-temperature")
    train, held_out = lab.labelled(step)
    assert len(train) == len(held_out) == 20
    for name, start, labels in (
        ("sft2-temperature", "sft2", list(held_out)),
        ("few-temperature", tiny_story.aligned.step.name, [*train, *held_out]),
    ):
        model = _model(tiny_story[start].folder)
        expected = posthoc.TemperatureScaling().fit(lab.answer(model, labels)).temperature
        saved = posthoc.load(tiny_story[name].folder / "calibrator.json")
        assert saved.temperature == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_a_second_call_takes_up_where_the_first_was_killed(tmp_path, tiny_story):
    """Kill the whole process group in the middle; what was done stays, the end is the same."""
    folder = tmp_path / "run"
    code = (
        "from calibrant.lab.story import LabSettings, tell\n"
        f"if __name__ == '__main__': tell(LabSettings(**{TINY_LAB!r}), {str(folder)!r})"
    )
    script = tmp_path / "story.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while len(list(folder.glob("*/done"))) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {p: p.stat().st_mtime_ns for p in folder.glob("*/done")}
    story = tell(LabSettings(**TINY_LAB), folder, show_progress=False)
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    for name in ("sft", "rcft", "sft1-early-temperature"):
        for on, table in story[name].tables.items():
            expected = tiny_story[name].tables[on]
            np.testing.assert_array_equal(table.logprobs, expected.logprobs)


@pytest.mark.slow
def test_the_page_holds_every_chapter_figure_and_model(tmp_path, tiny_story):
    write_page(tiny_story, 12.0)
    html = (tiny_story.folder / "report.html").read_text()
    assert html.count("<svg") == html.count("<figure") == 6
    for text in (*CHAPTERS, *(c.step.title for c in tiny_story.checkpoints_in_order())):
        assert text in html.replace("&#39;", "'")
    # Nothing is loaded from elsewhere.
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#)|@import|url\((?!#)', html)
    numbers = json.loads((tiny_story.folder / "report.json").read_text())
    assert set(numbers["checkpoints"]) == set(tiny_story.checkpoints)
    table = AnswerTable.load(tiny_story["rcft"].folder / "answers" / f"{IN}.parquet")
    got = numbers["checkpoints"]["rcft"][IN]["accuracy"]
    assert got == pytest.approx(table.correct.mean())


@pytest.mark.slow
def test_other_commands_read_the_folder(tiny_story, capsys):
    folder = tiny_story.folder
    assert run(["compare", str(folder / "dpo-0.1"), str(folder / "cft"),
                "--output-dir", str(folder.parent / "compared")]) == 0  # fmt: skip
    assert "wildlife" in capsys.readouterr().out
    arguments = ["diagnose", "--train", str(folder / "sft2"), "--test",
                 str(folder / "sft2" / "answers" / f"{IN}.parquet")]  # fmt: skip
    assert run([*arguments, "--target", str(folder / "truth")]) == 0
    shown = capsys.readouterr().out
    z = tiny_story.bounds("sft2", TRAIN).z
    assert re.search(rf"beyond the target\s+\S?\s+{z:.1f}".replace("-", r"-"), shown), shown
    assert run([*arguments, "--target", str(folder / "sft")]) == 1
    assert "lacks 20 questions" in capsys.readouterr().err


@pytest.mark.slow
def test_other_settings_or_sizes_are_refused(tmp_path, tiny_story):
    with pytest.raises(InputError, match="seed was 0, now 1"):
        tell(LabSettings(seed=1, **TINY_LAB), tiny_story.folder, show_progress=False)
    with pytest.raises(InputError, match="held_out 40, expected 1 to few - 1"):
        tell(LabSettings(**TINY_LAB | {"held_out": 40}), tmp_path / "x", show_progress=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_fast_demo_runs(tmp_path):
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "calibrant", "demo", "--fast", "--output-dir", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    for title in CHAPTERS:
        assert title in done.stdout
    assert (folder / "report.html").stat().st_size < 1_500_000
    shutil.rmtree(folder)
