"""Run folders: what a command leaves behind, and how it is taken up again.

A run folder holds ``config.yaml`` (everything needed to repeat it), answer tables
(``answers.parquet``, or ``answers/SET.parquet`` for several test sets), ``report.json`` and
``report.md``. A restored model adds ``restored.json`` and an ``adapter/`` or ``calibrator.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from calibrant import posthoc
from calibrant.answers import AnswerTable, is_answer_table
from calibrant.errors import InputError
from calibrant.files import read_json, read_yaml, replacing_folder, write_text
from calibrant.foreign import FILE_TYPES, read_table
from calibrant.prompts import Prompt
from calibrant.scoring.harness import Metric as HarnessMetric
from calibrant.scoring.harness import harness_logs, read_harness_log
from calibrant.scoring.journal import Journal
from calibrant.scoring.processes import ALONE, Processes
from calibrant.version import __version__

if TYPE_CHECKING:
    from calibrant.questions import Question

BEFORE = "before"  # folder of the model's answers as it came, among a restoration's methods
TRAIN = "train"  # name of the training sample among a restoration's sets
_PACKAGES = ("numpy", "scipy", "torch", "transformers", "peft", "accelerate")


def versions() -> dict[str, str]:
    """Versions a result depends on, those installed."""
    found = {"calibrant": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# Files of a model's folder that change what it answers.
_OF_MODEL = (
    "*.safetensors", "*.bin", "*.pt", "*.gguf", "config.json", "adapter_config.json",
    "tokenizer*", "*.jinja", "vocab*", "merges.txt",
)  # fmt: skip
# Hashes of `weights_of` in a run's configuration.
_WHOSE_FILES = {"weights": "model", "reference_weights": "reference model"}
_BLOCKS, _BLOCK = 64, 4096  # read of a file: of one that was trained on, any differs


def weights_of(model: str) -> dict[str, str]:
    """What tells a model in a folder here from another that lay there: ``{"weights": hash}``.

    The hash is of a few blocks of every file that counts, an adapter's base model with them; {} for
    what is no folder here, a Hub id say.
    """
    adapter, bases = Path(model) / "adapter_config.json", []
    if adapter.is_file():
        config = read_json(adapter)
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        bases += [base] if isinstance(base, str) else []
    files = [path for folder in (model, *bases) for path in _files_of(Path(folder))]
    if not files:
        return {}
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        step = max(_BLOCK, size // _BLOCKS)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return {"weights": digest.hexdigest()[:16]}


def _files_of(folder: Path) -> list[Path]:
    return sorted({f for kind in _OF_MODEL for f in folder.glob(kind) if f.is_file()})


def open_run(folder: str | os.PathLike[str], config: dict[str, Any]) -> Path:
    """Create a run folder, or open one that the same configuration began.

    Parameters
    ----------
    config : JSON-able; its ``versions`` entry is written but not compared.

    Raises
    ------
    InputError
        If the folder holds something else, or cannot be written.
    """
    path = Path(folder).expanduser()
    config_file = path / "config.yaml"
    wanted = json.loads(json.dumps(config))
    if config_file.exists():
        found = read_yaml(config_file)
        differing = _first_difference(found, wanted)
        if differing:
            raise InputError(
                f"{path}: holds a run with another configuration ({differing}); expected the "
                "same one to go on with it, or another --output-dir"
            )
        return path
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: is not empty and not a run folder; expected a new --output-dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(config_file, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    return path


@contextmanager
def nothing_left_of_a_failure(folder: Path) -> Iterator[None]:
    """Take a run folder away again where the run fails before anything of it is finished.

    A mistyped model then does not stand in the way of the right one.
    """
    try:
        yield
    except InputError:
        files = [path for path in folder.rglob("*") if path.is_file()]
        # The plan of partial results comes before the first of them.
        if all(p.name in ("config.yaml", "plan.json") or not p.stat().st_size for p in files):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _first_difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "unreadable config.yaml"
    for key in [*wanted, *found]:
        if key == "versions" or found.get(key) == wanted.get(key):
            continue
        if key in _WHOSE_FILES:
            if key in found and key in wanted:
                return f"the {_WHOSE_FILES[key]}'s files have changed since"
            continue  # a run from before this was noted, or a model that is gone: nothing to ask
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            return _first_difference(old, new)
        return f"{key} was {old!r}, now {new!r}"
    return ""


def set_name(source: str) -> str:
    """Short name of a data source, safe as a file name.

    Examples
    --------
    >>> set_name("../data/arc_easy/test.jsonl.gz"), set_name("allenai/openbookqa:test")
    ('arc_easy-test', 'openbookqa-test')
    """
    path = Path(source)
    name = re.sub(r"(\.(jsonl|csv|parquet|gz))+$", "", path.name)
    if path.suffix and path.parent.name not in ("", ".."):
        name = f"{path.parent.name}-{name}"
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "questions"


def read_answers(
    path: str | os.PathLike[str], *, metric: HarnessMetric = "acc"
) -> dict[str, AnswerTable]:
    """Answer tables of a run folder or a file, by test set.

    A file may be an ``answers.parquet``, a CSV or Parquet table of probabilities from elsewhere
    (`calibrant.foreign`), or a log of ``lm-eval --log_samples``; a folder a run folder, or one of
    lm-eval output, which has a set for each task.

    Parameters
    ----------
    metric : for lm-eval logs, see `calibrant.scoring.harness.read_harness_log`.

    Raises
    ------
    InputError
        If there are none, or one cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; expected a run folder, a file of answers, or lm-eval "
            "output"
        )
    if path.is_file():
        table = _read_file(path, metric)
        return {set_name(str(table.provenance.get("task") or path.name)): table}
    single, several = path / "answers.parquet", path / "answers"
    if single.is_file():
        table = AnswerTable.load(single)
        return {set_name(str(table.provenance.get("data") or "answers")): table}
    tables = {p.stem: AnswerTable.load(p) for p in sorted(several.glob("*.parquet"))}
    if not tables and next(path.rglob("samples_*.jsonl"), None) is not None:
        logs = [read_harness_log(log, metric=metric) for log in harness_logs(path)]
        return {set_name(table.provenance["task"]): table for table in logs}
    if not tables:
        inside = sorted(p.parent.name for p in path.glob("*/answers") if p.is_dir())
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise InputError(
            f"{path}: holds no answer table; expected a run folder with answers.parquet or "
            "answers/, a folder of lm-eval output with samples_*.jsonl, or a file: Parquet, CSV "
            f"or samples_*.jsonl{hint}"
        )
    return tables


