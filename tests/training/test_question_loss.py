"""The loss of a question's own tokens: as plain logits give it, without holding them."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from calibrant.prompts import encode
from calibrant.scoring import batch as layout
from calibrant.scoring.batch import PACKABLE, collate, option_scores
from helpers import make_model, make_questions


@pytest.fixture
def few_rows(monkeypatch):
    """Logits of 16 positions at a time, so that there are many pieces."""
    monkeypatch.setattr(layout, "CPU_LOGITS", 16 * 512)


def encoded(tokenizer, prompt="letter", n=6):
    return encode(list(make_questions(n)), tokenizer, prompt)


def packed(questions):
    return collate(questions, pad_token=2, packed=True, row_tokens=100, question_loss=True)


def plain(model, questions):
    """Negative log-likelihood of the questions' tokens, one question at a time."""
    total = 0.0
    for q in questions:
        ids = torch.tensor([q.prefix])
        total += cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    return total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", [*sorted(PACKABLE), "gemma2"])
def test_loss_and_gradient_are_those_of_plain_logits(tokenizer, few_rows, architecture):
    """Also where a soft cap stands between head and logits, so that pieces cannot be had."""
    model = make_model(architecture)
    for p in (*model.model.layers[0].parameters(),) if architecture == "llama" else ():
        p.requires_grad_(False)  # frozen beside trained
    questions = encoded(tokenizer)
    expected = plain(model, questions)
    wanted = gradients(model, expected)
    batch = collate(
        questions,
        pad_token=2,
        packed=architecture in PACKABLE,
        row_tokens=100,
        question_loss=True,
    )
    _, found = option_scores(model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    got = gradients(model, found)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("prompt", ["letter", "cloze"])
def test_no_logits_but_those_of_the_options_are_held(tokenizer, few_rows, prompt):
    model, questions = make_model(), encoded(tokenizer, prompt)
    widest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            wide = isinstance(out, torch.Tensor) and out.shape[-1:] == (512,)
            if wide and out.shape != (48, 512):  # but for the head's own matrix
                widest.append(out.numel() // 512)
            return out

    batch = packed(questions)
    with Watch():
        scores, nll = option_scores(model, batch)
        (scores[scores > -torch.inf].sum() + nll).backward()
    read = len(batch["read_row"])
    assert len(batch["question_token"]) > 3 * 16
    assert read < len(batch["question_token"])
    assert max(widest) == read


def test_tokens_that_are_not_learnt_do_not_count(tokenizer):
    model, questions = make_model(), encoded(tokenizer)
    batch = packed(questions)
    learnt = batch["question_of"] != 2
    batch["question_token"] = batch["question_token"].where(learnt, -100)
    _, found = option_scores(model, batch)
    expected = plain(model, [q for i, q in enumerate(questions) if i != 2])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_models_own_head_is_given_back(tokenizer):
    model = make_model()
    option_scores(model, packed(encoded(tokenizer)))
    assert "forward" not in vars(model.lm_head)
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        option_scores(model, packed(encoded(tokenizer)))
    assert "forward" not in vars(model.lm_head)


def test_bfloat16_autocast_stays_near(tokenizer):
    """Products are rounded to 8 bits, sums are float32: the loss is within 2 %, gradients are
    within a tenth of their length."""
    model, questions = make_model(), encoded(tokenizer)
    expected = plain(model, questions)
    wanted = gradients(model, expected)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = option_scores(model, packed(questions))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    for name, got in gradients(model, found).items():
        error = (got - wanted[name]).norm() / wanted[name].norm()
        assert error < 0.1, name


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_changes_nothing(tokenizer, side):
    model, questions = make_model(), encoded(tokenizer, "cloze")
    reference_scores, reference = option_scores(model, packed(questions))
    batch = collate(
        questions, pad_token=2, packed=True, padding_side=side, question_loss=True
    )  # one row each: padded
    scores, found = option_scores(model, batch)
    torch.testing.assert_close(scores, reference_scores, atol=1e-5, rtol=0)
    assert found.item() == pytest.approx(reference.item(), rel=1e-6)
