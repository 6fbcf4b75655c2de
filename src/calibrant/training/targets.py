"""The E-step: what the model's confidences should have been, and targets made of it.

RCFT alternates. *E-step*: estimate g(c) = P(correct | confidence c) from questions the SFT loss
never sees. *M-step*: pull each training question's option probabilities towards a vector whose top
entry is g of its confidence and whose order is the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibrant.metrics import bin_table_from_confidence
from calibrant.posthoc._confidence import sharpness


@dataclass
class ConfidenceMap:
    r"""Estimate of P(correct | confidence) in equal-width bins, shrunk to the pooled accuracy.

    ``g(c) = (s_b + m · ACC) / (n_b + m)`` for c in bin b with ``n_b`` questions of which ``s_b``
    right. Counts are an exponential moving average over refreshes:
    ``s ← decay · s + s_new``, ``n`` likewise, so ``decay = 0`` forgets everything earlier.

    Parameters
    ----------
    n_bins : B equal-width bins of [0, 1], the bin rule of `calibrant.metrics.bin_index`.
    shrinkage : m, pseudo-questions at the pooled accuracy.
    decay : weight of earlier refreshes, in [0, 1).

    Examples
    --------
    >>> g = ConfidenceMap(n_bins=2, shrinkage=0.0)
    >>> g.update(np.array([0.4, 0.9, 0.9]), np.array([1, 1, 0]))
    >>> g(torch.tensor([0.3, 0.8])).tolist()
    [1.0, 0.5]
    """

    n_bins: int = 10
    shrinkage: float = 10.0
    decay: float = 0.5

    def __post_init__(self) -> None:
        self.count = np.zeros(self.n_bins)
        self.sum_correct = np.zeros(self.n_bins)

    def update(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Refresh from N held-out questions: confidence (N,) in [0, 1], correct (N,) bool."""
        self.add(*self.tally(confidence, correct))

    def tally(self, confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Questions and right answers in each bin, two (B,) float64; nothing is refreshed."""
        table = bin_table_from_confidence(confidence, correct, n_bins=self.n_bins)
        return table.count[0], table.sum_correct[0]

    def add(self, count: np.ndarray, sum_correct: np.ndarray) -> None:
        """Refresh from a tally."""
        self.count = self.decay * self.count + count
        self.sum_correct = self.decay * self.sum_correct + sum_correct

    def __call__(self, confidence: torch.Tensor) -> torch.Tensor:
        """g of each confidence, same shape and device, float32."""
        if not self.count.sum():
            raise RuntimeError("ConfidenceMap has seen no question; call update first")
        accuracy = self.sum_correct.sum() / self.count.sum()
        # A bin nobody is in has n_b = 0: the pooled accuracy, also without shrinkage.
        weight = self.count + self.shrinkage
        value = np.where(
            weight > 0,
            (self.sum_correct + self.shrinkage * accuracy) / np.where(weight > 0, weight, 1.0),
            accuracy,
        )
        return self._at(value, confidence)

    def counts(self, confidence: torch.Tensor) -> torch.Tensor:
        """Questions seen in the bin of each confidence, same shape and device, float32."""
        return self._at(self.count, confidence)

    def _at(self, value: np.ndarray, confidence: torch.Tensor) -> torch.Tensor:
        edges = torch.arange(1, self.n_bins, dtype=torch.float64) / self.n_bins
        where = torch.bucketize(confidence.detach().cpu().double(), edges, right=True)
        return torch.tensor(value, dtype=torch.float32)[where].to(confidence.device)

    def state(self) -> dict[str, Any]:
        """JSON-able state; `restore` takes it back."""
        return {"count": self.count.tolist(), "sum_correct": self.sum_correct.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.count = np.array(state["count"], dtype=np.float64)
        self.sum_correct = np.array(state["sum_correct"], dtype=np.float64)


def tempered_target(
    scores: torch.Tensor, top: torch.Tensor, *, margin: float = 1e-3
) -> torch.Tensor:
    r"""Option probabilities with a given top entry and the model's own order.

    ``q_i = softmax(β_i · scores_i)`` with β_i ≥ 0 such that ``max_k q_ik = τ_i``, where ``τ_i`` is
    ``top_i`` clipped to ``[1/K + margin, 1/m − margin]`` for m options tied at the top (only m = 1
    can approach 1). No gradient.

    Parameters
    ----------
    scores : (Q, K) float32, ``-inf`` for padding options.
    top : (Q,) float32 in [0, 1].

    Returns
    -------
    (Q, K) float32, rows sum to 1.

    Examples
    --------
    >>> q = tempered_target(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0.5]))
    >>> [round(v, 3) for v in q[0].tolist()]
    [0.5, 0.309, 0.191]
    """
    z = scores.detach().cpu().double()  # a few numbers; not every device has float64
    gap = z.max(dim=1, keepdim=True).values - z  # (Q, K) ≥ 0, inf for padding
    low = 1 / torch.isfinite(gap).sum(dim=1) + margin
    high = 1 / (gap == 0).sum(dim=1) - margin
    tau = top.detach().cpu().double().clamp(min=low).clamp(max=torch.maximum(high, low))
    beta = torch.from_numpy(sharpness(gap.numpy(), tau.numpy()))
    return torch.softmax(-beta[:, None] * gap, dim=1).float().to(scores.device)


def tanh_target(
    probs: torch.Tensor,
    top: torch.Tensor,
    option: torch.Tensor | None = None,
    *,
    differentiable: bool = False,
) -> torch.Tensor:
    r"""Build the target of the released code: top entry ``top``, the rest rank-preserving.

    With the non-top probabilities ``p_(2) ≥ … ≥ p_(K)``, ``γ = atanh(0.8) / (p_(2) (1 − τ))`` and
    ``a = (1 − τ) / (Σ_j tanh(γ p_(j)) + K − 1)``, the others get ``t_(j) = a (1 + tanh(γ p_(j)))``,
    which sum to ``1 − τ``. Keeps the top on top for every input only if ``τ ≥ 2 / (K + 2)``.

    Parameters
    ----------
    probs : (Q, K) float32.
    top : (Q,) float32, τ in (0, 1).
    option : (Q, K) bool, real options; all by default.
    differentiable : let the gradient flow through the target, as the released code does.

    Returns
    -------
    (Q, K) float32, rows sum to 1.

    Examples
    --------
    >>> t = tanh_target(torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([0.6]))
    >>> [round(v, 4) for v in t[0].tolist()]
    [0.6, 0.2058, 0.1942]
    """
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        p = probs.cpu().double()
        tau = top.cpu().double().clamp(1e-3, 1 - 1e-3)[:, None]
        first = p.argmax(dim=1, keepdim=True)
        real = torch.ones_like(p, dtype=torch.bool) if option is None else option.cpu()
        other = real.scatter(1, first, False)  # (Q, K)
        second = p.masked_fill(~other, 0.0).max(dim=1, keepdim=True).values.clamp(min=1e-30)
        gamma = float(np.arctanh(0.8)) / (second * (1 - tau))
        bent = torch.tanh(gamma * p).masked_fill(~other, 0.0)
        a = (1 - tau) / (bent.sum(dim=1, keepdim=True) + other.sum(dim=1, keepdim=True))
        target = (a * (1 + bent)).masked_fill(~other, 0.0)
        return target.scatter(1, first, tau).float().to(probs.device)