def answers_in_domain(path: str | os.PathLike[str]) -> AnswerTable:
    """Give a run's one answer table; of a restored model its own domain's test sets, pooled.

    Tasks of lm-eval are pooled too.

    Raises
    ------
    InputError
        As `read_answers`, or if there are several sets and it is not known which is meant.
    """
    from calibrant.diagnosis.comparison import pooled

    tables = read_answers(path)
    if len(tables) == 1:
        return next(iter(tables.values()))
    domains = set_domains(path)
    known = {name: table for name, table in tables.items() if domains.get(name) == "in"}
    meant = known or {name: table for name, table in tables.items() if name != TRAIN}
    if len(meant) == 1:
        return next(iter(meant.values()))
    if known:
        return pooled(known)
    if all("task" in table.provenance for table in meant.values()):
        return AnswerTable.pool(list(meant.values()))
    raise one_table(path, tables)


def one_table(path: str | os.PathLike[str], tables: Mapping[str, AnswerTable]) -> InputError:
    """The error of several answer tables where one is expected."""
    name = next(iter(tables))
    return InputError(
        f"{path}: holds {len(tables)} answer tables ({', '.join(tables)}); expected one: give its "
        f"file, as {Path(path) / 'answers' / name}.parquet"
    )


def holds_answers(source: str) -> bool:
    """Whether this is a file or a folder that `read_answers` reads, rather than a model."""
    path = Path(source).expanduser()
    if path.is_file() or (path / "answers.parquet").is_file() or (path / "answers").is_dir():
        return True
    return next(path.rglob("samples_*.jsonl"), None) is not None


def _read_file(path: Path, metric: HarnessMetric) -> AnswerTable:
    if path.suffix == ".jsonl":
        return read_harness_log(path, metric=metric)
    if path.suffix == ".parquet" and is_answer_table(path):
        return AnswerTable.load(path)
    if path.name.endswith(FILE_TYPES):
        return read_table(path)
    raise InputError(
        f"{path}: unknown file type; expected an answer table as {', '.join(FILE_TYPES)}, or "
        "lm-eval's samples_TASK_DATE.jsonl"
    )


def answers_at(
    path: Path, ask: Callable[[Path], AnswerTable], processes: Processes = ALONE
) -> AnswerTable:
    """Answer table of a Parquet file, made now unless it is there already.

    Parameters
    ----------
    ask : makes the table. It is given the folder for partial results, which goes when the table is
        saved: a run killed on the way goes on there.
    processes : all call this alike; the first one writes.
    """
    partial = path.with_suffix(".partial")
    if not processes.of_first(path.exists()):
        table = ask(partial)
        if processes.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            table.save(path)
    if processes.rank == 0:
        Journal(partial).remove()
    processes.of_first(None)  # nobody reads before the file is there
    return AnswerTable.load(path)


