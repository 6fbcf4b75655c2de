"""Resampling of questions by whole-number weights: every resample is one row of a weight matrix.

A resample of N rows with replacement is the vector of how often each row was drawn. Means are then
matrix products, and whatever depends on the order of confidence is a cumulative sum over rows
sorted once. Exact duplicates of one question form a cluster that is drawn as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from calibrant.errors import InputError
from calibrant.metrics._input import Bools, Floats, Ints

# Weights per block of resamples: 1 MiB, since what is computed from a block is best kept in cache.
_BLOCK_WEIGHTS = 1 << 17


class Settings(NamedTuple):
    """Where the selective curve is read."""

    risk: float = 0.1
    coverage: float = 0.8


def clusters(groups: Sequence[Any] | None, n: int) -> Ints | None:
    """Number the groups of duplicates 0, 1, ...: (N,), or None when every row is its own group.

    Raises
    ------
    InputError
        If there is not one group per row.
    """
    if groups is None:
        return None
    if len(groups) != n:
        raise InputError(f"groups has {len(groups)} entries, expected {n}, one per row")
    names, cluster = np.unique(np.asarray(groups), return_inverse=True)
    return None if len(names) == n else cluster.ravel().astype(np.int64)


def weight_blocks(
    n: int, cluster: Ints | None, n_resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """Draw resamples: (b, G) float64 counts of each cluster (of each row without clusters)."""
    size = n if cluster is None else int(cluster.max()) + 1
    step = max(1, _BLOCK_WEIGHTS // size)
    for start in range(0, n_resamples, step):
        b = min(step, n_resamples - start)
        drawn = rng.integers(0, size, (b, size), dtype=np.int32 if size < 2**31 else np.int64)
        drawn = drawn + (np.arange(b, dtype=np.int64) * size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * size).reshape(b, size).astype(np.float64)


def resampled_t(
    values: Floats, cluster: Ints | None, blocks: Sequence[Floats] | Iterator[Floats]
) -> tuple[Floats, Floats, Floats]:
    """Studentised bootstrap of column means.

    Parameters
    ----------
    values : (N, m), one column per metric.

    Returns
    -------
    mean (m,), standard error (m,), and t (R, m): (resampled mean - mean) / its standard error;
    NaN where that is 0.
    """
    n = len(values)
    if cluster is None:
        size, sums = np.ones(n), values
    else:
        size = np.bincount(cluster).astype(np.float64)
        sums = np.stack([np.bincount(cluster, weights=v) for v in values.T], axis=1)
    columns = values.shape[1]
    table = np.concatenate([size[:, None], sums, sums**2, sums * size[:, None]], axis=1)
    table = np.concatenate([table, size[:, None] ** 2], axis=1)

    def mean_and_error(totals: Floats) -> tuple[Floats, Floats]:
        rows = totals[:, :1]
        s, ss, sn = (totals[:, 1 + j * columns : 1 + (j + 1) * columns] for j in range(3))
        mean = s / rows
        square = ss - 2 * mean * sn + mean**2 * totals[:, -1:]
        return mean, np.sqrt(np.maximum(square, 0.0)) / rows

    mean, error = mean_and_error(table.sum(axis=0, keepdims=True))
    draws = [mean_and_error(w @ table) for w in blocks]
    resampled = np.concatenate([d[0] for d in draws])
    errors = np.concatenate([d[1] for d in draws])
    tiny = errors <= 1e-9 * np.maximum(np.abs(mean), 1e-300)
    t = np.full_like(resampled, np.nan)
    np.divide(resampled - mean, errors, out=t, where=~tiny)
    return mean[0], error[0], t


class Ranked(NamedTuple):
    """Rows sorted by confidence, the most confident first, equal confidences as one group."""

    order: Ints  # (N,) row at each place
    starts: Ints  # (G,) first place of each group
    wrong: Floats  # (N,) 1 where the row at that place is wrong
    confidence: Floats  # (G,)
    alone: bool  # no two rows have equal confidence

    @classmethod
    def of(cls, confidence: Floats, correct: Bools) -> Ranked:
        """Sort the rows."""
        order = np.argsort(-confidence, kind="stable")
        c = confidence[order]
        starts = np.flatnonzero(np.concatenate([[True], c[1:] != c[:-1]]))
        return cls(
            order, starts, (~correct[order]).astype(np.float64), c[starts], len(starts) == len(c)
        )

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Give the rows and the wrong rows of each group, (b, G) each, from row weights (b, N)."""
        rows = weights.take(self.order, axis=1)
        wrong = rows * self.wrong
        if self.alone:
            return rows, wrong
        return np.add.reduceat(rows, self.starts, axis=1), np.add.reduceat(
            wrong, self.starts, axis=1
        )


