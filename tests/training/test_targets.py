import numpy as np
import pytest
import torch

from calibrant.training.losses import answer_nll, option_cross_entropy, squared_distance
from calibrant.training.targets import ConfidenceMap, tanh_target, tempered_target


def test_confidence_map_is_shrunk_bin_accuracy():
    g = ConfidenceMap(n_bins=10, shrinkage=10)
    g.update(np.array([0.95] * 30 + [0.45] * 10), np.array([1] * 15 + [0] * 15 + [1] * 10))
    pooled = 25 / 40
    expected = [(15 + 10 * pooled) / 40, (10 + 10 * pooled) / 20, pooled]
    np.testing.assert_allclose(g(torch.tensor([1.0, 0.4, 0.05])).tolist(), expected, rtol=1e-6)


def test_confidence_map_regularises_the_top_bin():
    """The released code's loop left out [0.9, 1.0], where a collapsed model lives."""
    g = ConfidenceMap(n_bins=10, shrinkage=0)
    g.update(np.ones(10), np.array([1] * 3 + [0] * 7))
    assert g(torch.tensor([1.0])).item() == pytest.approx(0.3)


def test_confidence_map_forgets_at_the_given_rate():
    g = ConfidenceMap(n_bins=1, shrinkage=0, decay=0.5)
    g.update(np.full(10, 0.5), np.ones(10))
    g.update(np.full(10, 0.5), np.zeros(10))
    assert g(torch.tensor([0.5])).item() == pytest.approx(5 / 15)
    again = ConfidenceMap(n_bins=1, shrinkage=0, decay=0.5)
    again.restore(g.state())
    assert again(torch.tensor([0.5])).item() == g(torch.tensor([0.5])).item()


@pytest.mark.parametrize("k", [2, 3, 4, 5, 10])
def test_tempered_target_hits_its_top_and_keeps_the_order(k):
    generator = torch.Generator().manual_seed(k)
    scores = torch.randn(500, k, generator=generator) * 3
    top = torch.rand(500, generator=generator) * (1 - 1 / k - 0.02) + 1 / k + 0.01
    target = tempered_target(scores, top)
    torch.testing.assert_close(target.max(dim=1).values, top, atol=1e-5, rtol=0)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(500), atol=1e-6, rtol=0)
    assert (target.gather(1, scores.argsort(dim=1)).diff(dim=1) >= 0).all()
    assert (target.argmax(dim=1) == scores.argmax(dim=1)).all()


def test_tempered_target_is_a_temperature():
    scores = torch.tensor([[3.0, 1.0, 0.5, -2.0]])
    wanted = (scores / 2.5).softmax(dim=1)
    torch.testing.assert_close(tempered_target(scores, wanted.max(dim=1).values), wanted)


@pytest.mark.parametrize(
    ("scores", "top", "expected"),
    [
        ([[0.0, 0.0, 0.0]], 0.9, [1 / 3, 1 / 3, 1 / 3]),  # all tie: nothing else keeps the order
        ([[1.0, 1.0, -5.0]], 0.9, [0.499, 0.499, 0.002]),  # two tie: at most half each
        ([[1.0, 0.0]], 0.2, [0.501, 0.499]),  # below 1/K: as flat as the order allows
        ([[1.0, 0.0, -torch.inf]], 0.7, [0.7, 0.3, 0.0]),  # padding stays out
        ([[1e4, 0.0, -1e4]], 0.6, [0.6, 0.2745, 0.1255]),  # 1 + x + x² = 1 / .6, x = .4574
        ([[1e-6, 0.0]], 0.9, [0.9, 0.1]),
        ([[0.0, -1.0, -1e30]], 0.4, [0.4, 0.4, 0.2]),  # a gap of 1e30 beside one of 1
    ],
)
def test_tempered_target_at_the_edges(scores, top, expected):
    target = tempered_target(torch.tensor(scores), torch.tensor([top]))
    np.testing.assert_allclose(target[0], expected, atol=1e-3)


def test_tanh_target_by_hand():
    """K = 4, τ = .6, others .2, .1, .1, written out from the formula."""
    target = tanh_target(torch.tensor([[0.1, 0.6, 0.2, 0.1]]), torch.tensor([0.6]))
    gamma = np.log(3) / (0.2 * 0.4)
    bent = np.tanh(gamma * np.array([0.1, 0.2, 0.1]))
    a = 0.4 / (bent.sum() + 3)
    expected = [a * (1 + bent[0]), 0.6, a * (1 + bent[1]), a * (1 + bent[2])]
    np.testing.assert_allclose(target[0], expected, atol=1e-6)
    assert target.sum().item() == pytest.approx(1)


def test_tanh_target_keeps_the_top_only_above_its_threshold():
    """2 / (K + 2) suffices; for K = 4 the exact threshold is .329: below it the map swaps."""
    probs = torch.tensor([[0.97, 0.03, 0.0, 0.0]])
    assert tanh_target(probs, torch.tensor([0.35])).argmax() == 0
    assert tanh_target(probs, torch.tensor([0.25])).argmax() == 1


def test_losses_by_hand():
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]).log()
    answer = torch.tensor([1, 0])
    np.testing.assert_allclose(
        option_cross_entropy(scores, answer), [-np.log(0.2), np.log(2)], rtol=1e-6
    )
    np.testing.assert_allclose(answer_nll(scores, answer), [-np.log(0.2), np.log(2)], rtol=1e-6)
    divisor = torch.tensor([[1.0, 3.0, 2.0], [2.0, 1.0, 1.0]])
    np.testing.assert_allclose(
        answer_nll(scores, answer, divisor), [-3 * np.log(0.2), 2 * np.log(2)], rtol=1e-6
    )
    probs, target = torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([[0.6, 0.3, 0.5]])
    option = torch.tensor([[True, True, False]])
    assert squared_distance(probs, target, option).item() == pytest.approx(0.09 + 0.04)


def test_gradients_by_finite_differences_and_none_through_the_target():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    answer = torch.tensor([0, 3, 2])
    top = torch.tensor([0.5, 0.6, 0.9])

    target = tempered_target(scores, top).double()

    def ece(z):
        return squared_distance(z.softmax(1), target).sum()

    assert torch.autograd.gradcheck(lambda z: option_cross_entropy(z, answer).sum(), scores)
    assert torch.autograd.gradcheck(lambda z: answer_nll(z, answer).sum(), scores)
    assert torch.autograd.gradcheck(ece, scores)
    squared_distance(scores.softmax(1), tempered_target(scores, top)).sum().backward()
    through = scores.grad.clone()
    fixed = torch.autograd.grad(ece(scores), scores)[0]
    torch.testing.assert_close(through, fixed)
