r"""Intervals for calibration errors that are norms of a mean residual.

Binned errors are norms of :math:`\delta_b = E[(y - c) 1(c \in b)]`, a vector of means, so its
estimate D is nearly normal even where its norm is not. Near calibration the norm of D is far above
the norm of :math:`\delta` (that is the noise floor), which is why resampling the norm fails there.
Here the norm is inverted instead: the interval holds the values :math:`\|\delta\|` under which a
norm as large, or as small, as the observed one is not surprising. The noise of D under a trial
:math:`\delta` is normal with the variance that :math:`\delta` itself implies (as in a score test).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from calibrant.metrics._input import Floats, Ints

Norm = Callable[[Floats], Floats]  # (..., M) -> (...)

_STEPS = 18  # bisection steps: 4e-6 of the range
_OUTER_STEPS, _INNER_STEPS = 14, 10  # 1e-4 for a difference; its nuisance may be rough
RESOLUTION = 2.0 ** (1 - _OUTER_STEPS)  # of a difference: one step
_CHUNK = 1 << 13  # rows per step
_FEW = 10.0  # surprises expected of cells: with fewer the normal limit is not to be trusted


class Cells(NamedTuple):
    """Rows and the cells (bins, or bins of each option) in which they stand."""

    # (N, C) cell of each of a row's C probabilities; `size` where there is none
    index: Ints  # type: ignore[assignment]  # a field, not the tuple's method
    probs: Floats  # (N, C)
    hit: Floats  # (N, C) 1 where the option is right
    size: int  # M, the number of cells
    scale: float  # so that the l1 norm of the mean residual is the calibration error


class Moments(NamedTuple):
    """What the data say about the mean residual of every cell that holds a row."""

    residual: Floats  # (M,) mean of (hit - p), scaled
    model_variance: Floats  # (M,) mean of p (1 - p), scaled twice
    slope: Floats  # (M,) scale * (1 - 2 mean p): how the variance changes with the residual
    weight: Floats  # (M,) share of rows in the cell
    correlation: Floats  # (M, M)
    n_effective: float  # N, less if duplicates move together
    grain: float  # half of what one more right answer adds to a cell

    def noise(self, delta: Floats) -> Floats:
        """Give the standard deviation of the estimate if the mean residual were ``delta``.

        :math:`(y - p)^2 = y (1 - 2p) + p^2` is linear in y, so the variance needs no other
        assumption than how the residual is spread inside the cell (evenly).
        """
        variance = self.model_variance + self.slope * delta - delta**2
        return np.sqrt(np.maximum(variance, 0.0) / self.n_effective)

    def part(self, where: slice) -> Moments:
        """Give some of the cells."""
        return self._replace(
            residual=self.residual[where],
            model_variance=self.model_variance[where],
            slope=self.slope[where],
            weight=self.weight[where],
            correlation=self.correlation[where, where],
        )

    def draws(self, rng: np.random.Generator, size: int) -> Floats:
        """Draw (size, M) standard normal noise with the cells' correlation.

        In column-major order: a norm, which sums over cells, then runs along the memory.
        """
        draws = rng.standard_normal((size, len(self.residual))) @ _root(self.correlation).T
        return np.asfortranarray(draws)


def moments(cells: Cells, cluster: Ints | None) -> Moments:
    """Sum up the cells; ``cluster`` (N,) numbers the groups of duplicates, None if there are none.

    Cells without rows are left out.
    """
    n = len(cells.index)
    count, p_sum, hit_sum, pq_sum = _cell_sums(cells)
    held = count > 0
    scale = cells.scale
    residual = scale * (hit_sum - p_sum) / n
    own = _second_moments(cells, None)
    covariance = own / n - np.outer(residual, residual)
    n_effective = float(n)
    if cluster is not None:
        grouped = _second_moments(cells, cluster, residual) / n
        n_effective /= _design_effect(grouped, covariance)
        covariance = grouped
    sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))[held]
    correlation = np.eye(len(sd))
    vary = sd > 0
    both = np.outer(vary, vary)
    correlation[both] = (covariance[np.ix_(held, held)] / np.outer(sd, sd).clip(1e-300))[both]
    with np.errstate(invalid="ignore"):
        mean_p = p_sum / count
    # Each bin spends a degree of freedom on its own mean: matters for a few hundred rows.
    n_effective = max(1.0, n_effective - held.sum() / cells.index.shape[1])
    return Moments(
        residual[held],
        (scale**2 * pq_sum / n)[held],
        scale * (1 - 2 * mean_p[held]),
        (count / n)[held],
        correlation,
        n_effective,
        0.5 * scale / n_effective,
    )


def invert(
    m: Moments,
    noise: Floats,
    norm: Norm,
    levels: Sequence[float],
    *,
    shrink: bool,
    side: float = 0.0,
    counted: bool = False,
) -> list[float]:
    """Find the norms under which the observed norm sits at the given levels of its distribution.

    For each level: the ``norm(delta)`` with ``P(norm(delta + noise) <= observed) = level``; it
    falls as the level rises, and is 0 where even ``delta = 0`` gives less. ``delta`` runs along a
    path through the observed residual: straight from 0 (``shrink=False``), or by taking the same
    number of standard deviations from every cell (``shrink=True``). The straight path spreads a
    small error over all cells, where noise adds least to the norm: its upper limits are the higher
    ones. The shrinking path keeps it in the few cells that stand out: its lower limits are lower.
    Beyond the median-unbiased norm the straight path adds error evenly, as many standard
    deviations to each cell: an error larger than it looks was hidden by noise, most where a cell
    shows nothing, and evenly spread it hides best. A norm that sees one sign only says so by
    ``side`` (1 or -1).

    Straight, two things keep the upper limits honest. An observed norm below the median under
    calibration is taken as that median: by luck alone no limit is lower than what so many rows
    typically show of a calibrated model (a power-constrained limit). And half an answer is added,
    as a continuity correction: 300 sure and right answers do not prove an error of 0.

    Counted, cells whose model is so sure that hardly a surprise is expected of them (collapsed
    models have one such cell) also get their exact binomial limit: no upper limit is lower.
    """
    path = Path(m, noise, norm, shrink, side)
    if not shrink:
        path.kink = min(1.0, path.solve(0.5))
        path.observed = max(path.with_half_an_answer(), float(np.median(path.drawn(0.0))))
    found = [float(norm(path.at(path.solve(level)))) for level in levels]
    if counted and not shrink:
        found = [
            max(limit, _exact(m, norm, level)) for limit, level in zip(found, levels, strict=True)
        ]
    return found


def _exact(m: Moments, norm: Norm, level: float) -> float:
    """Give the norm of the largest error that so few surprises allow in all sure cells together.

    Of n answers given with probability p or nearly 1 - p (the two kinds in turn), s are surprises.
    Their true share is at most the Clopper-Pearson limit at ``1 - level``; what it exceeds the
    model's own share by is spread over the cells as their rows are. The true shares of the rows
    differ, which makes s vary less than a binomial number: the limit errs upwards.
    """
    from scipy.special import betaincinv

    scale = 2 * m.grain * m.n_effective
    p = (1 - m.slope / scale) / 2
    rows = m.n_effective * m.weight
    worst = 0.0
    for sure in (p > 0.5, p <= 0.5):
        here = sure & (m.n_effective * m.model_variance / scale**2 < _FEW)
        n = float(rows[here].sum())
        if not n:
            continue
        sign = -1.0 if p[here][0] > 0.5 else 1.0
        own = float((rows * np.minimum(p, 1 - p))[here].sum())
        surprises = own + sign * m.n_effective * float(m.residual[here].sum()) / scale
        surprises = min(max(surprises, 0.0), n)
        most = float(betaincinv(surprises + 1, n - surprises, 1 - level)) if surprises < n else 1.0
        delta = np.where(here, sign * scale * (most * n - own) / m.n_effective * rows / n, 0.0)
        worst = max(worst, float(norm(delta)))
    return worst


def invert_difference(first: Path, last: Path, levels: Sequence[float]) -> list[float]:
    """Find the differences of two norms under which the observed difference sits at some levels.

    For each level: the d with ``P(last - first <= observed difference) = level`` when the true
    norms differ by d; it falls as the level rises. The norms' common size is a nuisance: for each
    d it is the one whose median sum of the two norms is the observed sum. The paths must be
    straight and their noise drawn jointly.
    """
    total, gap = first.observed + last.observed, last.observed - first.observed

    def below(d: float) -> float:
        low, high = max(0.0, -d), max(0.0, -d) + 2 * total + 1e-12
        for _ in range(_INNER_STEPS):
            size = (low + high) / 2
            a, b = first.drawn_of_size(size), last.drawn_of_size(size + d)
            if 2 * np.count_nonzero(a + b > total) > len(a):
                high = size
            else:
                low = size
        size = low
        a, b = first.drawn_of_size(size), last.drawn_of_size(size + d)
        return float(np.mean(b - a <= gap + 1e-12))

    return [_fall(below, level, -1.0, 1.0) for level in levels]


def _fall(f: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Find where a falling function of a number between low and high crosses the level."""
    for _ in range(_OUTER_STEPS):
        middle = (low + high) / 2
        if f(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class Path:
    """Trial residuals ``at(u)``: 0 at u = 0, the observed one at u = 1, larger beyond.

    From ``kink`` on, what is added is spread evenly; ``beyond`` has the l1 norm of the observed
    residual, so that u still measures l1 norms in units of the observed one.

    With a side, cells of the other sign stay where they are.
    """

    def __init__(self, m: Moments, noise: Floats, norm: Norm, shrink: bool, side: float) -> None:
        self.m, self.z, self.norm, self.shrink = m, noise, norm, shrink
        self.shifted = np.empty_like(noise)  # one place for all draws: there are thousands
        self.observed = float(norm(m.residual)) * (1 + 1e-9) + 1e-15
        self.sd = np.maximum(m.noise(np.zeros_like(m.residual)), m.noise(m.residual))
        self.moves = m.residual * side >= 0
        self.way = m.residual.copy()
        if not np.any(self.way[self.moves]):  # nothing observed: take the cells nearest to it
            score = m.residual * side / np.maximum(self.sd, 1e-12)
            self.moves |= score >= score.max()
            sign = side or np.where(m.slope < 0, -1.0, 1.0)
            self.way[self.moves] = (sign * np.maximum(self.sd, 1e-6))[self.moves]
        spread = np.where(self.way < 0, -1.0, 1.0) * np.maximum(self.sd, 1e-6) * self.moves
        self.kink = 1.0
        self.beyond = spread * (np.abs(self.way[self.moves]).sum() / np.abs(spread).sum())
        self.size = float(norm(self.at(1.0)))

    def with_half_an_answer(self) -> float:
        """Give the observed norm if the fullest cell were off by half an answer more."""
        fullest = int(np.argmax(self.m.weight))
        more = self.m.residual.copy()
        more[fullest] += self.m.grain * (1.0 if self.way[fullest] >= 0 else -1.0)
        return max(self.observed, float(self.norm(more)))

    def at(self, u: float) -> Floats:
        way = self.way * u
        if u > self.kink:
            way = self.kink * self.way + (u - self.kink) * self.beyond
        if self.shrink and u < 1:
            most = float(np.max(np.abs(self.way) / np.maximum(self.sd, 1e-12)))
            shrunk = np.maximum(np.abs(self.way) - (1 - u) * most * self.sd, 0.0)
            way = np.sign(self.way) * shrunk
        return np.where(self.moves, way, self.m.residual)

    def drawn(self, u: float) -> Floats:
        """Give the norms that noise makes of ``at(u)``, (R,)."""
        delta = self.at(u)
        np.multiply(self.z, self.m.noise(delta), out=self.shifted)
        self.shifted += delta
        return self.norm(self.shifted)

    def drawn_of_size(self, size: float) -> Floats:
        """Give the norms that noise makes of the residual of that norm on a straight path, (R,)."""
        return self.drawn(size / self.size)

    def below(self, u: float) -> float:
        """Share of noise draws with a norm of at most the observed one."""
        return float(np.mean(self.drawn(u) <= self.observed))

    def solve(self, level: float) -> float:
        """Find u with ``below(u) = level``, 0 if there is none."""
        low, high = 0.0, 1.0
        if self.below(0.0) <= level:
            return 0.0
        while self.below(high) > level and np.abs(self.at(high)).max() < 1:
            low, high = high, 2 * high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self.below(middle) > level:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def _cell_sums(cells: Cells) -> tuple[Ints, Floats, Floats, Floats]:
    flat, p, size = cells.index.ravel(), cells.probs.ravel(), cells.size + 1
    count = np.bincount(flat, minlength=size)[:-1]
    weights = (p, cells.hit.ravel(), p * (1 - p))
    sums: list[Floats] = [
        np.bincount(flat, weights=w, minlength=size)[:-1].astype(np.float64) for w in weights
    ]
    return count.astype(np.int64), sums[0], sums[1], sums[2]


def dense_residuals(cells: Cells, rows: slice) -> Floats:
    """Spread some rows' scaled residuals over the cells, (b, M)."""
    index = cells.index[rows]
    dense = np.zeros((len(index), cells.size + 1))
    np.put_along_axis(dense, index, cells.scale * (cells.hit[rows] - cells.probs[rows]), axis=1)
    return dense[:, :-1]


def _second_moments(cells: Cells, cluster: Ints | None, center: Floats | None = None) -> Floats:
    """Sum of outer products of the residuals, of rows or of the clusters' centred sums, (M, M)."""
    n = len(cells.index)
    if cluster is not None:
        assert center is not None
        sums = np.zeros((int(cluster.max()) + 1, cells.size))
        np.add.at(sums, cluster, dense_residuals(cells, slice(0, n)) - center)
        return sums.T @ sums
    total = np.zeros((cells.size, cells.size))
    for start in range(0, n, _CHUNK):
        block = dense_residuals(cells, slice(start, start + _CHUNK))
        total += block.T @ block
    return total


def _design_effect(grouped: Floats, single: Floats) -> float:
    """Give how much clusters inflate the variance, summed over cells; never below 1."""
    total = float(np.trace(single))
    return max(1.0, float(np.trace(grouped)) / total) if total > 0 else 1.0


def _root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
    return root
