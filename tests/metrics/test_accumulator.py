"""Streams: long ones, many small ones, and two processes."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from calibrant.errors import InputError
from calibrant.metrics import BinTable, BinTableAccumulator, bin_table, bin_table_from_confidence


def test_more_than_two_to_the_24_rows_in_a_bin_count_right():
    rows = 1 << 20
    p = np.tile(np.array([[0.75, 0.25]], dtype=np.float32), (rows, 1))
    y = np.zeros(rows, dtype=np.int8)
    y[0] = 1
    stream = BinTableAccumulator()
    for _ in range(17):
        stream.update(p, y)
    table = stream.table()
    assert table.count[0, 7] == table.n == 17 * rows > 2**24
    assert table.sum_correct[0, 7] == 17 * (rows - 1)
    assert table.sum_confidence[0, 7] == 17 * rows * 0.75


def test_more_than_two_to_the_24_rows_in_one_call():
    rows = (1 << 24) + 3
    c = np.full(rows, 0.75, dtype=np.float32)
    table = bin_table_from_confidence(c, np.ones(rows, dtype=bool))
    assert table.count[0, 7] == table.sum_correct[0, 7] == rows
    assert table.sum_confidence[0, 7] == rows * 0.75


def test_many_one_row_batches_do_not_drift():
    stream, plain = BinTableAccumulator(), 0.0
    for _ in range(10_000):
        stream.update([[0.95, 0.05]], [0])
        plain += 0.95
    exact = 10_000 * Fraction(0.95)
    assert abs(Fraction(plain) - exact) > 1e-10, "a running sum drifts"
    assert abs(Fraction(float(stream.table().sum_confidence[0, 9])) - exact) < 2e-12


def test_one_call_does_not_drift_either():
    n = 1_000_000
    p = np.tile([[0.95, 0.05]], (n, 1))
    total = bin_table(p, np.zeros(n, int)).sum_confidence[0, 9]
    assert float(abs(Fraction(float(total)) / (n * Fraction(0.95)) - 1)) < 5e-13


def test_compensation_keeps_what_the_sum_rounds_away():
    stream = BinTableAccumulator(n_bins=1, n_classes=2)
    big = BinTableAccumulator(n_bins=1, n_classes=2)
    big._total = BinTable(
        big._total.edges,
        big._total.count + 1,
        big._total.sum_confidence + 2.0**53,
        big._total.sum_correct,
    )
    stream.merge(big)
    for _ in range(64):
        stream.update([[0.5, 0.5]], [0])
    assert stream.table().sum_confidence[0, 0] == 2.0**53 + 32
    other = BinTableAccumulator(n_bins=1, n_classes=2)
    other.merge(stream)
    assert other.table().sum_confidence[0, 0] == 2.0**53 + 32


def test_stream_equals_one_call(crossing):
    p, y = crossing(100_000, 4)
    for classwise in (False, True):
        stream = BinTableAccumulator(15, 4 if classwise else None)
        for start in range(0, len(y), 997):
            stream.update(p[start : start + 997], y[start : start + 997])
        whole = bin_table(p, y, n_bins=15, classwise=classwise)
        table = stream.table()
        np.testing.assert_array_equal(table.count, whole.count)
        np.testing.assert_allclose(table.sum_confidence, whole.sum_confidence, rtol=1e-12, atol=0)
        assert math.isclose(table.ece(), whole.ece(), rel_tol=1e-12)


def test_a_refused_batch_leaves_the_state_as_it_was():
    stream = BinTableAccumulator()
    stream.update([[0.9, 0.1]], [0])
    before = stream.table().to_dict()
    p = np.full((100_000, 2), 0.5)
    p[-1] = np.nan
    with pytest.raises(InputError, match="row 99999"):
        stream.update(p, np.zeros(100_000, int))
    assert stream.table().to_dict() == before


def test_misuse_is_refused():
    with pytest.raises(InputError, match="same edges"):
        BinTableAccumulator(10).merge(BinTableAccumulator(15))
    with pytest.raises(InputError, match="3 options, expected at most 2"):
        BinTableAccumulator(10, 2).update([[0.5, 0.25, 0.25]], [0])
    with pytest.raises(InputError, match="n_classes"):
        BinTableAccumulator(10, 0)
    with pytest.raises(InputError, match="empty"):
        BinTableAccumulator().table().ece()


def test_the_table_is_a_snapshot():
    stream = BinTableAccumulator()
    stream.update([[0.9, 0.1]], [0])
    table = stream.table()
    stream.update([[0.9, 0.1]], [0])
    assert (table.n, stream.table().n) == (1, 2)


def reduce_tables(rank, folder, p, y):
    """Be one of two ranks: feed a share, write the tables that are reduced over both."""
    import torch
    import torch.distributed as dist

    from calibrant.training.accumulator import DistributedBinTable

    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    tables = []
    for n_classes in (None, p.shape[1]):
        stream = DistributedBinTable(n_bins=15, n_classes=n_classes)
        mine = slice(0, 300) if rank == 0 else slice(300, None)  # unequal shares
        for part, labels in zip(
            np.array_split(p[mine], 7), np.array_split(y[mine], 7), strict=True
        ):
            stream.update(torch.from_numpy(part), torch.from_numpy(labels))
        tables.append(stream.table().to_dict())
        assert stream.table().to_dict() == tables[-1], "reading the table must not change it"
    idle = DistributedBinTable(n_bins=15)
    if rank == 1:
        idle.update(p, y)
    tables.append(idle.table().to_dict())
    (folder / f"{rank}.json").write_text(json.dumps(tables))
    dist.destroy_process_group()


def test_two_gloo_processes_get_the_table_of_all_rows(crossing, tmp_path):
    multiprocessing = pytest.importorskip("torch.multiprocessing")
    p, y = crossing(1000, 4)
    p = p.astype(np.float32)
    multiprocessing.start_processes(reduce_tables, (tmp_path, p, y), nprocs=2, start_method="fork")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1], "every rank gets the same table"
    tables = [BinTable.from_dict(t) for t in found[0]]
    whole = bin_table(p, y, n_bins=15)
    classwise = bin_table(p, y, n_bins=15, classwise=True)
    for reduced, expected in zip(tables, (whole, classwise, whole), strict=True):
        np.testing.assert_array_equal(reduced.count, expected.count)
        np.testing.assert_array_equal(reduced.sum_correct, expected.sum_correct)
        np.testing.assert_allclose(
            reduced.sum_confidence, expected.sum_confidence, rtol=1e-12, atol=0
        )