@dataclass(frozen=True)
class Restored:
    """A restored model: the base model with its adapter or calibrator.

    Attributes
    ----------
    folder : where it was loaded from.
    settings : content of ``restored.json``: ``method``, ``model``, ``prompt``, ``dtype``,
        ``gguf_file``.
    device : where the model runs; "auto" is the GPU or MPS device if there is one, else the CPU.
    """

    folder: Path
    settings: dict[str, Any]
    device: str = "auto"

    @property
    def calibrator(self) -> posthoc.Calibrator | None:
        """The calibrator of its probabilities, None if the weights were restored instead."""
        file = self.folder / "calibrator.json"
        return posthoc.load(file) if file.is_file() else None

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        from calibrant.scoring.models import load_model, merged, on_top

        whole, adapter = self.folder / "model", self.folder / "adapter"
        model, tokenizer = load_model(
            str(whole) if whole.is_dir() else self.settings["model"],
            dtype=self.settings["dtype"],
            device=self.device,
            gguf_file=None if whole.is_dir() else self.settings["gguf_file"],
            quantize=self.settings.get("quantize"),
        )
        if adapter.is_dir():
            model = merged(on_top(model, str(adapter)))
        return model, tokenizer

    def answer(
        self, questions: Sequence[Question], *, partial: str | os.PathLike[str] | None = None
    ) -> AnswerTable:
        """Calibrated answer table of labelled questions; loads the model on first use.

        Parameters
        ----------
        partial : folder that keeps what is finished, see `calibrant.score`.
        """
        calibrator = self.calibrator  # read first: what is wrong with it is known at once
        from calibrant.scoring.local import score

        model, tokenizer = self._network
        answers = score(
            model, tokenizer, questions, prompt=self.settings["prompt"], partial=partial
        )
        return answers if calibrator is None else calibrator.transform(answers)

    def predict_proba(
        self, questions: Sequence[Question], *, partial: str | os.PathLike[str] | None = None
    ) -> NDArray[np.float64]:
        """Calibrated option probabilities, (N, K) float64; 0 beyond a question's own options.

        Answers are not looked at and may be None (``load_questions(..., labelled=False)``).
        """
        # A table has labels; these never leave this function.
        asked = [replace(question, answer=0) for question in questions]
        return self.answer(asked, partial=partial).probs()

    def predict(self, questions: Sequence[Question]) -> NDArray[np.int64]:
        """Index of each question's most probable option, the first on ties, (N,) int64."""
        found: NDArray[np.int64] = self.predict_proba(questions).argmax(axis=1)
        return found

    def held_out(self) -> AnswerTable:
        """Calibrated answers to the in-domain test questions of the run, exact duplicates once.

        Of several test sets the ids become ``set:id``.
        Neither training nor fitting saw them, so that they can show what to expect of new ones.

        Raises
        ------
        InputError
            If the run folder this model stands in, or its answers, are not there any more, or the
            run kept test questions among those it learnt from (``--overlap keep``).
        """
        from calibrant.diagnosis.comparison import pooled

        report = self.folder.parent / "report.json"
        content = read_json(report)
        domains = content.get("sets") if isinstance(content, dict) else None
        names = [n for n, d in domains.items() if d == "in"] if isinstance(domains, dict) else []
        if not names:
            raise InputError(
                f"{report}: names no test set of the domain; expected the report of the run that "
                "made this model, beside its folder"
            )
        settings = content.get("settings")
        if isinstance(settings, dict) and settings.get("overlap") == "keep":
            raise InputError(
                f"{report}: the run kept test questions among those it learnt from (overlap keep), "
                "so that they promise nothing about new ones; expected a run with --overlap drop"
            )
        tables = {n: AnswerTable.load(self.folder / "answers" / f"{n}.parquet") for n in names}
        # Ids of several files may be their line numbers.
        whole = pooled(tables) if len(tables) > 1 else AnswerTable.pool([*tables.values()])
        first = {group: row for row, group in reversed(list(enumerate(whole.groups)))}
        return whole.select(sorted(first.values()))

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Write model and tokenizer as one folder, the adapter merged, which anything can serve.

        The sum is taken in float32 and written in the dtype the run had; safetensors only. A
        calibrator that belongs to the weights comes along as ``calibrator.json``.

        Raises
        ------
        InputError
            If the folder is not new, the method changed no weights, or the base model has 4 bits:
            the adapter was measured on its rounded weights, and the sum does not fit into them.
        """
        import torch

        from calibrant.scoring.models import load_model, load_tokenizer, on_top

        target = Path(folder)
        adapter, whole = self.folder / "adapter", self.folder / "model"
        if not adapter.is_dir() and not whole.is_dir():
            raise InputError(
                f"{self.folder}: {self.settings['method']} changed no weights: the model is "
                f"{self.settings['model']} as it is, and its answers go through calibrator.json; "
                "expected a model restored by fine-tuning"
            )
        if quantize := self.settings.get("quantize"):
            raise InputError(
                f"{self.folder}: was trained and measured on a base model of 4 bits ({quantize}); "
                "merged into the full weights it would answer otherwise. Expected a run without "
                f"--quantize; or serve {adapter} on the {quantize} model, as calibrant predict does"
            )
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target}: is there already; expected a new folder")
        source = str(whole) if whole.is_dir() else self.settings["model"]
        gguf_file = None if whole.is_dir() else self.settings["gguf_file"]
        model, _ = load_model(source, dtype="float32", device="cpu", gguf_file=gguf_file)
        if adapter.is_dir():
            model = on_top(model, str(adapter)).merge_and_unload()
        with replacing_folder(target) as draft:
            model.to(getattr(torch, self.settings["dtype"])).save_pretrained(draft)
            load_tokenizer(source, gguf_file=gguf_file).save_pretrained(draft)
            if (calibrator := self.calibrator) is not None:
                calibrator.save(draft / "calibrator.json")
        return target


def load(folder: str | os.PathLike[str], *, device: str = "auto") -> Restored:
    """Load what `calibrant restore` made: a method's folder, or a run of one method.

    The model itself is loaded when it is first asked.

    Raises
    ------
    InputError
        If the folder holds no restored model, or several.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected one that calibrant restore made")
    found = [path] if (path / "restored.json").is_file() else []
    found = found or sorted(p.parent for p in path.glob("*/restored.json"))
    if len(found) != 1:
        names = ", ".join(str(p) for p in found) or "none"
        raise InputError(
            f"{path}: holds {len(found)} restored models ({names}); expected exactly one: give "
            "the folder of one method"
        )
    file = found[0] / "restored.json"
    settings = read_json(file)
    _check_settings(file, settings)
    return Restored(found[0], settings, device)


