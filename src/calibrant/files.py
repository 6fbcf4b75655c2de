"""Files that appear whole or not at all, JSON and YAML as data alone, blocks of pages."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from calibrant.errors import InputError

_LARGEST_YAML = 1 << 20  # bytes; ours have a few thousand, and a megabyte takes half a minute
_DEEPEST = 50  # levels of nesting; ours have six


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a draft beside ``path``; it becomes ``path`` when the block ends without an error.

    Raises
    ------
    OSError
        If the folder cannot be written; an existing file at ``path`` is then untouched.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o666 & ~umask)  # mkstemp made it private
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        If it cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error


def json_text(content: Any, *, indent: int | None = 1) -> str:
    """Write JSON that every reader takes: NaN and infinities, which it has no word for, are null.

    Examples
    --------
    >>> json_text({"share": 0.5, "rate": math.inf}, indent=None)
    '{"share": 0.5, "rate": null}'
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(each) for each in content] if isinstance(content, list | tuple) else content


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file by `json_text`, whole or not at all."""
    write_text(path, json_text(content) + "\n")


class JsonFile(ABC):
    """A result that is kept as JSON: ``to_json``, ``from_json``, ``save`` and ``load``.

    Attributes
    ----------
    what : what the content is called in messages.
    format_version : of what `to_dict` gives; higher ones are refused.
    """

    what: ClassVar[str]
    format_version: ClassVar[int] = 1

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Give plain lists and numbers, ready for JSON, with ``format_version``."""

    @classmethod
    @abstractmethod
    def _of(cls, values: dict[str, Any]) -> Self:
        """Take back what `to_dict` gave; whatever is not as there may raise as it likes."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave.

        Raises
        ------
        InputError
            If it is something else, or written by a newer version.
        """
        version = values.get("format_version") if isinstance(values, dict) else None
        if type(version) is not int:
            raise InputError(f"not a {cls.what}: format_version is {version!r}")
        if version > cls.format_version:
            raise InputError(
                f"{cls.what} format {version}, this version reads up to {cls.format_version}; "
                "upgrade calibrant"
            )
        try:
            return cls._of(values)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"not a {cls.what}: {error!r}") from error

    def to_json(self) -> str:
        """Give the content as JSON text."""
        return json_text(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` gave.

        Raises
        ------
        InputError
            If it is not JSON, or is something else.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a {cls.what}: invalid JSON: {error}") from error
        return cls.from_dict(values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; the file appears complete or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If the file cannot be read or is something else.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read a YAML file of at most a megabyte as `parse_yaml` does.

    Raises
    ------
    InputError
        If it cannot be read, or `parse_yaml` refuses it.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_YAML:
            raise InputError("is larger than a megabyte")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """Read YAML of plain values: what JSON can hold; a date is its text.

    There are no aliases, with which a page of text could stand for gigabytes.

    Raises
    ------
    InputError
        If it is no such YAML.

    Examples
    --------
    >>> parse_yaml("limit: 3")
    {'limit': 3}
    """
    try:
        value = _PlainLoader(text).get_single_data()
        return json.loads(json.dumps(value, default=str, ensure_ascii=False).encode())
    except (InputError, yaml.YAMLError) as error:
        raise InputError(str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # For "!!int x", 2026-13-32 and the like PyYAML raises whatever int() or date() does.
        raise InputError(f"{type(error).__name__}: {error}") from error


class _PlainLoader(yaml.SafeLoader):
    """Loader that stops where a small text would become large or deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InputError("holds an alias (*name), expected the value itself")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise InputError(f"is nested more than {_DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a draft folder beside ``path``, which becomes ``path`` when the block ends well.

    Raises
    ------
    OSError
        If the parent cannot be written, or ``path`` is there and no empty folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield draft
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o777 & ~umask)  # mkdtemp made it private
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def replace_block(text: str, name: str, content: str) -> str:
    r"""Put content between the markers ``<!-- name -->`` and ``<!-- end name -->`` of a page.

    Raises
    ------
    ValueError
        If the page does not have both markers once.

    Examples
    --------
    >>> replace_block("<!-- a -->\nold\n<!-- end a -->\n", "a", "new")
    '<!-- a -->\nnew\n<!-- end a -->\n'
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{content.strip()}\n{end}{tail}"
