"""Parquet footers as we read them, beside pyarrow's own reading."""

import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrant.errors import InputError
from calibrant.footer import chunks
from calibrant.unpacking import Parquet

TABLE = pa.table(
    {
        "a": [[1.0, 2.0], [3.0], None],
        "s": ["x", "y", None],
        "i": [1, 2, 3],
        "st": [{"x": 1, "y": "q"}] * 3,
    }
)


@pytest.mark.parametrize(
    "how",
    [
        {}, {"compression": "zstd", "row_group_size": 2}, {"write_statistics": False},
        {"write_page_index": True}, {"data_page_version": "2.0", "use_dictionary": False},
    ],
)  # fmt: skip
def test_sizes_and_statistics_are_pyarrows(tmp_path, how):
    path = tmp_path / "t.parquet"
    pq.write_table(TABLE, path, **how)
    meta, found = pq.ParquetFile(path).metadata, chunks(path)
    assert len(found) == meta.num_row_groups
    for g, group in enumerate(found):
        assert len(group) == meta.num_columns
        for i, chunk in enumerate(group):
            theirs, leaf = meta.row_group(g).column(i), meta.schema.column(i)
            assert (chunk.values, chunk.size) == (
                theirs.num_values, theirs.total_uncompressed_size,
            )  # fmt: skip
            levels = (leaf.max_repetition_level + 1, leaf.max_definition_level + 1)
            assert all(n in (0, m) for n, m in zip(chunk.histograms, levels, strict=True))
            assert chunk.text_bytes == (leaf.physical_type == "BYTE_ARRAY")
    assert Parquet(path).table(TABLE.column_names).equals(TABLE)


def test_statistics_that_contradict_the_schema_are_refused_before_pyarrow_ends_the_process(
    tmp_path,
):
    """One more definition level in the histogram than the column has: found by fuzzing."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", "b", None]}), path, compression="none")
    data = path.read_bytes()
    histogram = b"\x19\x26\x02\x04"  # field 3, a list of 2 int64: one null, two values
    assert data.count(histogram) == 1
    at = data.index(histogram)
    (length,) = struct.unpack("<I", data[-8:-4])
    more = data[:at] + b"\x19\x36\x02\x04\x00" + data[at + 4 : -8]
    path.write_bytes(more + struct.pack("<I", length + 1) + b"PAR1")
    with pytest.raises(InputError, match=r"size statistics of column 'id' contradict its type"):
        Parquet(path).table(["id"])


@pytest.mark.parametrize(
    "footer", [b"", b"\x19", b"\x49\xfc\xff\xff\xff\x0f", b"\x0f" * 40, b"\x16" + b"\xff" * 40]
)
def test_a_footer_that_is_none_is_an_error_of_python(tmp_path, footer):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with pytest.raises(ValueError, match="the footer"):
        chunks(path)
