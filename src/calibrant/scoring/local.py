"""Score questions with a `transformers` model in this process."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.permutations import in_every_order
from calibrant.progress import note, progress
from calibrant.prompts import (
    EncodedQuestion,
    Prompt,
    PromptLike,
    encode_bare,
    encode_chunks,
    resolved,
)
from calibrant.questions import Question, Questions, question_key
from calibrant.scoring.batch import (
    can_pack,
    check_lengths,
    collate,
    option_scores,
    text_config,
    unwrapped,
)
from calibrant.scoring.journal import Journal
from calibrant.scoring.processes import ALONE, Processes
from calibrant.scoring.tokens import Tokens
from calibrant.version import __version__

# Kept logits of one batch are held to this many float32 values (128 MiB), three times over while
# their softmax is taken.
LOGITS_BUDGET = 2**25

# Tokens of a batch where memory does not matter. On a CPU a matrix product is as fast as it gets
# from a few hundred rows a thread on, weights read from memory included; more would only mean more
# padding (`docs/results/scoring-speed.md`). So many rows of a narrow model are soon done, and its
# layers cost what it takes to call them.
TOKENS_PER_THREAD = 512
NUMBERS_PER_THREAD = 2**17
ACCELERATOR_TOKENS = 16384


def score(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    prompt: PromptLike = "letter",
    permutations: str | int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    partial: str | os.PathLike[str] | None = None,
    processes: Processes = ALONE,
    encoded: Tokens | None = None,
    show_progress: bool = True,
) -> AnswerTable:
    r"""Ask a model every question and return its option log-probabilities.

    Letter formats: ``logprobs[i, k] = log P(letter_k | prompt_i)`` over the whole vocabulary, the
    sum over the tokens that read as the letter (``A``, `` A``; see `calibrant.prompts`).
    Labels and cloze formats: ``logprobs[i, k] = (1 / n_k) Σ_t log P(token_t of option k | prompt,
    earlier tokens)``, ``n_k`` tokens, characters or 1; cloze-pmi subtracts ``log P(option k)``
    after the bare word ``Answer:``. Softmax over a row gives the model's option probabilities
    either way (`AnswerTable.probs`). Log-probabilities are taken in float32 whatever the model's
    dtype. Batching, order and padding side do not matter.

    Parameters
    ----------
    model : a causal language model; a PEFT adapter may be on it.
    tokenizer : its tokenizer; ``tokenizer.padding_side`` is honoured.
    questions : N questions, 2 to 26 options each.
    prompt : a `calibrant.prompts.Prompt`, or a format's name for one with default settings.
    permutations : ask every question with its options in several orders, "cyclic", "all" or a
        number of random ones drawn with ``seed`` (`calibrant.permutations.permuted`); aggregate the
        rows with `calibrant.permutations.average` before anything else.
    batch_tokens : tokens per forward pass, padding included; by default as many as are of use and
        fit in memory. A batch that does not fit after all is halved until it does.
    partial : folder that keeps every finished batch, so that a run killed at any moment goes on
        where it stopped and gives the same table. It stays when all is done: save the table, then
        delete it (`calibrant.runs.answers_at` does).
    processes : share the batches out over these; each then has the whole table.
    encoded : what `tokens_of` makes of the same questions, tokenizer and prompt, where they are
        asked more than once; not with ``permutations``.
    show_progress : draw a progress bar on standard error.

    Returns
    -------
    AnswerTable
        With ``option_mass[i] = Σ_k P(option_k)`` for letters and labels, NaN for cloze. With
        permutations one row per question and order, and ``orders``.

    Raises
    ------
    InputError
        If the tokenizer cannot form the prompt, a question is longer than the model's context or
        alone too large for the memory, options are to be permuted that the prompt does not list,
        or ``partial`` holds results of another run.
    """
    prompt = resolved(prompt, tokenizer, questions)
    if permutations is not None:
        prompt.check_lists_options()

        def ask(rows: list[Question]) -> AnswerTable:
            return score(
                model,
                tokenizer,
                rows,
                prompt=prompt,
                batch_tokens=batch_tokens,
                partial=partial,
                processes=processes,
                show_progress=show_progress,
            )

        return in_every_order(ask, questions, permutations, seed)
    if encoded is None:
        encoded = Tokens.join(encode_chunks(list(questions), tokenizer, prompt))
    scores = score_encoded(
        model,
        tokenizer,
        encoded,
        batch_tokens=batch_tokens,
        partial=partial,
        processes=processes,
        show_progress=show_progress,
    )
    if prompt.format == "cloze-pmi":
        scores = scores - _bare_scores(
            model,
            tokenizer,
            questions,
            batch_tokens=batch_tokens,
            processes=processes,
            show_progress=show_progress,
        )
    n, n_options = len(questions), np.array([len(q.choices) for q in questions])
    with np.errstate(under="ignore"):
        mass = np.exp(scores).sum(axis=1) if prompt.has_option_mass else np.full(n, np.nan)
    return AnswerTable(
        ids=tuple(q.id for q in questions),
        logprobs=scores,
        labels=np.array([q.label for q in questions]),
        n_options=n_options,
        option_mass=np.minimum(mass, 1.0),
        tasks=tuple(q.subject or "" for q in questions),
        groups=(
            questions.groups
            if isinstance(questions, Questions)
            else tuple(question_key(q) for q in questions)
        ),
        provenance=_provenance(model, questions, prompt) | {"tokens": int(encoded.n_tokens.sum())},
    )


def tokens_of(questions: Sequence[Question], tokenizer: Any, prompt: PromptLike) -> Tokens:
    """Encode questions as `score` does.

    Raises
    ------
    InputError
        If the tokenizer cannot form the prompt.
    """
    prompt = resolved(prompt, tokenizer, questions)
    return Tokens.join(encode_chunks(list(questions), tokenizer, prompt))


def score_encoded(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[EncodedQuestion] | Tokens,
    *,
    batch_tokens: int | None = None,
    partial: str | os.PathLike[str] | None = None,
    processes: Processes = ALONE,
    show_progress: bool = True,
) -> NDArray[np.float64]:
    """Option scores of encoded questions, (N, K) float64, ``-inf`` for padding options.

    The batches depend on the questions and ``batch_tokens`` alone, not on where an earlier run
    stopped nor on the number of processes, so neither changes a bit of the result.
    """
    tokens = Tokens.of(encoded)
    check_lengths(model, tokens)
    packed = can_pack(model, tokens)
    journal = None if partial is None else Journal(partial)
    started = journal.plan.get("batch_tokens") if journal else None
    device = processes.device or model.device
    budget = processes.of_first(batch_tokens or started or automatic_batch_tokens(model, device))
    batches = plan_batches(tokens, budget, text_config(model).vocab_size, packed)
    done: dict[int, list[list[float]]] = {}
    if journal is not None:
        plan = _plan(model, tokens, batches, budget, packed, tokenizer.padding_side)
        done = processes.of_first(journal.begin(plan) if processes.rank == 0 else {})
    left = [b for b in range(len(batches)) if b not in done]
    todo = left[processes.rank :: processes.world]
    forward = _Forward(
        model, tokens, device, pad_token(tokenizer), packed, tokenizer.padding_side,
        processes.lockstep,
    )  # fmt: skip
    write = journal.writing(processes.rank) if journal else contextlib.nullcontext(_discard)
    show = show_progress and processes.rank == 0
    with (
        _evaluating(model),
        write as keep,
        progress("scoring", sum(len(batches[b]) for b in todo), "q", show=show) as advance,
    ):
        found = {}
        for b in todo:
            found[b] = forward(batches[b])
            keep(b, found[b])
            advance(len(batches[b]))
        if processes.lockstep and len(todo) < -(-len(left) // processes.world):
            forward(batches[left[0]])  # keeps the others company in their last
    scores = np.full((len(tokens), int(tokens.n_options.max())), -np.inf)
    for part in (done, *processes.of_all(found)):
        for b, rows in part.items():
            for i, row in zip(batches[b], rows, strict=True):
                scores[i, : len(row)] = row
    return scores


def _discard(index: int, value: Any) -> None:
    pass


class _Forward:
    """Scores of a batch, by question; halves what does not fit in memory, and what follows it."""

    def __init__(
        self,
        model: Any,
        tokens: Tokens,
        device: torch.device,
        pad: int,
        packed: bool,
        padding_side: str,
        lockstep: bool = False,
    ) -> None:
        self.model, self.tokens, self.device, self.lockstep = model, tokens, device, lockstep
        self.layout: dict[str, Any] = {
            "pad_token": pad,
            "packed": packed,
            "padding_side": padding_side,
        }
        self.pieces = 1

    def __call__(self, rows: NDArray[np.int64]) -> list[list[float]]:
        while True:
            pieces = min(self.pieces, len(rows))
            try:
                return [row for piece in np.array_split(rows, pieces) for row in self._run(piece)]
            except (RuntimeError, MemoryError) as error:
                if self.lockstep or not out_of_memory(error):
                    raise  # the other processes would not halve theirs
                if pieces == len(rows):
                    largest = rows[self.tokens.n_tokens[rows].argmax()]
                    raise InputError(
                        f"question {self.tokens.ids[largest]!r} takes "
                        f"{self.tokens.n_tokens[largest]} tokens and does not fit in memory even "
                        "alone; expected a smaller model or dtype, or a shorter prompt"
                    ) from error
            # Outside the handler, which would keep the failed batch's tensors alive.
            self.pieces = 2 * pieces
            note(
                f"note: {len(rows)} questions do not fit in memory at once; from here on a batch "
                f"is scored in {self.pieces} pieces"
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _run(self, rows: NDArray[np.int64]) -> list[list[float]]:
        batch = collate(self.tokens.take(rows), **self.layout)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        scores = option_scores(self.model, batch)[0].cpu().double().tolist()
        return [row[:k] for row, k in zip(scores, self.tokens.n_options[rows], strict=True)]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of a forward or backward pass is for lack of memory."""
    from accelerate.utils.memory import should_reduce_batch_size

    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or bool(should_reduce_batch_size(error))


