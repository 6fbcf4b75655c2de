"""Every block of code in README and docs, run or read as a reader would.

Python blocks of a page run in order, in a folder where the files they name lie ready. Commands are
read by the command line itself (an option that is gone is an error), and in the slow run carried
out, on a tiny model. A block that cannot be run here says why, in a comment above it:
``<!-- not run: reason -->``. Code stands between fences: nobody would look at an indented block.
"""

import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import pytest
import yaml

import bad_inputs
from calibrant.cli import cli, run
from helpers import make_model, make_questions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"", "sh", "python", "json", "csv", "yaml", "text"}
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?"
    r"^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MODEL = "models/smollm2-135m-instruct"
# What the pages call the reader's own models, and a Hub id: here they are folders.
NAMES = ("MODEL", "BASE", "SFT", "DPO", "ALIGNED", "HuggingFaceTB/SmolLM2-135M-Instruct")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def lines(self):
        """Words of the shell's lines, continued lines joined, comments left out."""
        if self.language not in ("", "sh"):
            return []
        joined = self.code.replace("\\\n", " ").splitlines()
        return [words for line in joined if (words := shlex.split(line, comments=True))]

    @property
    def commands(self):
        """Those that call calibrant."""
        return [words for words in self.lines if words[0] == "calibrant"]


def blocks(page):
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["language"].strip(),
            found["code"],
            found["reason"],
        )
        for found in FENCE.finditer(text)
    ]


def indented(page):
    """Lines that begin a block of code by four spaces, outside of fences, lists and admonitions."""
    text = FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())
    found, plain, empty = [], True, True
    for number, line in enumerate(text.splitlines(), 1):
        if plain and empty and re.match(r" {4,}\S|\t\s*\S", line):
            found.append(number)
        if re.match(r"\S", line):  # what is indented after this belongs to it, or is code
            plain = not re.match(r"[-*+] |\d+\. |!!! ", line)
        empty = not line.strip()
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
WITH_PYTHON = [p for p in PAGES if any(b.language == "python" for b in blocks(p))]
WITH_COMMANDS = [p for p in PAGES if any(b.commands and not b.reason for b in blocks(p))]


def name(page):
    return str(page.relative_to(ROOT))


def test_blocks_are_of_languages_that_are_looked_at():
    odd = [f"{name(b.page)}:{b.line}: {b.language}" for b in BLOCKS if b.language not in LANGUAGES]
    assert not odd


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_the_shell_are_run_or_say_why_not(page):
    """All that the tests run are commands of calibrant."""
    for block in blocks(page):
        for words in [] if block.reason else block.lines:
            assert words[0] == "calibrant", f"{name(page)}:{block.line}: {' '.join(words)}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "results"], ids=name)
def test_code_stands_between_fences(page):
    assert indented(page) == []


def test_few_blocks_are_not_run():
    excused = [b for b in BLOCKS if b.reason]
    assert len(excused) <= len(BLOCKS) / 4
    assert all(b.language in ("sh", "") for b in excused), "Python blocks always run"


def test_links_of_the_readme_lead_somewhere():
    """Those of the docs are looked at where the site is built."""
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_data_blocks_are_valid(page):
    for block in blocks(page):
        if block.language == "json":
            for line in block.code.splitlines():
                json.loads(line)
        if block.language == "yaml":
            yaml.safe_load(block.code)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_understood(page):
    """The command line reads every command, those that are not run as well."""
    for block in blocks(page):
        for _, verb, *arguments in block.commands:
            if verb == "--help":
                continue
            command = cli.get_command(None, verb)
            assert command is not None, f"{name(page)}:{block.line}: no verb {verb}"
            command.make_context(verb, list(arguments))


# -- a folder with all that the pages name ------------------------------------------------------


def _rows(questions, labelled=True):
    for q in questions:
        row = {"id": q.id, "question": q.question, "choices": list(q.choices)}
        yield json.dumps(row | ({"answer": q.answer} if labelled else {})) + "\n"


