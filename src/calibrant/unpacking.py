"""Compressed files, unpacked no further than an honest one goes.

A few kilobytes of gzip or Parquet can stand for gigabytes. What a file unpacks to may be 32 MiB, or
20 times its own size where that is more; questions, and tables of answers, are packed 2 to 10
times. A file that is meant to be larger can be given unpacked: then no limit applies.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from calibrant.errors import InputError
from calibrant.footer import Chunk, chunks

if TYPE_CHECKING:
    import pyarrow as pa

ALWAYS = 32 << 20  # bytes that any file may unpack to
RATIO = 20  # unpacked bytes for each of the file's
# Bytes of a value in memory, by Parquet's physical type; of others their place in a dictionary.
_WIDTHS = {"BOOLEAN": 1 / 8, "INT64": 8, "DOUBLE": 8, "INT96": 8}


class _Allowance:
    """What is left of the bytes that a file may unpack to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.limit = max(ALWAYS, RATIO * Path(path).stat().st_size)
        self.used = 0

    def use(self, size: float) -> None:
        self.used += int(size)
        if self.used > self.limit:
            raise InputError(
                f"{self.path}: unpacks to more than {self.limit / 2**20:,.0f} MiB, far beyond what "
                f"its size promises; expected at most {ALWAYS >> 20} MiB or {RATIO} times the "
                "file: give it unpacked if it is meant so"
            )


class _Gunzipped(io.RawIOBase):
    """Bytes of a gzip file, up to its allowance."""

    def __init__(self, path: Path) -> None:
        self.packed = gzip.GzipFile(path)
        self.allowance = _Allowance(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.packed.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{self.allowance.path}: damaged or truncated gzip ({error}), expected a complete "
                "gzip file"
            ) from error
        self.allowance.use(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.packed.close()
        super().close()


def open_unpacked(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading bytes, unpacked if its name ends in ``.gz``.

    Raises
    ------
    OSError
        If it cannot be opened.
    InputError
        From reading, if it is no whole gzip file, or unpacks too far.
    """
    path = Path(path)
    if not path.name.lower().endswith(".gz"):
        return open(path, "rb")
    return io.BufferedReader(_Gunzipped(path), 1 << 16)


class Parquet:
    """A Parquet file, read no further than its allowance.

    Attributes
    ----------
    names : of its columns. metadata : of its schema, bytes by bytes.

    Raises
    ------
    InputError
        If it is none, or from `batches`: it is damaged, or unpacks too far.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        with self._refusing():
            file = self._file()
            self._footer, self._schema = file.metadata, file.schema_arrow
            self.names: list[str] = list(self._schema.names)
            self.metadata: dict[bytes, bytes] = self._schema.metadata or {}

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read record batches of some columns."""
        with self._refusing():
            self._measure(columns)
            yield from self._file().iter_batches(columns=list(columns))

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns as a table, every value checked to be of its type."""
        import pyarrow as pa

        schema = pa.schema([field for field in self._schema if field.name in set(columns)])
        batches = list(self.batches(columns))
        with self._refusing():
            table = pa.Table.from_batches(batches, schema)
            table.validate(full=True)
        return table

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Read rows of plain values."""
        for batch in self.batches(columns):
            with self._refusing():
                rows = batch.to_pylist()
            yield from rows

    def _file(self, **options: Any) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, **options)

    def _measure(self, columns: Sequence[str]) -> None:
        """Refuse what is too large: numbers by the footer, texts by looking at them."""
        allowance = _Allowance(self.path)
        allowance.use(8 * self._footer.num_rows)  # a row is a row, of whatever columns
        groups = chunks(self.path)
        for i in range(self._footer.num_columns):
            leaf = self._footer.schema.column(i)
            root = next((n for n in columns if f"{leaf.path}.".startswith(f"{n}.")), None)
            if root is None:
                continue
            width = _WIDTHS.get(leaf.physical_type, max(4, leaf.length))
            for group in range(self._footer.num_row_groups):
                chunk = groups[group][i]
                self._check_statistics(chunk, leaf)
                allowance.use(max(0, chunk.size, width * chunk.values))
                if leaf.physical_type == "BYTE_ARRAY":
                    allowance.use(self._size_of_texts(root, leaf.path, group))

    def _check_statistics(self, chunk: Chunk, leaf: Any) -> None:
        """Refuse what pyarrow would end the process for."""
        levels = (leaf.max_repetition_level + 1, leaf.max_definition_level + 1)
        told = zip(chunk.histograms, levels, strict=True)
        if any(length not in (0, due) for length, due in told) or (
            chunk.text_bytes and leaf.physical_type != "BYTE_ARRAY"
        ):
            raise InputError(
                f"{self.path}: cannot be read as Parquet: the size statistics of column "
                f"{leaf.path!r} contradict its type"
            )

    def _size_of_texts(self, column: str, leaf: str, group: int) -> int:
        """Bytes of a column's texts in a row group, of which a file may hold each once."""
        file = self._file(read_dictionary=[leaf])  # each is there once in memory, too
        batches = file.iter_batches(columns=[column], row_groups=[group])
        return sum(_size(batch.column(0)) for batch in batches)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever pyarrow finds wrong with a file is the user's error."""
        import pyarrow as pa

        try:
            yield
        except (InputError, FileNotFoundError):
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
            raise InputError(f"{self.path}: cannot be read as Parquet: {error}") from error


def _size(array: Any) -> int:
    """Bytes of an array when its dictionaries are written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind) and not pa.types.is_primitive(kind.value_type):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        written_out = pc.sum(lengths.cast(pa.int64())).as_py() or 0
        return int(written_out + array.nbytes)
    if pa.types.is_struct(kind):
        return sum(_size(array.field(k)) for k in range(kind.num_fields))
    if pa.types.is_nested(kind) and hasattr(array, "flatten"):
        return _size(array.flatten()) + 8 * len(array)
    return int(array.nbytes)
