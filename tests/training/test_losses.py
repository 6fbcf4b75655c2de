"""Every loss against values worked out by hand, and its gradient against finite differences."""

import math

import pytest
import torch

from calibrant.training.losses import (
    brier,
    cogcalib,
    confidence_penalty,
    distillation,
    focal,
    label_smoothing,
    option_cross_entropy,
)

INF = math.inf
# p = (.5, .25, .25) with the answer second; p = (.8, .2) and padding, with the answer first.
SCORES = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.2, 0.0]], dtype=torch.float64).log() + 3
ANSWER = torch.tensor([1, 0])
L2, L5 = math.log(2), math.log(5)
BY_HAND = [
    (
        lambda s, y: label_smoothing(s, y, 0.3),
        [0.7 * 2 * L2 + 0.3 * 5 / 3 * L2, 0.85 * math.log(1.25) + 0.15 * L5],
    ),
    (
        lambda s, y: confidence_penalty(s, y, 0.5),
        [2 * L2 - 0.5 * 1.5 * L2, math.log(1.25) - 0.5 * (0.8 * math.log(1.25) + 0.2 * L5)],
    ),
    (lambda s, y: focal(s, y, 2.0), [0.5625 * 2 * L2, 0.04 * math.log(1.25)]),
    (lambda s, y: focal(s, y, 0.5), [0.75**0.5 * 2 * L2, 0.2**0.5 * math.log(1.25)]),
    (
        lambda s, y: brier(s, y, 10.0),
        [2 * L2 + 10 * (0.25 + 0.5625 + 0.0625), math.log(1.25) + 10 * (0.04 + 0.04)],
    ),
    (
        lambda s, y: cogcalib(option_cross_entropy(s, y), brier(s, y, 0.0), 1.0, 3.0),
        [2 * L2, 4 * math.log(1.25)],  # −log .25 > 1 is not known yet
    ),
]
LOSSES = pytest.mark.parametrize(("loss", "expected"), BY_HAND)


@LOSSES
def test_losses_are_those_worked_out_by_hand(loss, expected):
    assert loss(SCORES, ANSWER).tolist() == pytest.approx(expected, rel=1e-12)


@LOSSES
def test_gradients_are_those_of_finite_differences(loss, expected):
    torch.manual_seed(0)
    scores = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    answer = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.autograd.gradcheck(lambda s: loss(s, answer), scores, eps=1e-6, atol=1e-8)


@LOSSES
def test_padding_options_change_no_value_and_get_no_gradient(loss, expected):
    narrow = SCORES[:1].clone().requires_grad_()
    wide = torch.cat((SCORES[:1], torch.full((1, 2), -INF, dtype=torch.float64)), dim=1)
    wide.requires_grad_()
    a, b = loss(narrow, ANSWER[:1]), loss(wide, ANSWER[:1])
    a.sum().backward()
    b.sum().backward()
    assert b.item() == pytest.approx(a.item(), rel=1e-12)
    torch.testing.assert_close(wide.grad[:, :3], narrow.grad, rtol=1e-12, atol=1e-15)
    assert (wide.grad[:, 3:] == 0).all()


@LOSSES
@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_sure_answers_keep_finite_gradients(loss, expected, gap):
    scores = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    value = loss(scores, torch.tensor([0])).sum()
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()


def test_without_their_weights_all_are_the_cross_entropy():
    plain = option_cross_entropy(SCORES, ANSWER)
    for loss in (label_smoothing, confidence_penalty, focal, brier):
        torch.testing.assert_close(loss(SCORES, ANSWER, 0.0), plain)


def test_label_smoothing_is_torchs_where_nothing_is_padded():
    torch.manual_seed(0)
    scores, answer = torch.randn(50, 5), torch.randint(5, (50,))
    reference = torch.nn.functional.cross_entropy(
        scores, answer, reduction="none", label_smoothing=0.2
    )
    torch.testing.assert_close(label_smoothing(scores, answer, 0.2), reference)


def test_label_smoothing_is_least_at_its_target():
    scores = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = label_smoothing(scores, torch.tensor([2]), 0.4).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert scores.softmax(1)[0].tolist() == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=1e-5)


def test_distillation_is_the_divergence_worked_out_by_hand():
    teacher = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]], dtype=torch.float64)
    # against (.5, .25, .25): .25 ln(1/2) + 0 + .5 ln 2; against (.8, .2): .5 ln .625 + .5 ln 2.5
    expected = [0.25 * L2, 0.5 * math.log(0.625) + 0.5 * math.log(2.5)]
    scores = SCORES.clone()
    scores[1, 2] = -INF
    assert distillation(scores, teacher).tolist() == pytest.approx(expected, rel=1e-12)
    assert distillation(scores, scores.softmax(dim=1)).tolist() == pytest.approx([0, 0], abs=1e-15)


def test_distillation_pulls_by_the_difference_of_the_probabilities():
    torch.manual_seed(0)
    scores = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, dtype=torch.float64).softmax(dim=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: distillation(s, teacher), scores, eps=1e-6)
    wide = torch.cat((scores, torch.full((5, 1), -INF, dtype=torch.float64)), dim=1)
    distillation(wide, torch.cat((teacher, torch.zeros(5, 1)), dim=1)).sum().backward()
    torch.testing.assert_close(scores.grad, scores.softmax(dim=1) - teacher, rtol=0, atol=1e-12)
    assert teacher.grad is None