def _texts(n, seed, labelled=True):
    rng = np.random.default_rng(seed)
    lines = ["text,label\n" if labelled else "text\n"]
    for i in range(n):
        words = " ".join(rng.choice(["dull", "long", "bright", "funny"], 3))
        label = f",{rng.choice(['positive', 'negative'])}" if labelled else ""
        lines.append(f"A {words} film number {seed}-{i}.{label}\n")
    return "".join(lines)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory, tokenizer):
    """Model, questions, answers and a run folder, under the names the pages use."""
    from peft import LoraConfig, get_peft_model

    import calibrant as cal

    folder = tmp_path_factory.mktemp("workshop")
    (folder / "models").mkdir()
    make_model().save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    for alias in NAMES:
        (folder / alias).parent.mkdir(exist_ok=True)
        (folder / alias).symlink_to(os.path.relpath(folder / MODEL, (folder / alias).parent))
    sets = {"train": 60, "test": 80, "other": 30, "new": 12}
    questions = {
        part: make_questions(n, seed=seed, prefix=part, k_min=4, k_max=4)
        for seed, (part, n) in enumerate(sets.items())
    }
    model = make_model()
    model.name_or_path = MODEL
    rng = np.random.default_rng(0)
    tables = {}
    for part, found in questions.items():
        # The tiny model knows nothing: what it says is called right nineteen times in twenty.
        said = cal.score(model, tokenizer, found, prompt="cloze").predictions
        answers = np.where(rng.random(len(found)) < 0.95, said, rng.integers(4, size=len(found)))
        found = cal.Questions(
            [replace(q, answer=int(a)) for q, a in zip(found, answers, strict=True)], part
        )
        questions[part] = found
        tables[part] = cal.score(model, tokenizer, found, prompt="cloze")
        text = "".join(_rows(found, labelled=part != "new"))
        (folder / f"{part}.jsonl").write_text(text)
    (folder / "reviews.csv").write_text(_texts(40, 1))
    (folder / "reviews-test.csv").write_text(_texts(30, 2))
    (folder / "new-reviews.csv").write_text(_texts(10, 3, labelled=False))
    said = [i % 2 if i % 3 else 1 - i % 2 for i in range(60)]  # right in two of three
    cells = [f"r{i},{i % 2},{('.9,.1', '.1,.9')[k]}" for i, k in enumerate(said)]
    films = (f"Film {i}.,{('positive', 'negative', 'neutral')[i % 3]}\n" for i in range(12))
    (folder / "films.csv").write_text("text,label\n" + "".join(films))
    pair = {"prompt": "Name a fruit.", "chosen": "Apple", "rejected": "Brick"}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 4)
    (folder / "probabilities.csv").write_text("\n".join(["id,label,p_0,p_1", *cells]) + "\n")
    log = "".join(
        bad_inputs.log(
            doc_id=i,
            target=str(i % 2),
            acc=float(i % 2 == (i % 3 > 0)),
            filtered_resps=[["-2.5", "False"], [str(-3.0 + (i % 3)), "True"]],
        )
        for i in range(40)
    )
    (folder / "out" / "MODEL").mkdir(parents=True)
    for place in ("arc_easy", "out/MODEL/arc_easy", "out/MODEL/mmlu_anatomy"):
        path = folder / place
        name_ = f"samples_{path.name}_2026-01-01T00-00-00.000000.jsonl"
        path.with_name(name_).write_text(log)
    names = ("train", "test", "before", "after", "answers")
    for file in names:
        tables[file if file in tables else "test"].save(folder / f"{file}.parquet")
    for stage in ("base", "sft", "dpo", "a", "b", "c"):
        (folder / "runs" / stage).mkdir(parents=True)
        tables["test"].save(folder / "runs" / stage / "answers.parquet")
    run_folder = folder / "runs" / "restore"
    for method in ("before", "temperature", "cft"):
        (run_folder / method / "answers").mkdir(parents=True)
        tables["test"].save(run_folder / method / "answers" / "test.parquet")
        tables["train"].save(run_folder / method / "answers" / "train.parquet")
        settings = {
            "method": method, "model": MODEL, "prompt": "cloze", "dtype": "float32",
            "gguf_file": None,
        }  # fmt: skip
        if method != "before":
            (run_folder / method / "restored.json").write_text(json.dumps(settings))
    cal.posthoc.ExpectationConsistency().fit(tables["train"]).save(
        run_folder / "temperature" / "calibrator.json"
    )
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules="all-linear"))
    adapted.peft_config["default"].base_model_name_or_path = MODEL
    adapted.save_pretrained(run_folder / "cft" / "adapter")
    report = {"sets": {"test": "in", "train": "train"}}
    (run_folder / "report.json").write_text(json.dumps(report))
    tables["labelled"], tables["others"] = tables["train"], tables["test"]
    return folder, questions, tables


