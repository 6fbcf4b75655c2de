"""Our option log-probabilities beside lm-eval's and plain transformers', for the same prompts."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from calibrant.prompts import LETTERS, Prompt, context
from calibrant.scoring.local import score
from helpers import make_model, make_questions

# Rotary and learned positions, soft-capped logits, sliding windows; packed rows or one per option.
ARCHITECTURES = ("llama", "gpt2", "qwen2", "gemma3", "opt")
CASES = [
    *(
        (architecture, attention)
        for architecture in ARCHITECTURES
        for attention in ("eager", "sdpa")
    ),
    ("gemma2", "eager"),  # soft-capped attention has no other implementation on a CPU
]
PROMPTS = (Prompt("letter", letter_tokens="single"), Prompt("cloze-sum"))


@pytest.fixture(scope="module")
def questions():
    return make_questions(7, seed=11, k_max=5)


def continuations(question, prompt):
    options = LETTERS[: len(question.choices)] if prompt.is_letter else question.choices
    return [f" {option}" for option in options]


def plain(model, tokenizer, text, continuation):
    """Log-probability of a continuation by one unbatched, unpadded forward pass."""
    start = len(tokenizer(text)["input_ids"])
    ids = tokenizer(text + continuation, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = model(ids).logits[0].float().log_softmax(-1)
    return logprobs[start - 1 : -1].gather(1, ids[0, start:, None]).sum().item()


def lm_eval_scores(model, tokenizer, questions, prompt):
    """What `lm_eval`'s own model class gives for the same texts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=512, device="cpu")
    requests = [
        Instance("loglikelihood", {}, (context(q, prompt), continuation), 0)
        for q in questions
        for continuation in continuations(q, prompt)
    ]
    found = iter(lm.loglikelihood(requests, disable_tqdm=True))
    return [[next(found)[0] for _ in q.choices] for q in questions]


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_scores_are_those_of_lm_eval_and_of_plain_transformers(
    tokenizer, questions, architecture, attention
):
    model = make_model(architecture, seed=3)
    model.set_attn_implementation(attention)
    for prompt in PROMPTS:
        expected = [
            [plain(model, tokenizer, context(q, prompt), c) for c in continuations(q, prompt)]
            for q in questions
        ]
        harness = lm_eval_scores(model, tokenizer, questions, prompt)
        for side in ("left", "right"):
            padded = deepcopy(tokenizer)
            padded.padding_side = side
            table = score(model, padded, questions, prompt=prompt, show_progress=False)
            for i, q in enumerate(questions):
                found = table.logprobs[i, : len(q.choices)]
                np.testing.assert_allclose(found, expected[i], atol=1e-5, rtol=0, err_msg=side)
                np.testing.assert_allclose(found, harness[i], atol=1e-4, rtol=0, err_msg=side)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 512},
        {"final_logit_softcapping": None},
        {"attn_logit_softcapping": None},
    ],
)
def test_the_window_and_the_caps_change_the_scores(tokenizer, questions, changes):
    """Else parity on these models would show nothing."""
    tables = [
        score(make_model("gemma2", seed=3, **more), tokenizer, questions, show_progress=False)
        for more in ({}, changes)
    ]
    assert np.abs(tables[0].probs() - tables[1].probs()).max() > 1e-4
