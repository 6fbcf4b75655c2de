"""Score questions with a `transformers` model in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from calibrant.answers import AnswerTable
from calibrant.permutations import in_own_order, permuted
from calibrant.progress import progress
from calibrant.prompts import EncodedQuestion, Prompt, PromptLike, check_lists_options, encode
from calibrant.questions import Question, question_key
from calibrant.scoring.batch import can_pack, check_lengths, collate, option_scores, unwrapped
from calibrant.version import __version__

# Kept logits of one batch are held to this many float32 values (128 MiB), three times over while
# their softmax is taken.
LOGITS_BUDGET = 2**25


def score(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    prompt: PromptLike = "letter",
    permutations: str | int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    show_progress: bool = True,
) -> AnswerTable:
    r"""Ask a model every question and return its option log-probabilities.

    Letter formats: ``logprobs[i, k] = log P(letter_k | prompt_i)`` over the whole vocabulary, the
    sum over the tokens that read as the letter (``A``, `` A``; see `calibrant.prompts`).
    Cloze formats: ``logprobs[i, k] = (1 / n_k) Σ_t log P(token_t of option k | prompt, earlier
    tokens)``, ``n_k`` tokens, characters or 1. Softmax over a row gives the model's option
    probabilities either way (`AnswerTable.probs`). Log-probabilities are taken in float32 whatever
    the model's dtype. Batching, order and padding side do not matter.

    Parameters
    ----------
    model : a causal language model; a PEFT adapter may be on it.
    tokenizer : its tokenizer; ``tokenizer.padding_side`` is honoured.
    questions : N questions, 2 to 26 options each.
    prompt : a `calibrant.prompts.Prompt`, or a format's name for one with default settings.
    permutations : ask every question with its options in several orders, "cyclic", "all" or a
        number of random ones drawn with ``seed`` (`calibrant.permutations.permuted`); aggregate the
        rows with `calibrant.permutations.average` before anything else.
    batch_tokens : tokens per forward pass, padding included (1024 on a CPU, else 16384).
    show_progress : draw a progress bar on standard error.

    Returns
    -------
    AnswerTable
        With ``option_mass[i] = Σ_k P(letter_k)`` for letters, NaN for cloze. With permutations one
        row per question and order, and ``orders``.

    Raises
    ------
    InputError
        If the tokenizer cannot form the prompt, a question is longer than the model's context, or
        options are to be permuted that the prompt does not list.
    """
    prompt = Prompt.of(prompt)
    if permutations is not None:
        check_lists_options(prompt)
        rows, orders = permuted(questions, permutations, seed)
        answers = score(
            model,
            tokenizer,
            rows,
            prompt=prompt,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )
        notes = _data(questions) | {"permutations": {"orders": permutations, "seed": seed}}
        return in_own_order(answers.with_logprobs(answers.logprobs, **notes), orders)
    encoded = encode(list(questions), tokenizer, prompt)
    scores = score_encoded(
        model, tokenizer, encoded, batch_tokens=batch_tokens, show_progress=show_progress
    )
    n_options = np.array([len(q.choices) for q in questions])
    with np.errstate(under="ignore"):
        mass = np.exp(scores).sum(axis=1) if prompt.is_letter else np.full(len(encoded), np.nan)
    return AnswerTable(
        ids=tuple(q.id for q in questions),
        logprobs=scores,
        labels=np.array([q.answer for q in questions]),
        n_options=n_options,
        option_mass=np.minimum(mass, 1.0),
        tasks=tuple(q.subject or "" for q in questions),
        groups=tuple(question_key(q) for q in questions),
        provenance=_provenance(model, questions, prompt)
        | {"tokens": sum(q.n_tokens for q in encoded)},
    )


def score_encoded(
    model: Any,
    tokenizer: Any,
    encoded: list[EncodedQuestion],
    *,
    batch_tokens: int | None = None,
    show_progress: bool = True,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Option scores of encoded questions, (N, K) float64, ``-inf`` for padding options."""
    check_lengths(model, encoded)
    packed = can_pack(model, encoded)
    device = model.device
    budget = batch_tokens or (1024 if device.type == "cpu" else 16384)
    vocabulary = unwrapped(model).config.vocab_size
    scores = np.full((len(encoded), max(len(q.reads) for q in encoded)), -np.inf)
    with _evaluating(model), progress("scoring", len(encoded), "q", show=show_progress) as advance:
        for rows in _batches(encoded, budget, vocabulary, packed):
            batch = collate(
                [encoded[i] for i in rows],
                pad_token=pad_token(tokenizer),
                packed=packed,
                padding_side=tokenizer.padding_side,
            )
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            part = option_scores(model, batch)[0].cpu().double().numpy()
            scores[rows, : part.shape[1]] = part
            advance(len(rows))
    return scores


def pad_token(tokenizer: Any) -> int:
    """Any valid token: padding is never seen and never read."""
    token: int | None = tokenizer.pad_token_id
    if token is None:
        token = tokenizer.eos_token_id
    return 0 if token is None else token


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _batches(
    encoded: list[EncodedQuestion], batch_tokens: int, vocabulary: int, packed: bool
) -> Iterator[list[int]]:
    """Row indices of each batch, longest questions first, so that the memory peak comes first."""

    def size(q: EncodedQuestion) -> tuple[int, int]:  # rows, row length
        if packed or not any(q.branches):
            return 1, q.n_tokens
        return len(q.branches), q.longest

    order = sorted(range(len(encoded)), key=lambda i: (-size(encoded[i])[1], i))
    rows: list[int] = []
    n_rows = width = kept = 0
    for i in order:
        more, length = size(encoded[i])
        reads = len({(k if o > 0 else 0, o) for k, r in enumerate(encoded[i].reads) for o, _ in r})
        full = (n_rows + more) * max(width, length) > batch_tokens
        if rows and (full or (kept + reads) * vocabulary > LOGITS_BUDGET):
            yield rows
            rows, n_rows, width, kept = [], 0, 0, 0
        rows.append(i)
        n_rows, width, kept = n_rows + more, max(width, length), kept + reads
    yield rows


def _provenance(model: Any, questions: Sequence[Question], prompt: Prompt) -> dict[str, Any]:
    import transformers

    inner = unwrapped(model)
    adapter = getattr(model, "active_adapters", None) if inner is not model else None
    return {
        "model": str(inner.config._name_or_path or type(inner).__name__),
        "adapter": list(adapter) if isinstance(adapter, (list, tuple)) else None,
        "dtype": str(inner.dtype).removeprefix("torch."),
        "prompt": prompt.format,
        "prompt_settings": asdict(prompt),
        "versions": {
            "calibrant": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    } | _data(questions)


def _data(questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "data": getattr(questions, "name", None),
        "data_fingerprint": getattr(questions, "fingerprint", None),
    }