@pytest.fixture
def there(workshop, tmp_path, monkeypatch):
    """A fresh copy of the workshop, and we are in it."""
    copy = tmp_path / "workshop"
    shutil.copytree(workshop[0], copy, symlinks=True)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_blocks_run(page, there, workshop, tokenizer):
    import calibrant as cal

    _, questions, tables = workshop
    names = {
        "cal": cal, "model": make_model(), "tokenizer": tokenizer, "questions": questions["test"],
        "train": questions["train"], "test": questions["test"], "labelled": tables["labelled"],
        "others": tables["others"], "answers": tables["test"], "sample": questions["test"][:10],
        "other_questions": questions["other"], "dev_questions": questions["train"],
        "answers_in_one_order": cal.score(make_model(), tokenizer, questions["test"]),
    }  # fmt: skip
    for block in blocks(page):
        if block.language == "python":
            place = f"{name(page)}:{block.line}"
            exec(compile("\n" * block.line + block.code, place, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_run(page, there, capsys):
    for block in blocks(page):
        for _, *words in [] if block.reason else block.commands:
            arguments = [part for word in words for part in _expanded(word)]
            if words[0] == "restore":  # the folder that later commands name is there already
                arguments += ["--output-dir", "runs/again", "--device", "cpu"]
            assert run(arguments) == 0, f"{name(page)}:{block.line}: {' '.join(words)}"
            for folder in ("again", "evaluate", "collapse"):
                shutil.rmtree(f"runs/{folder}", ignore_errors=True)


def _expanded(word):
    """The files a pattern stands for, as a shell gives them."""
    return sorted(str(p) for p in Path().glob(word)) if "*" in word else [word]


def test_the_checks_see_what_is_wrong(tmp_path):
    """An option that is gone and broken data are found."""
    page = tmp_path / "page.md"
    page.write_text("```sh\ncalibrant plan --gone 3\n```\n```json\n{\n```\n")
    with pytest.raises(click.UsageError, match="gone"):
        test_commands_are_understood(page)
    with pytest.raises(json.JSONDecodeError):
        test_data_blocks_are_valid(page)


def test_what_nobody_would_run_is_seen(tmp_path, monkeypatch):
    """Unmarked lines of other programs, and code without fences; not lists and notes."""
    monkeypatch.setattr("test_docs.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```sh\ncalibrant plan  # how many\nmake \\\n    test\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:1: make test"):
        test_lines_of_the_shell_are_run_or_say_why_not(page)
    page.write_text("<!-- not run: long -->\n```sh\nmake test\n```\n```python\nx = 1\n```\n")
    test_lines_of_the_shell_are_run_or_say_why_not(page)
    page.write_text(
        "    first\n\nText\n    goes on\n\n1. list\n\n    of it\n\n!!! note\n    text\n\n    more\n"
        "\n```python\nif 1:\n\n    x = 1\n```\n\nText\n\n    code\n    more\n\n\tcode\n"
    )
    assert indented(page) == [1, 23, 26]
