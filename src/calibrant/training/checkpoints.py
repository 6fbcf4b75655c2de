"""Checkpoints that are whole or not there: a list of their files, checked before one is used."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from calibrant.errors import InputError
from calibrant.files import read_json, write_json

MANIFEST = "manifest.json"  # size and SHA-256 of every other file of a checkpoint
DRAFT = ".checkpoint-draft"  # where a checkpoint is written before it gets its name

logger = logging.getLogger(__name__)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder for checkpoints, unless it is there, and write to it once.

    Raises
    ------
    InputError
        If that fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error}; expected a folder") from error


def seal(folder: Path) -> None:
    """Write the list of a checkpoint's files, and everything from memory to the disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            continue
        with path.open("rb") as file:
            files[name] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            os.fsync(file.fileno())
    write_json(folder / MANIFEST, files)
    for path in (folder / MANIFEST, folder):
        _sync(path)


def publish(draft: Path, final: Path) -> None:
    """Give a sealed checkpoint its name, so that it appears at once."""
    seal(draft)
    if final.exists():
        _remove(final)
    draft.rename(final)
    _sync(final.parent)


def defect(folder: Path) -> str:
    """Say what is wrong with a checkpoint, "" if every file is as it was written."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        files = read_json(manifest)
        if not files:
            return f"{MANIFEST} lists no file"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != expected["size"]:
                return f"{name} has {size} bytes, expected {expected['size']}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"{name} is not as it was written (SHA-256)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    return ""


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints in a folder, the last step first, whole or not."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name[11:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def last_whole(folder: str | os.PathLike[str], before: int | None = None) -> Path | None:
    """Last checkpoint in a folder that is whole; a warning names each that is passed over.

    Parameters
    ----------
    before : only those of earlier steps.
    """
    for path in checkpoints(folder):
        if before is not None and _step(path) >= before:
            continue
        if not (wrong := defect(path)):
            return path
        logger.warning("%s: is damaged (%s) and is passed over", path, wrong)
    return None


def whole(checkpoint: str | os.PathLike[str]) -> Path:
    """Return this checkpoint if it is whole, else the last whole one before it, with a warning.

    Raises
    ------
    InputError
        If it is damaged and there is none before it.
    """
    path = Path(checkpoint)
    if not (wrong := defect(path)):
        return path
    earlier = last_whole(path.parent, _step(path)) if path.name[11:].isdigit() else None
    if earlier is None:
        raise InputError(
            f"{path}: the checkpoint is damaged ({wrong}), and none before it is whole; expected "
            "another one, or to train from the beginning"
        )
    logger.warning("%s: is damaged (%s); going on from %s", path, wrong, earlier.name)
    return earlier


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed on the way, it is not taken for one."""
    import shutil

    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
