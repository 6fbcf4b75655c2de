"""What a Parquet file says of its columns, read without pyarrow.

pyarrow 26 ends the whole process, not with an error, when it is asked for a column chunk whose size
statistics contradict the schema (``FileMetaData.row_group(g).column(i)``). So what decides whether
a file is read at all is read here: Thrift's compact protocol, and three fields of a chunk.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

_TAIL = 8  # length of the footer, and the magic
_BITS = 64  # of the largest number
# Field numbers of parquet.thrift.
_ROW_GROUPS, _COLUMNS, _META = 4, 1, 3
_VALUES, _SIZE, _STATISTICS = 5, 6, 16
_TEXT_BYTES, _REPETITIONS, _DEFINITIONS = 1, 2, 3


class Chunk(NamedTuple):
    """One column in one row group, by the footer.

    Attributes
    ----------
    values : its values, repeated ones too. size : bytes unpacked.
    histograms : lengths of the histograms of repetition and definition levels, 0 without one.
    text_bytes : whether the bytes of its texts are told.
    """

    values: int
    size: int
    histograms: tuple[int, int]
    text_bytes: bool


def chunks(path: str | os.PathLike[str]) -> list[list[Chunk]]:
    """Column chunks of each row group.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the footer is not what the format says.
    """
    with open(path, "rb") as file:
        file.seek(-_TAIL, os.SEEK_END)
        end = file.tell()
        (length,) = struct.unpack("<I4x", file.read(_TAIL))
        if length > end:
            raise ValueError("the footer is longer than the file")
        file.seek(end - length)
        footer = file.read(length)
    try:
        groups = _Compact(footer).fields()[_ROW_GROUPS]
        return [[_chunk(column) for column in group[_COLUMNS]] for group in groups]
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the footer is not what the format says: {error!r}") from error


def _chunk(column: Any) -> Chunk:
    meta = column[_META]
    statistics = meta.get(_STATISTICS, {})
    lengths = [len(statistics.get(name, ())) for name in (_REPETITIONS, _DEFINITIONS)]
    return Chunk(
        values=meta[_VALUES],
        size=meta[_SIZE],
        histograms=(lengths[0], lengths[1]),
        text_bytes=_TEXT_BYTES in statistics,
    )


class _Compact:
    """A reader of Thrift's compact protocol; a struct is a dict by field number."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        number = 0
        for shift in range(0, _BITS, 7):
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise ValueError("the footer holds a number of more than 64 bits")

    def signed(self) -> int:
        number = self.unsigned()
        return number >> 1 ^ -(number & 1)

    def skip(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("the footer ends early")
        return self.data[self.at - size : self.at]

    def fields(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.signed()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self.value(kind)
        return found

    def value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self.byte()
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 7:
            return self.skip(8)
        if kind == 8:
            return self.skip(self.unsigned())
        if kind in (9, 10):
            head = self.byte()
            size = self.unsigned() if head >> 4 == 15 else head >> 4
            return [self.value(head & 15) for _ in range(size)]
        if kind == 11:
            size = self.unsigned()
            kinds = self.byte() if size else 0
            return [(self.value(kinds >> 4), self.value(kinds & 15)) for _ in range(size)]
        if kind == 12:
            return self.fields()
        raise ValueError(f"the footer holds a value of kind {kind}")