def automatic_batch_tokens(model: Any, where: torch.device | None = None) -> int:
    """Tokens of a forward pass: as many as are of use, as long as they take half the free memory.

    An estimate, from the width of the model's layers; `score` halves a batch that is too large.
    ``where`` it runs, if not where the model's first weight is.
    """
    where = where or model.device
    device = where.type
    config = text_config(model)
    useful = ACCELERATOR_TOKENS
    if device == "cpu":
        # The narrower the model, the more rows it takes until more are of no use.
        per_thread = max(TOKENS_PER_THREAD, NUMBERS_PER_THREAD // config.hidden_size)
        useful = min(useful, per_thread * torch.get_num_threads())
    if device == "cuda":
        free = torch.cuda.mem_get_info(where)[0]
    elif device == "cpu":
        import psutil

        free = psutil.virtual_memory().available
    else:
        return useful
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # Alive at once in a layer: residual, normed input, queries, keys, values, their rotated
    # copies, attention output; and the MLP's gate, activation and product. Norms go to float32.
    per_token = 4 * (10 * config.hidden_size + 4 * inner)
    room = free // 2 - 3 * 4 * LOGITS_BUDGET
    return int(max(1, min(useful, room // per_token)))


def _plan(
    model: Any,
    tokens: Tokens,
    batches: list[NDArray[np.int64]],
    batch_tokens: int,
    packed: bool,
    padding_side: str,
) -> dict[str, Any]:
    """What partial results are parts of: every difference here could make a different table."""
    order = hashlib.sha256(b"".join(rows.tobytes() + b"|" for rows in batches))
    return {
        "questions": tokens.fingerprint,
        "weights": _weights(model),
        "dtype": str(unwrapped(model).dtype).removeprefix("torch."),
        "batch_tokens": batch_tokens,
        "batches": order.hexdigest(),
        "layout": f"{'packed' if packed else 'separate'}, padded on the {padding_side}",
    }


def _weights(model: Any) -> str:
    """Hash of a few numbers of every weight: a model trained further has another."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        if not weight.is_meta:
            flat = weight.detach().flatten()
            few = flat[:: max(1, len(flat) // 16)][:16].contiguous().cpu()
            digest.update(few.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _bare_scores(
    model: Any, tokenizer: Any, questions: Sequence[Question], **how: Any
) -> NDArray[np.float64]:
    """Log-probability of every option after "Answer:" alone, (N, K), each text asked for once."""
    number: dict[str, int] = {}
    which = [[number.setdefault(text, len(number)) for text in q.choices] for q in questions]
    bare = score_encoded(model, tokenizer, encode_bare(list(number), tokenizer), **how)[:, 0]
    scores = np.zeros((len(which), max(map(len, which))))
    for row, options in zip(scores, which, strict=True):
        row[: len(options)] = bare[options]
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


def plan_batches(
    tokens: Tokens, batch_tokens: int, vocabulary: int, packed: bool
) -> list[NDArray[np.int64]]:
    """Rows of each batch, longest questions first, so that the memory peak comes first.

    Questions of like length go together, up to ``batch_tokens`` tokens with their padding and
    `LOGITS_BUDGET` logits.
    """
    if packed or not tokens.n_branch.any():
        n_rows, widths = np.ones(len(tokens), dtype=np.int64), tokens.n_tokens
    else:
        n_rows, widths = tokens.n_options, tokens.longest
    order = np.argsort(-widths, kind="stable")
    batches = []
    first = height = kept = 0
    for at, (more, reads) in enumerate(
        zip(n_rows[order].tolist(), tokens.n_kept[order].tolist(), strict=True)
    ):
        full = (height + more) * int(widths[order[first]]) > batch_tokens
        if at > first and (full or (kept + reads) * vocabulary > LOGITS_BUDGET):
            batches.append(order[first:at])
            first, height, kept = at, 0, 0
        height, kept = height + more, kept + reads
    batches.append(order[first:])
    return batches


def _provenance(model: Any, questions: Sequence[Question], prompt: Prompt) -> dict[str, Any]:
    import transformers

    inner = unwrapped(model)
    # Of a PEFT model; `disable_adapter` leaves the adapters where they are, and out of use.
    used = hasattr(model, "get_model_status") and model.get_model_status().enabled is True
    quantization = getattr(inner.config, "quantization_config", None)
    return {
        "model": str(inner.config._name_or_path or type(inner).__name__),
        "adapter": list(model.active_adapters) if used else None,
        "dtype": str(inner.dtype).removeprefix("torch."),
        "quantization": getattr(quantization, "bnb_4bit_quant_type", None),
        "prompt": prompt.format,
        "prompt_settings": asdict(prompt),
        "data": getattr(questions, "name", None),
        "data_fingerprint": getattr(questions, "fingerprint", None),
        "versions": {
            "calibrant": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