def harmonic(n: int) -> Floats:
    """Harmonic numbers H_0 .. H_n, (n + 1,)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])


def ordered_metrics(
    rows: Floats, wrong: Floats, h: Floats, settings: Settings
) -> dict[str, Floats]:
    """Metrics that depend on the order of confidence, (b,) each, from `Ranked.counts` (b, G).

    ``h`` holds the harmonic numbers up to the greatest number of rows of a resample at least.
    """
    taken, missed = np.cumsum(rows, axis=1), np.cumsum(wrong, axis=1)
    n, n_wrong = taken[:, -1], missed[:, -1]
    before, missed_before = taken - rows, missed - wrong
    ratio = wrong / np.maximum(rows, 1.0)
    # Within a group of m rows, r of them wrong, after C rows with E wrong, the expected risk after
    # j more rows is (E + r j) / (C + j) = r + (E - r C) / (C + j): harmonic numbers sum it.
    span = h[taken.astype(np.int64)] - h[before.astype(np.int64)]
    aurc = (n_wrong + ((missed_before - ratio * before) * span).sum(axis=1)) / n
    n_right = n - n_wrong
    best = (n_wrong - n_right * (h[n.astype(np.int64)] - h[n_right.astype(np.int64)])) / n
    half_missed = missed - wrong / 2
    pairs = n_right * n_wrong
    lost = ((rows - wrong) * half_missed).sum(axis=1)
    auroc = np.full(len(n), np.nan)
    np.divide(pairs - lost, pairs, out=auroc, where=pairs > 0)
    met = missed <= settings.risk * taken * (1 + 1e-12)
    return {
        "auroc": auroc,
        "aurc": aurc,
        "eaurc": np.maximum(aurc - best, 0.0),
        "augrc": (rows * half_missed).sum(axis=1) / n**2,
        "coverage_at_risk": np.where(met, taken, 0.0).max(axis=1) / n,
        "accuracy_at_coverage": _accuracy_at(taken, missed_before, ratio, settings.coverage),
    }


def _accuracy_at(taken: Floats, missed_before: Floats, ratio: Floats, coverage: float) -> Floats:
    wanted = np.maximum(1.0, np.ceil(coverage * taken[:, -1] * (1 - 1e-12)))
    group = (taken < wanted[:, None]).sum(axis=1)
    here = np.arange(len(taken))
    before = np.where(group > 0, taken[here, np.maximum(group - 1, 0)], 0.0)
    missed = missed_before[here, group] + ratio[here, group] * (wanted - before)
    accuracy: Floats = 1 - missed / wanted
    return accuracy


def decompositions(ranked: Ranked, rows: Floats, wrong: Floats) -> Floats:
    """MCB, DSC and UNC of the top option's Brier score, (b, 3), from `Ranked.counts` (b, G)."""
    from scipy.optimize import isotonic_regression

    right, c, n = rows - wrong, ranked.confidence, rows.sum(axis=1)
    mean = right.sum(axis=1) / n
    # The mean over rows of (z - correct)² is that of z² - 2 z correct + correct. For an isotonic
    # fit z, whose value in each of its blocks is the mean of the block, it is mean - mean of z².
    score = (rows @ c**2 - 2 * (right @ c)) / n + mean
    left = np.empty_like(score)
    for i, (m, r) in enumerate(zip(rows, right, strict=True)):
        held = np.flatnonzero(m)
        size = m[held]
        fit = isotonic_regression(r[held] / size, weights=size, increasing=False)
        z = fit.x[fit.blocks[:-1]]
        left[i] = mean[i] - float(fit.weights @ z**2) / n[i]
    unc = mean * (1 - mean)
    return np.stack([np.maximum(score - left, 0.0), np.maximum(unc - left, 0.0), unc], axis=1)