def _check_settings(file: Path, settings: Any) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "method": (str,),
        "model": (str,),
        "prompt": (str, dict),
        "dtype": (str,),
        "gguf_file": (str, type(None)),
    }
    if not isinstance(settings, dict) or (missing := set(kinds) - set(settings)):
        lacks = f"lacks {sorted(missing)}" if isinstance(settings, dict) else "is no JSON object"
        raise InputError(f"{file}: {lacks}; expected a restored.json of calibrant")
    for name, kind in kinds.items():
        if not isinstance(settings[name], kind):
            raise InputError(
                f"{file}: {name} {settings[name]!r}, expected a restored.json of calibrant"
            )
    try:
        Prompt.of(settings["prompt"])
    except (InputError, TypeError) as error:
        raise InputError(f"{file}: {error}") from None


def run_folders(runs: Sequence[str]) -> dict[str, str]:
    """Names of runs, and where each one's answers are.

    The folder of a restoration stands for all its methods, the model before first. A run is called
    as its folder is, or by its whole path where two would share a name.

    Examples
    --------
    >>> run_folders(["runs/base", "runs/tuned"])
    {'base': 'runs/base', 'tuned': 'runs/tuned'}
    """
    paths: list[Path] = []
    for run in map(Path, runs):
        methods = [p.parent for p in run.glob("*/answers") if p.is_dir()]
        alone = not methods or (run / "answers").is_dir() or (run / "answers.parquet").is_file()
        # The order of the run, which is that of its report; others after it.
        known = _report(run).get("reports")
        known = known if isinstance(known, dict) else {}
        order = {name: i for i, name in enumerate([BEFORE, *known])}
        methods.sort(key=lambda p: (order.get(p.name, len(order)), p.name))
        paths += [run] if alone else methods
    paths = list(dict.fromkeys(paths))
    names = [p.resolve().name if p.is_dir() else set_name(str(p)) for p in paths]
    return {
        str(path) if names.count(name) > 1 else name: str(path)
        for name, path in zip(names, paths, strict=True)
    }


def set_domains(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Domain of each test set of a restoration's method, "in", "out" or "train"; {} if unknown."""
    domains = _report(Path(folder).parent).get("sets")
    return {n: str(d) for n, d in domains.items()} if isinstance(domains, dict) else {}


def _report(folder: Path) -> dict[str, Any]:
    """Content of a run's ``report.json``; {} where there is none to be read."""
    try:
        content = read_json(folder / "report.json")
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}
