"""Append-only partial results: a run killed at any moment goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrant.errors import InputError
from calibrant.files import read_json, write_json

_PLAN = "plan.json"


class Journal:
    """A folder of finished pieces of work: ``plan.json`` and one ``RANK.jsonl`` per process.

    The plan says what the pieces are pieces of. Every line of a ``.jsonl`` file is one finished
    piece, ``CRC32 [index, value]``. A process killed while it writes leaves a torn
    last line; its checksum gives it away, it is dropped and that piece is done again.

    Parameters
    ----------
    folder : made by `begin`.

    Attributes
    ----------
    plan : the plan an earlier run left, {} if none did.

    Raises
    ------
    InputError
        If the folder holds a ``plan.json`` that cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = Journal(Path(folder) / "partial")
    ...     _ = journal.begin({"batches": 3})
    ...     with journal.writing() as write:
    ...         write(2, [0.5, 0.25])
    ...     again = Journal(Path(folder) / "partial")
    ...     again.plan, again.begin({"batches": 3})
    ({'batches': 3}, {2: [0.5, 0.25]})
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.plan: dict[str, Any] = {}
        plan = self.folder / _PLAN
        if plan.exists():
            found = read_json(plan)
            if not isinstance(found, dict):
                raise InputError(
                    f"{plan}: is no JSON object; expected the plan of an unfinished run: remove "
                    "the folder to start over"
                )
            self.plan = found

    def begin(self, plan: dict[str, Any]) -> dict[int, Any]:
        """Take up an earlier run of the same plan, or begin: the values already there, by index.

        Raises
        ------
        InputError
            If an earlier run had another plan, or the folder cannot be written.
        """
        wanted = json.loads(json.dumps(plan))
        if not self.plan:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / _PLAN, wanted)
            except OSError as error:
                raise InputError(f"{self.folder}: cannot be written: {error}") from error
            self.plan = wanted
        for name in {**wanted, **self.plan}:  # in the order given
            was, now = self.plan.get(name), wanted.get(name)
            if was != now:
                raise InputError(
                    f"{self.folder}: holds partial results of another run ({name} was {was!r}, "
                    f"now {now!r}); expected the same to go on with it: remove the folder to "
                    "start over"
                )
        done: dict[int, Any] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            done.update(_records(file)[0])
        return done

    @contextmanager
    def writing(self, rank: int = 0) -> Iterator[Callable[[int, Any], None]]:
        """Open this process's file, without a torn last line; yields ``write(index, value)``."""
        path = self.folder / f"{rank}.jsonl"
        whole = _records(path)[1] if path.exists() else 0
        with open(path, "ab") as file:
            file.truncate(whole)

            def write(index: int, value: Any) -> None:
                text = json.dumps([index, value]).encode()  # Infinity may be in it: only we read it
                file.write(b"%08x %s\n" % (zlib.crc32(text), text))
                file.flush()

            yield write

    def remove(self) -> None:
        """Delete the folder, where it is one of ours; its results are kept elsewhere now."""
        if (self.folder / _PLAN).exists():
            shutil.rmtree(self.folder)


def _records(path: Path) -> tuple[dict[int, Any], int]:
    """Records up to the first line that is not whole, and how many bytes they take."""
    records: dict[int, Any] = {}
    size = 0
    with open(path, "rb") as file:
        for line in file:
            checksum, _, text = line.removesuffix(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                break
            index, value = json.loads(text)
            records[index] = value
            size += len(line)
    return records, size
