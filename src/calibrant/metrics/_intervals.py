"""The workings of `inference`: one function per kind of metric fills a dict of estimates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from calibrant.errors import InputError
from calibrant.metrics._cells import (
    RESOLUTION,
    Cells,
    Moments,
    Norm,
    Path,
    invert,
    invert_difference,
    moments,
)
from calibrant.metrics._input import Bools, Floats, Ints, checked_blocks, read_rows, top_of_block
from calibrant.metrics._resampling import (
    Ranked,
    Settings,
    decompositions,
    harmonic,
    ordered_metrics,
    resampled_t,
    weight_blocks,
)
from calibrant.metrics.binned import (
    bin_index,
    bin_table_from_confidence,
    debiased_ece_from_confidence,
)

MEANS = ("accuracy", "mean_confidence", "signed_gap", "nll", "brier", "top_brier")
ERRORS = (
    "conf_ece",
    "cw_ece",
    "debiased_ece",
    "conf_ece_quantile",
    "rmsce",
    "mce",
    "overconfidence",
    "underconfidence",
    "smooth_ece",
)
ORDERED = ("auroc", "aurc", "eaurc", "augrc", "coverage_at_risk", "accuracy_at_coverage")
PARTS = ("mcb", "dsc", "unc")
METRICS = MEANS + ERRORS + ORDERED + PARTS
PAIRED_ERRORS = ("conf_ece", "cw_ece", "overconfidence", "underconfidence")
PAIRED = MEANS + PAIRED_ERRORS + ORDERED + PARTS

DEFAULTS = Settings()

_SIDE = {"overconfidence": -1.0, "underconfidence": 1.0}  # sign of correct - confidence
_FLOOR_OF = {"conf_ece": "conf_ece", "cw_ece": "cw_ece", "debiased_ece": "conf_ece"}
_EXACT_ROWS = 20_000  # above: the noise floor's simulation is normal, not row by row
_BLOCK = 1 << 20  # simulated labels per step
_CHUNK = 1 << 13  # rows per step
_ALIKE = 1e-9  # a standard error that rounding makes of equal rows


@dataclass(frozen=True)
class Estimate:
    """A number and what the data leave open about it.

    Attributes
    ----------
    name : str. value : float, the estimate that the function of that name gives.
    low, high : float. Two-sided interval of the population's value at ``level``. For calibration
        errors the value (plug-in, biased upwards) can lie above ``high``: then it is mostly noise.
    upper : float or None. One-sided upper bound at ``level``, for calibration errors.
    n : int, questions. level : float. method : str, how the interval was made.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    upper: float | None = None
    method: str = ""

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def to_dict(self) -> dict[str, Any]:
        """Give a dict that JSON can hold; NaN and infinity become strings."""
        return {k: _plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Estimate:
        """Read what `to_dict` gave."""
        numbers = {k: float(values[k]) for k in ("value", "low", "high", "level")}
        upper = None if values["upper"] is None else float(values["upper"])
        name, method = str(values["name"]), str(values["method"])
        return cls(name=name, n=int(values["n"]), upper=upper, method=method, **numbers)


@dataclass(frozen=True)
class NoiseFloor:
    """The calibration error that a perfectly calibrated model with these confidences would show.

    Attributes
    ----------
    metric : "conf_ece" or "cw_ece". mean, q95 : float, of the simulated plug-in error.
    p_value : float in (0, 1], how often it is at least the observed error: (1 + hits) / (1 + R).
    observed : float, the plug-in error of the data. n, n_bins, n_simulations : int.
    """

    metric: str
    mean: float
    q95: float
    p_value: float
    observed: float
    n: int
    n_bins: int
    n_simulations: int

    def to_dict(self) -> dict[str, Any]:
        """Give a dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NoiseFloor:
        """Read what `to_dict` gave."""
        return cls(**values)


def wilson_interval(successes: Any, n: Any, level: float = 0.95) -> tuple[Any, Any]:
    r"""Wilson score interval of a proportion.

    With :math:`\hat p = s/n` and z the normal quantile of (1 + level)/2:
    :math:`(\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2})/(1 + z^2/n)`.

    Parameters
    ----------
    successes, n : numbers or arrays of one shape, 0 <= successes <= n; fractions are allowed.
    level : in (0, 1).

    Returns
    -------
    low, high : floats, or float64 arrays; 0 and 1 where n is 0.

    Raises
    ------
    InputError
        If successes are not between 0 and n, or the level is not between 0 and 1.

    References
    ----------
    Wilson 1927; Brown, Cai and DasGupta 2001.

    Examples
    --------
    >>> [round(float(x), 4) for x in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    s, size = np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if not ((s >= 0) & (s <= size)).all():
        raise InputError(f"successes {successes} of {n}, expected between 0 and n")
    z2 = _z(level) ** 2
    safe = np.maximum(size, 1e-300)
    share = s / safe
    middle = (share * size + z2 / 2) / (size + z2)
    half = np.sqrt(z2 * (share * (1 - share) * size + z2 / 4)) / (size + z2)
    # At 0 and n successes the bound is exact; elsewhere rounding stays inside [0, 1] anyway.
    low = np.where(s == 0, 0.0, np.maximum(middle - half, 0.0))
    high = np.where(s == size, 1.0, np.minimum(middle + half, 1.0))
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


Found = dict[str, Estimate]


class Plan(NamedTuple):
    """How intervals are to be made."""

    cluster: Ints | None  # (N,) group of duplicates of each row, None if there are none
    metrics: Sequence[str]
    n_bins: int
    n_resamples: int
    level: float
    seed: int
    settings: Settings

    @property
    def tails(self) -> list[float]:
        """Levels of the two ends."""
        return [(1 - self.level) / 2, (1 + self.level) / 2]

    @property
    def parts(self) -> bool:
        """Whether the Brier decomposition is wanted (it costs most)."""
        return any(name in PARTS for name in self.metrics)

    def blocks(self, n: int) -> Iterator[Floats]:
        """Draw the resamples: the same for every metric."""
        return weight_blocks(
            n, self.cluster, self.n_resamples, np.random.default_rng((self.seed, 2))
        )


# -- answers ------------------------------------------------------------------------------------


class Answers(NamedTuple):
    probs: Floats  # (N, K)
    labels: Ints  # (N,)
    n_options: Ints | None  # (N,)
    confidence: Floats  # (N,)
    correct: Bools  # (N,)

    @property
    def n(self) -> int:
        return len(self.labels)


def read(probs: Any, labels: Any, n_options: Any) -> Answers:
    rows = read_rows(probs, labels, n_options)
    n = len(rows.probs)
    confidence, correct = np.empty(n), np.empty(n, dtype=np.bool_)
    for block in checked_blocks(rows):
        here = slice(block.start, block.start + len(block.labels))
        confidence[here], correct[here] = top_of_block(block)
    p = rows.probs.astype(np.float64)
    return Answers(p, rows.labels, rows.n_options, confidence, correct)


def _mean_columns(a: Answers) -> Floats:
    """Give what the metrics of `MEANS` are means of, (N, 6)."""
    hit = a.correct.astype(np.float64)
    at_label = np.take_along_axis(a.probs, a.labels[:, None], axis=1)[:, 0]
    with np.errstate(divide="ignore"):
        nll = -np.log(at_label)
    brier = (a.probs**2).sum(axis=1) - 2 * at_label + 1
    gap = a.confidence - hit
    return np.stack([hit, a.confidence, gap, nll, brier, gap**2], axis=1)


def top_cells(confidence: Floats, correct: Bools, index: Ints, n_bins: int) -> Cells:
    hit = correct.astype(np.float64)
    return Cells(index[:, None], confidence[:, None], hit[:, None], n_bins, 1.0)


def cells_of(a: Answers, metric: str, n_bins: int) -> Cells:
    if metric == "cw_ece":
        return _class_cells(a, n_bins)
    if metric == "conf_ece_quantile":
        table = bin_table_from_confidence(
            a.confidence, a.correct, n_bins=n_bins, strategy="quantile"
        )
        index = np.searchsorted(table.edges[0, 1:-1], a.confidence, side="right")
        return top_cells(a.confidence, a.correct, index.astype(np.int64), n_bins)
    return top_cells(a.confidence, a.correct, bin_index(a.confidence, n_bins), n_bins)


def _class_cells(a: Answers, n_bins: int) -> Cells:
    n, width = a.probs.shape
    size = width * n_bins
    index = bin_index(np.minimum(a.probs, 1.0).ravel(), n_bins).reshape(n, width)
    index = index + np.arange(0, size, n_bins)
    total = n * width
    if a.n_options is not None:
        index[np.arange(width) >= a.n_options[:, None]] = size
        total = int(a.n_options.sum())
    hit = (a.labels[:, None] == np.arange(width)).astype(np.float64)
    return Cells(index, a.probs, hit, size, n / total)


# -- noise floor --------------------------------------------------------------------------------


def simulate_floor(
    cells: Cells, metric: str, n_bins: int, n_simulations: int, seed: int
) -> NoiseFloor:
    rng = np.random.default_rng((seed, 1))
    n = len(cells.index)
    draw = _floor_row_by_row if n <= _EXACT_ROWS else _floor_normal
    errors = np.abs(draw(cells, n_simulations, rng)).sum(axis=1) * cells.scale
    observed = float(np.abs(_residual_sums(cells)).sum()) * cells.scale / n
    hits = int((errors >= observed * (1 - 1e-12)).sum())
    return NoiseFloor(
        metric=metric,
        mean=float(errors.mean()),
        q95=float(np.quantile(errors, 0.95)),
        p_value=(1 + hits) / (1 + n_simulations),
        observed=observed,
        n=n,
        n_bins=n_bins,
        n_simulations=n_simulations,
    )


def _residual_sums(cells: Cells) -> Floats:
    weights = (cells.hit - cells.probs).ravel()
    sums = np.bincount(cells.index.ravel(), weights=weights, minlength=cells.size + 1)
    return sums[:-1].astype(np.float64)


def _floor_row_by_row(cells: Cells, n_simulations: int, rng: np.random.Generator) -> Floats:
    """Mean residual of every cell with labels drawn row by row, (R, M)."""
    n, width = cells.index.shape
    size = cells.size + 1
    upto = np.cumsum(cells.probs, axis=1)
    if width > 1:
        upto[:, -1] = 1.0  # rows sum to 1 but for rounding: the last option takes the rest
    outcome_cell = np.concatenate([cells.index, np.full((n, 1), cells.size)], axis=1).ravel()
    first = np.arange(n) * (width + 1)
    expected = np.bincount(cells.index.ravel(), weights=cells.probs.ravel(), minlength=size)
    out = np.empty((n_simulations, size))
    step = max(1, _BLOCK // n)
    for start in range(0, n_simulations, step):
        b = min(step, n_simulations - start)
        u = rng.random((b, n))
        outcome = np.broadcast_to(first, (b, n)).copy()
        for k in range(width):
            outcome += u >= upto[:, k]
        cell = outcome_cell[outcome] + (np.arange(b) * size)[:, None]
        hits = np.bincount(cell.ravel(), minlength=b * size).reshape(b, size)
        out[start : start + b] = (hits - expected) / n
    return out[:, :-1]


def _floor_normal(cells: Cells, n_simulations: int, rng: np.random.Generator) -> Floats:
    """Mean residual of every cell under calibration, from its normal limit, (R, M)."""
    n = len(cells.index)
    flat, p = cells.index.ravel(), cells.probs.ravel()
    expected = np.bincount(flat, weights=p, minlength=cells.size + 1)[:-1]
    covariance = np.diag(expected).astype(np.float64)
    for start in range(0, n, _CHUNK):
        index, probs = cells.index[start : start + _CHUNK], cells.probs[start : start + _CHUNK]
        dense = np.zeros((len(index), cells.size + 1))
        np.put_along_axis(dense, index, probs, axis=1)
        covariance -= dense[:, :-1].T @ dense[:, :-1]
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws: Floats = rng.standard_normal((n_simulations, cells.size)) @ root.T / n
    return draws


# -- intervals ----------------------------------------------------------------------------------


def add_means(found: Found, a: Answers, plan: Plan) -> None:
    """Add the metrics that are means over questions."""
    values = _mean_columns(a)
    finite = np.isfinite(values.sum(axis=0))
    means = resampled_t(np.where(finite, values, 0.0), plan.cluster, plan.blocks(a.n))
    for j, name in enumerate(MEANS):
        if finite[j]:
            value, low, high = _studentised(means, j, plan, a.n, span(name))
        else:
            value, low, high = math.inf, math.nan, math.inf
        method = "studentised bootstrap"
        found[name] = Estimate(name, value, low, high, a.n, plan.level, method=method)
    share, error = float(means[0][0]), float(means[1][0])
    effective = effective_rows(share, error, a.n) if plan.cluster is not None else a.n
    low, high = wilson_interval(share * effective, effective, plan.level)
    found["accuracy"] = Estimate("accuracy", share, low, high, a.n, plan.level, method="Wilson")


def _studentised(
    means: tuple[Floats, Floats, Floats], j: int, plan: Plan, n: int, span: tuple[float, float]
) -> tuple[float, float, float]:
    """Mean of a column and its interval.

    Where all rows are alike no resample differs, and what others may be is not known but for the
    metric's span: at most a share s of the population is unlike these n, with the level's
    confidence, ``(1 - s)^n = tail``.
    """
    mean, error, t = float(means[0][j]), float(means[1][j]), means[2][:, j]
    t = t[np.isfinite(t)]
    if n < 2:
        return mean, math.nan, math.nan
    if error <= _ALIKE * max(1.0, abs(mean)) or len(t) == 0:
        units = n if plan.cluster is None else int(plan.cluster.max()) + 1
        share = 1 - plan.tails[0] ** (1 / units)
        return mean, mean - share * (mean - span[0]), mean + share * (span[1] - mean)
    low, high = np.quantile(t, plan.tails)
    return mean, mean - float(high) * error, mean - float(low) * error


# What a metric can be where that is not 0 to 1.
_SPANS = {"signed_gap": (-1.0, 1.0), "nll": (0.0, math.inf), "brier": (0.0, 2.0)}


def span(name: str) -> tuple[float, float]:
    """Least and largest value that a metric can have."""
    return _SPANS.get(name, (0.0, 1.0))


def span_of_change(name: str) -> tuple[float, float]:
    """Least and largest value that a change of it can have."""
    low, high = span(name)
    return low - high, high - low


def effective_rows(share: float, error: float, n: int) -> float:
    """Number of independent rows that would leave the proportion as uncertain as it is."""
    if error == 0 or not 0 < share < 1:
        return float(n)
    return float(min(n, share * (1 - share) / error**2))


def add_errors(found: Found, a: Answers, plan: Plan) -> None:
    """Add the calibration errors asked for."""
    top = moments(cells_of(a, "conf_ece", plan.n_bins), plan.cluster)
    norms: dict[str, Norm] = {
        "conf_ece": l1_norm,
        "debiased_ece": l1_norm,
        "rmsce": lambda d: np.sqrt((d**2 / top.weight).sum(axis=-1)),
        "mce": lambda d: (np.abs(d) / top.weight).max(axis=-1),
        "overconfidence": _one_sided(-1.0),
        "underconfidence": _one_sided(1.0),
    }
    floors: dict[str, float] = {}
    for name in set(plan.metrics) & set(ERRORS):
        which = _FLOOR_OF.get(name, "")
        if which and which not in floors:
            floors[which] = _floor_p(a, which, plan)
        value = None
        m, norm = top, norms.get(name, l1_norm)
        if name == "debiased_ece":
            value = debiased_ece_from_confidence(a.confidence, a.correct, n_bins=plan.n_bins)
        elif name == "smooth_ece":
            value, m = _smooth_moments(a, plan.cluster)
            norm = _mean_size
        elif name not in norms:
            m = moments(cells_of(a, name, plan.n_bins), plan.cluster)
        found[name] = _error_interval(name, m, norm, plan, a.n, value, floors.get(which))


def l1_norm(residual: Floats) -> Floats:
    total: Floats = np.abs(residual).sum(axis=-1)
    return total


def _mean_size(residual: Floats) -> Floats:
    mean: Floats = np.abs(residual).mean(axis=-1)
    return mean


def _one_sided(side: float) -> Norm:
    def norm(residual: Floats) -> Floats:
        total: Floats = np.maximum(side * residual, 0.0).sum(axis=-1)
        return total

    return norm


def _error_interval(
    name: str,
    m: Moments,
    norm: Norm,
    plan: Plan,
    n: int,
    value: float | None,
    floor_p: float | None,
) -> Estimate:
    """Invert the norm; ``value`` where it is not the observed norm, ``floor_p`` where simulated."""
    noise = m.draws(np.random.default_rng((plan.seed, 3)), plan.n_resamples)
    tail, side = plan.tails[0], _SIDE.get(name, 0.0)
    low = invert(m, noise, norm, [1 - tail], shrink=True, side=side)[0]
    counted = name != "smooth_ece"  # whose places share rows
    high, upper = invert(m, noise, norm, [tail, 2 * tail], shrink=False, side=side, counted=counted)
    observed = float(norm(m.residual))
    calm = norm(noise * m.noise(np.zeros_like(m.residual)))
    p_value = float(np.mean(calm >= observed)) if floor_p is None else floor_p
    if p_value >= 1 - plan.level:
        low = 0.0
    value = observed if value is None else value
    low = min(low, high)
    return Estimate(name, value, low, high, n, plan.level, upper, method="inverted norm")


def add_ordered(found: Found, a: Answers, plan: Plan) -> None:
    """Add the metrics that depend on the order of confidence."""
    value, draws = _ordered_draws([Ranked.of(a.confidence, a.correct)], a.n, plan)
    _add_from_draws(found, value[0], draws[0], a, plan)


def _add_from_draws(
    found: Found, value: dict[str, float], draws: dict[str, Floats], a: Answers, plan: Plan
) -> None:
    for name, v in value.items():
        low, high = _percentiles(draws[name], v, plan, a.n)
        method = "percentile bootstrap"
        if name in ("mcb", "dsc"):  # fitted twice in a resample: as biased again as the value is
            low, high = (float(np.maximum(0.0, 2 * v - end)) for end in (high, low))  # NaN stays
            method = "basic bootstrap"
        if name == "mcb" and low > 0 and _floor_p(a, "conf_ece", plan) >= 1 - plan.level:
            low = 0.0  # as for conf-ECE: calibration is not excluded
        found[name] = Estimate(name, v, low, high, a.n, plan.level, method=method)


def _floor_p(a: Answers, metric: str, plan: Plan) -> float:
    cells = cells_of(a, metric, plan.n_bins)
    return simulate_floor(cells, metric, plan.n_bins, plan.n_resamples, plan.seed).p_value


def _percentiles(draws: Floats, value: float, plan: Plan, n: int) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if n < 2 or len(draws) == 0 or not math.isfinite(value):
        return math.nan, math.nan
    low, high = np.quantile(draws, plan.tails)
    return float(low), float(high)


def _ordered_draws(
    tables: Sequence[Ranked], n: int, plan: Plan
) -> tuple[list[dict[str, float]], list[dict[str, Floats]]]:
    """Values and resampled values of the ordered metrics, for tables of the same questions."""
    c = plan.cluster
    h = harmonic(n if c is None else int(np.bincount(c).max()) * (int(c.max()) + 1))

    def compute(ranked: Ranked, weights: Floats) -> dict[str, Floats]:
        rows, wrong = ranked.counts(weights)
        out = ordered_metrics(rows, wrong, h, plan.settings)
        if plan.parts:
            out.update(zip(PARTS, decompositions(ranked, rows, wrong).T, strict=True))
        return out

    ones = np.ones((1, n))
    values = [{k: float(v[0]) for k, v in compute(r, ones).items()} for r in tables]
    draws: list[dict[str, list[Floats]]] = [{k: [] for k in v} for v in values]
    for w in plan.blocks(n):
        weights = w if c is None else w[:, c]
        for ranked, kept in zip(tables, draws, strict=True):
            for name, v in compute(ranked, weights).items():
                kept[name].append(v)
    return values, [{k: np.concatenate(v) for k, v in d.items()} for d in draws]


# -- smooth ECE ---------------------------------------------------------------------------------

_FINE = 400  # confidences are rounded to this many places before smoothing
_POINTS = 100  # places where the smoothed residual is looked at


def _smooth_moments(a: Answers, cluster: Ints | None) -> tuple[float, Moments]:
    """SmoothECE and the moments of the smoothed residual at its own bandwidth."""
    from calibrant.metrics.smooth import smooth_ece_from_confidence

    value = smooth_ece_from_confidence(a.confidence, a.correct)
    fine = moments(
        top_cells(a.confidence, a.correct, bin_index(a.confidence, _FINE), _FINE), cluster
    )
    held = np.unique(bin_index(a.confidence, _FINE))
    kernel = _reflected_gaussian((held + 0.5) / _FINE, max(value, 1.0 / _FINE))  # (P, held)
    mean = kernel @ fine.residual
    mass = kernel @ fine.weight
    variance = kernel**2 @ fine.model_variance
    slope = (kernel**2 @ (fine.weight * fine.slope)) / np.maximum(mass, 1e-300)
    spread = fine.noise(fine.residual)
    covariance = (kernel * spread) @ fine.correlation @ (kernel * spread).T
    sd = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = covariance / np.outer(sd, sd)
    n = fine.n_effective + len(held)  # `moments` took one degree of freedom for each place
    return value, Moments(mean, variance, slope, mass, correlation, n, _POINTS * fine.grain)


def _reflected_gaussian(at: Floats, sigma: float) -> Floats:
    """Kernel from places ``at`` to the grid, reflected at 0 and 1, (P, len(at))."""
    grid = ((np.arange(_POINTS) + 0.5) / _POINTS)[:, None]
    total = np.zeros((_POINTS, len(at)))
    for j in range(-2, 3):
        for sign in (1, -1):
            total += np.exp(-0.5 * ((grid - sign * at - 2 * j) / sigma) ** 2)
    return total / (sigma * math.sqrt(2 * math.pi))


# -- pairs --------------------------------------------------------------------------------------


def add_mean_changes(found: Found, a: Answers, b: Answers, plan: Plan) -> None:
    """Add the changes of the means over questions."""
    x, y = _mean_columns(a), _mean_columns(b)
    finite = np.isfinite(x.sum(axis=0) + y.sum(axis=0))
    change = np.where(finite, y, 0.0) - np.where(finite, x, 0.0)
    means = resampled_t(change, plan.cluster, plan.blocks(a.n))
    for j, name in enumerate(MEANS):
        if finite[j]:
            same = not change[:, j].any()  # the same answers: that is no chance
            limits = (0.0, 0.0) if same else span_of_change(name)
            value, low, high = _studentised(means, j, plan, a.n, limits)
        else:
            value = _infinite_change(x[:, j], y[:, j])
            low, high = (value, value) if math.isinf(value) else (math.nan, math.nan)
        method = "studentised bootstrap"
        found[name] = Estimate(name, value, low, high, a.n, plan.level, method=method)
    value, (low, high) = float(means[0][0]), agresti_min(change[:, 0], plan.level, plan.cluster)
    found["accuracy"] = Estimate(
        "accuracy", value, low, high, a.n, plan.level, method="Agresti-Min"
    )


def add_error_changes(found: Found, a: Answers, b: Answers, plan: Plan) -> None:
    """Add the changes of the binned calibration errors asked for."""
    for name in set(plan.metrics) & set(PAIRED_ERRORS):
        which = "cw_ece" if name == "cw_ece" else "conf_ece"
        cells = (cells_of(a, which, plan.n_bins), cells_of(b, which, plan.n_bins))
        found[name] = error_change(name, *cells, plan)


def add_ordered_changes(
    found: tuple[Found, Found, Found], a: Answers, b: Answers, plan: Plan
) -> None:
    """Add the ordered metrics of both tables and their changes, from the same resamples."""
    ranked = [Ranked.of(t.confidence, t.correct) for t in (a, b)]
    value, draws = _ordered_draws(ranked, a.n, plan)
    for into, table, v, d in zip(found, (a, b), value, draws, strict=False):
        _add_from_draws(into, v, d, table, plan)
    for name in value[0]:
        change = value[1][name] - value[0][name]
        low, high = _percentiles(draws[1][name] - draws[0][name], change, plan, a.n)
        method = "percentile bootstrap"
        found[2][name] = Estimate(name, change, low, high, a.n, plan.level, method=method)


def _infinite_change(x: Floats, y: Floats) -> float:
    """Change of a mean where a row is infinite before, after, or both (unknown: NaN)."""
    before, after = not np.isfinite(x).all(), not np.isfinite(y).all()
    return math.nan if before and after else (-math.inf if before else math.inf)


def agresti_min(change: Floats, level: float, cluster: Ints | None = None) -> tuple[float, float]:
    """Interval of a mean of -1, 0 and 1 (matched pairs): half a pair added to each discordance.

    With clusters the variance is theirs, if that is larger.

    Raises
    ------
    InputError
        If the level is not between 0 and 1.

    References
    ----------
    Agresti and Min 2005, Statistics in Medicine 24.

    Examples
    --------
    >>> import numpy as np
    >>> [round(x, 4) for x in agresti_min(np.array([1.0] * 10 + [0.0] * 90), 0.95)]
    [0.0372, 0.1589]
    """
    inflate, own = 1.0, float(((change - change.mean()) ** 2).sum())
    if cluster is not None and own > 0:
        sums = np.bincount(cluster, weights=change - change.mean())
        inflate = max(1.0, float(sums @ sums) / own)
    n = len(change) + 2.0
    gained, lost = float((change > 0).sum()) + 0.5, float((change < 0).sum()) + 0.5
    mean = (gained - lost) / n
    half = _z(level) * math.sqrt(inflate * ((gained + lost) / n - mean**2) / n)
    return max(-1.0, mean - half), min(1.0, mean + half)


def error_change(name: str, before: Cells, after: Cells, plan: Plan) -> Estimate:
    """Change of a calibration error, with the noise of both drawn jointly."""
    method = "inverted difference of norms"
    pairs = zip(before[:3], after[:3], strict=True)
    if all(np.array_equal(x, y) for x, y in pairs):  # the same answers: that is no chance
        return Estimate(name, 0.0, 0.0, 0.0, len(before.index), plan.level, method=method)
    tails = [plan.tails[0], 0.5, plan.tails[1]]
    found = invert_difference(*_paths(name, before, after, plan), tails)
    high, value, low = (0.0 if abs(d) < RESOLUTION else d for d in found)
    return Estimate(name, value, low, high, len(before.index), plan.level, method=method)


def error_change_high(before: Cells, after: Cells, plan: Plan) -> float:
    """Upper end of the interval of a change of conf-ECE alone, at a third of the cost."""
    return invert_difference(*_paths("conf_ece", before, after, plan), plan.tails[:1])[0]


def _paths(name: str, before: Cells, after: Cells, plan: Plan) -> tuple[Path, Path]:
    side = _SIDE.get(name, 0.0)
    norm = _one_sided(side) if side else l1_norm
    m = moments(_side_by_side(before, after), plan.cluster)
    split = len(np.unique(before.index[before.index < before.size]))
    noise = m.draws(np.random.default_rng((plan.seed, 3)), plan.n_resamples)
    first, last = (
        Path(m.part(part), noise[:, part], norm, False, side)
        for part in (slice(None, split), slice(split, None))
    )
    return first, last


def _side_by_side(before: Cells, after: Cells) -> Cells:
    """Both models' cells of the same questions as one set of cells."""
    size = before.size + after.size
    outside = before.index == before.size
    index = np.concatenate(
        [np.where(outside, size, before.index), after.index + before.size], axis=1
    )
    probs = np.concatenate([before.probs, after.probs], axis=1)
    hit = np.concatenate([before.hit, after.hit], axis=1)
    return Cells(index, probs, hit, size, before.scale)


def _z(level: float) -> float:
    from scipy.special import ndtri

    if not 0 < level < 1:
        raise InputError(f"level is {level}, expected a number between 0 and 1")
    return float(ndtri((1 + level) / 2))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
