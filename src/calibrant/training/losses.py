"""The losses, as plain functions of option scores.

Shapes: Q questions, K options. ``scores`` are ``(Q, K)`` float32, ``-inf`` for padding options;
``answer`` is ``(Q,)`` int64. Every function returns one value per question, ``(Q,)`` float32, so
that the trainer can normalise over the global batch.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, one_hot, softplus


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


def label_smoothing(
    scores: torch.Tensor, answer: torch.Tensor, epsilon: float = 0.1
) -> torch.Tensor:
    r"""Cross-entropy with a target that leaves ε to all of the question's options alike, in nats.

    ``−(1 − ε) log p[answer] − (ε / K) Σ_k log p_k``, K the question's own number of options; least
    at ``p[answer] = 1 − ε + ε / K``.

    References
    ----------
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, §7; for
    aligned language models arXiv 2508.00264.

    Examples
    --------
    >>> scores = torch.tensor([[0.6, 0.4]]).log()
    >>> round(label_smoothing(scores, torch.tensor([0]), 0.5).item(), 4)  # .75 and .25
    0.6122
    """
    log_p, option = _option_log_probs(scores)
    even = -log_p.sum(dim=1) / option.sum(dim=1)
    return (1 - epsilon) * option_cross_entropy(scores, answer) + epsilon * even


def confidence_penalty(
    scores: torch.Tensor, answer: torch.Tensor, weight: float = 0.1
) -> torch.Tensor:
    r"""Cross-entropy less λ times the entropy over the options, ``−log p[answer] − λ H(p)``, nats.

    References
    ----------
    Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions",
    2017, arXiv 1701.06548.

    Examples
    --------
    >>> scores = torch.tensor([[0.6, 0.4]]).log()
    >>> round(confidence_penalty(scores, torch.tensor([0]), 1.0).item(), 4)  # .5108 − .6730
    -0.1622
    """
    log_p, _ = _option_log_probs(scores)
    entropy = -(scores.softmax(dim=1) * log_p).sum(dim=1)
    return option_cross_entropy(scores, answer) - weight * entropy


def focal(scores: torch.Tensor, answer: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    r"""Cross-entropy that counts little where the answer is likely, ``−(1 − p)^γ log p``, in nats.

    p is the answer's probability among the options; γ = 0 is the cross-entropy.

    References
    ----------
    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; Mukhoti et al., "Calibrating
    Deep Neural Networks using Focal Loss", NeurIPS 2020.

    Examples
    --------
    >>> scores = torch.tensor([[0.6, 0.4]]).log()
    >>> round(focal(scores, torch.tensor([0])).item(), 4)  # .16 · .5108
    0.0817
    """
    nll = option_cross_entropy(scores, answer)
    # A base of 0 has no slope for γ < 1, and the loss none there: the clamp stops the gradient.
    missed = (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).tiny)
    return missed**gamma * nll


def brier(scores: torch.Tensor, answer: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    r"""Cross-entropy plus λ times the Brier score, ``−log p[answer] + λ ‖p − e_answer‖²``.

    Both parts are proper scores, so there are neither bins nor an E-step.

    Examples
    --------
    >>> scores = torch.tensor([[0.6, 0.4]]).log()
    >>> round(brier(scores, torch.tensor([0])).item(), 4)  # .5108 + .32
    0.8308
    """
    probs = scores.softmax(dim=1)
    return option_cross_entropy(scores, answer) + weight * squared_distance(
        probs, one_hot(answer, probs.shape[1]).to(probs.dtype)
    )


def cogcalib(
    nll: torch.Tensor, calibration: torch.Tensor, threshold: float, weight: float = 1.0
) -> torch.Tensor:
    r"""Add a calibration loss on questions already known only: ``nll + 1[nll ≤ t] · α · L_cal``.

    Questions the model does not know yet are only learnt. The gate carries no gradient.

    Parameters
    ----------
    nll : (Q,) float32, −log p of the answer, nats.
    calibration : (Q,) float32, L_cal, any loss of this file.
    threshold : t, nats; ``log K`` is a guess among K options.

    References
    ----------
    arXiv 2505.20903 (CogCalib).

    Examples
    --------
    >>> cogcalib(torch.tensor([0.2, 2.0]), torch.tensor([0.5, 0.5]), threshold=1.0).tolist()
    [0.699..., 2.0]
    """
    return nll + weight * calibration.masked_fill(nll.detach() > threshold, 0.0)


def distillation(scores: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    r"""Divergence from another model's option probabilities, ``KL(t ‖ p) = Σ_k t_k log t_k / p_k``.

    In nats, 0 where the two agree; its gradient in the scores is ``p − t``.

    Parameters
    ----------
    teacher : (Q, K) float32, t, rows sum to 1, 0 for padding options; carries no gradient.

    References
    ----------
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531; with the
    model itself as it was before training: Li and Hoiem, "Learning without Forgetting", ECCV 2016.

    Examples
    --------
    >>> scores, teacher = torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.9, 0.1]])
    >>> round(distillation(scores, teacher).item(), 4)  # .9 ln 1.5 − .1 ln 4
    0.2263
    """
    log_p, _ = _option_log_probs(scores)
    teacher = teacher.detach()
    return (torch.xlogy(teacher, teacher) - teacher * log_p).sum(dim=1)


def _option_log_probs(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities with 0 in place of padding options, and which options are real."""
    option = scores > -torch.inf
    return scores.log_softmax(dim=1).masked_fill(~option, 0.0), option


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


def catto(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    r"""Distance of each token's confidence from how far the right token leads.

    ``|max_v p_t(v) − σ(p_t(correct) − max_{v ≠ correct} p_t(v))|``, p_t the softmax of the logits
    at token t. The lead stands in for "was the token right?", which has no gradient; here it is a
    fixed target, and only the confidence is pulled. CATTO adds λ times its sum over the tokens of
    the preferred answer to DPO's loss. The source's own text gives more than we could read: this is
    the formula as others restate it.

    Parameters
    ----------
    logits : (T, V) float32. token : (T,) int64, the right token at each place.

    Returns
    -------
    (T,) float32, in [0, .74).

    References
    ----------
    arXiv 2601.23096 (CATTO).

    Examples
    --------
    >>> logits = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]).log()
    >>> catto(logits, torch.tensor([0, 1])).tolist()  # σ(.3) = .5744, σ(−.3) = .4256
    [0.0255..., 0.1744...]
    """
    probs = logits.softmax(dim=1)
    with torch.no_grad():
        right = probs.gather(1, token[:, None])
        other = probs.scatter(1, token[:, None], -torch.inf).max(dim=1, keepdim=True).values
        lead = torch.sigmoid(right - other).squeeze(1)
    return (probs.max(dim=1).values - lead).abs()


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
