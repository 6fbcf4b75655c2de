"""The losses, as plain functions of option scores.

Shapes: Q questions, K options. ``scores`` are ``(Q, K)`` float32, ``-inf`` for padding options;
``answer`` is ``(Q,)`` int64. Every function returns one value per question, ``(Q,)`` float32, so
that the trainer can normalise over the global batch.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, softplus


def option_cross_entropy(scores: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    r"""Cross-entropy over the question's own options, ``−log softmax(scores)[answer]`` in nats.

    Examples
    --------
    >>> option_cross_entropy(torch.tensor([[0.6, 0.4]]).log(), torch.tensor([0])).item()
    0.5108...
    """
    return cross_entropy(scores, answer, reduction="none")


def answer_nll(
    scores: torch.Tensor, answer: torch.Tensor, divisor: torch.Tensor | None = None
) -> torch.Tensor:
    """Full-vocabulary negative log-likelihood of the answer's tokens, ``−log p(answer | prompt)``.

    For letters this is the cross-entropy over the vocabulary at the answer position; for cloze,
    pass the ``(Q, K)`` divisors the scores were divided by, to get back the sum over tokens.
    """
    at = answer[:, None]
    nll = -scores.gather(1, at)
    return (nll if divisor is None else nll * divisor.gather(1, at)).squeeze(1)


def squared_distance(
    probs: torch.Tensor,
    target: torch.Tensor,
    option: torch.Tensor | None = None,
    *,
    fixed_target: bool = True,
) -> torch.Tensor:
    """L_ECE of one question: ``‖p̂ − q‖²`` over its options; no gradient flows through ``q``.

    ``fixed_target=False`` lets it, as the published code does.

    Examples
    --------
    >>> round(squared_distance(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.6, 0.4]])).item(), 4)
    0.18
    """
    error = (probs - (target.detach() if fixed_target else target)) ** 2
    if option is not None:
        error = error.masked_fill(~option, 0.0)
    return error.sum(dim=1)


def dpo(scores: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    r"""Direct preference optimisation of pairs, in nats.

    ``−log σ(β · [(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))])``.

    Parameters
    ----------
    scores : (Q, 2) float32, log-probabilities of the preferred and the rejected answer.
    reference : (Q, 2) float32, the same under the reference model.
    beta : strength of the pull to the reference; the optimum is ``π ∝ π_ref · exp(r / β)``.

    References
    ----------
    Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, arXiv 2305.18290, eq. 7.

    Examples
    --------
    >>> even = torch.tensor([[0.5, 0.5]]).log()
    >>> round(dpo(torch.tensor([[0.8, 0.2]]).log(), even, beta=0.5).item(), 4)  # ln 1.5
    0.4055
    """
    margin = (scores - reference).diff(dim=1).squeeze(1)  # rejected minus preferred
    return softplus(beta * margin)


def preference_matching(scores: torch.Tensor) -> torch.Tensor:
    r"""Preference matching of pairs: the policy's own odds are the preference's odds, in nats.

    ``−log [π(y_w) / (π(y_w) + π(y_l))]``. With Bradley–Terry preferences on p* its optimum is
    ``π ∝ p*``: nothing is sharpened. It is DPO with β = 1 and a uniform reference, the regulariser
    ``−log π`` in place of the pull to the reference.

    References
    ----------
    Xiao et al., "On the Algorithmic Bias of Aligning Large Language Models with RLHF: Preference
    Collapse and Matching Regularization", arXiv 2405.16455.

    Examples
    --------
    >>> round(preference_matching(torch.tensor([[0.6, 0.2]]).log()).item(), 4)  # −ln 0.75
    0.2877
    """
    return softplus(scores.diff(dim=1).squeeze(1))
