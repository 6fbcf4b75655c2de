"""Encoded questions to tensors, and one forward pass to option scores.

Scoring and training share this path. A question is laid out in a *packed* row, the prefix once and
every option's branch after it, each branch seeing the prefix and itself only; several questions may
share such a row. For models that cannot take such an attention mask, every option is a row. Only
the positions that are read are projected onto the vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from calibrant.errors import InputError
from calibrant.prompts import EncodedQuestion

# Architectures whose attention takes a 4-D mask and explicit positions as they are; each is held
# to separate rows by a test.
PACKABLE = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})

Batch = dict[str, torch.Tensor]


def can_pack(model: Any, encoded: list[EncodedQuestion]) -> bool:
    """Whether the model can read all options of a question in one row."""
    config = unwrapped(model).config
    window: int | None = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    # A ready-made mask replaces the window's, so no row may be longer than the window.
    if window is not None and max(q.longest for q in encoded) > window:
        return False
    return config.model_type in PACKABLE and config._attn_implementation in ("sdpa", "eager")


def unwrapped(model: Any) -> Any:
    """Return the Hugging Face model under compiled, data-parallel and adapter wrappers."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_lengths(model: Any, encoded: list[EncodedQuestion]) -> None:
    """Raise `InputError` if a question is longer than the model's context: nothing is cut."""
    limit = getattr(unwrapped(model).config, "max_position_embeddings", None)
    for q in encoded:
        if limit is not None and q.longest > limit:
            raise InputError(
                f"question {q.id!r} takes {q.longest} tokens, the model's context is {limit}; "
                "expected it to fit, prompts are never cut"
            )


def collate(
    encoded: list[EncodedQuestion],
    *,
    pad_token: int,
    packed: bool,
    row_tokens: int = 0,
    padding_side: str = "right",
    question_loss: bool = False,
) -> Batch:
    """Lay questions out as tensors.

    Parameters
    ----------
    encoded : Q questions with up to K options.
    packed : the model takes packed rows; else every option is a row of its own.
    row_tokens : put several questions into a packed row, up to about this many tokens, so that a
        batch of unequal lengths needs little padding. 0 gives every question its own row.
    question_loss : also read every prefix token's log-probability (L_SFT2).

    Returns
    -------
    dict with, for B rows of T tokens:
        input_ids, position_ids : (B, T) int64.
        visible : (B, T, T) bool, which token sees which; or (B, T) bool where rows are plain
            sequences and the model builds its own causal mask.
        keep : (B, T) bool, positions projected onto the vocabulary.
        read_at, read_token, read_step : (R,) int64: kept position, token and step of each read.
        step_option : (S,) int64: flat option index ``q * K + k`` of each step. The reads of a step
            are alternatives, the steps of an option a sequence.
        question_at, question_token : (L,) int64, the same for prefix tokens.
        divisor : (Q, K) float32; option : (Q, K) bool, real options; answer : (Q,) int64.
    """
    branched = any(branch for q in encoded for branch in q.branches)
    rows = _Rows()
    k_max = max(len(q.branches) for q in encoded)
    reads: list[tuple[int, int, int, int]] = []  # row, position in row, token, flat option
    question: list[tuple[int, int, int]] = []  # row, position in row, token
    shared = packed and row_tokens > 0 and len(encoded) > 1
    for i, r in _assign(encoded, row_tokens) if shared else enumerate([-1] * len(encoded)):
        q = encoded[i]
        head = len(q.prefix)
        if packed or not branched:
            places = [rows.add(r, i, q.prefix, q.branches)]
            row, start, starts = places[0]
            at = [(row, start, starts[k]) for k in range(len(q.branches))]
        else:
            places = [rows.add(-1, i, q.prefix, [branch]) for branch in q.branches]
            row, start, _ = places[0]
            at = [(row, start, starts[0]) for row, start, starts in places]
        for k, option_reads in enumerate(q.reads):
            row_k, start_k, branch_k = at[k]
            for offset, token in option_reads:
                here = start_k + head - 1 + offset if offset <= 0 else branch_k + offset - 1
                reads.append((row_k, here, token, i * k_max + k))
        if question_loss:
            row, start, _ = places[0]
            question += [(row, start + t - 1, q.prefix[t]) for t in range(1, head)]

    batch, shift = rows.tensors(pad_token, padding_side)
    read = torch.tensor(reads)  # (R, 4)
    column = read[:, 1] + shift[read[:, 0]]
    keep = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    keep[read[:, 0], column] = True
    asked = torch.tensor(question, dtype=torch.int64).reshape(-1, 3)  # (L, 3)
    asked_column = asked[:, 1] + shift[asked[:, 0]]
    keep[asked[:, 0], asked_column] = True
    place = read[:, 3] * keep.numel() + read[:, 0] * keep.shape[1] + column
    step, read_step = torch.unique(place, return_inverse=True)
    slot = (keep.flatten().cumsum(0) - 1).view(keep.shape)  # kept position of each (row, token)
    if question:
        batch["question_at"] = slot[asked[:, 0], asked_column]
        batch["question_token"] = asked[:, 2]
    divisor = torch.ones((len(encoded), k_max))
    option = torch.zeros((len(encoded), k_max), dtype=torch.bool)
    for i, q in enumerate(encoded):
        divisor[i, : len(q.divisors)] = torch.tensor(q.divisors)
        option[i, : len(q.divisors)] = True
    owner, branch_of = batch.pop("owner"), batch.pop("branch")
    plain = not shared and (not branched or not packed)
    return batch | {
        "visible": owner >= 0 if plain else _tree_mask(owner, branch_of),
        "keep": keep,
        "read_at": slot[read[:, 0], column],
        "read_token": read[:, 2],
        "read_step": read_step,
        "step_option": step // keep.numel(),
        "divisor": divisor,
        "option": option,
        "answer": torch.tensor([q.answer for q in encoded]),
    }


class _Rows:
    """Rows under construction: tokens, positions, and whose they are."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[int, int, int, int]]] = []  # token, position, owner, branch

    def add(
        self, row: int, owner: int, prefix: list[int], branches: list[list[int]]
    ) -> tuple[int, int, list[int]]:
        """Append a question to a row (-1: a new one): the row, and where its parts begin."""
        row = len(self.rows) if row < 0 else row
        while len(self.rows) <= row:
            self.rows.append([])
        cells = self.rows[row]
        start, head = len(cells), len(prefix)
        cells += [(token, t, owner, 0) for t, token in enumerate(prefix)]
        starts = []
        for k, branch in enumerate(branches):
            starts.append(len(cells))
            cells += [(token, head + t, owner, k + 1) for t, token in enumerate(branch)]
        return row, start, starts

    def tensors(self, pad_token: int, padding_side: str) -> tuple[Batch, torch.Tensor]:
        """Padded (B, T) tensors, and by how much each row was shifted to the right, (B,)."""
        width = max(map(len, self.rows))
        shift = [width - len(r) if padding_side == "left" else 0 for r in self.rows]
        padding = [pad_token, 0, -1, -1]
        whole = torch.tensor(padding).repeat(len(self.rows), width, 1)  # (B, T, 4)
        for r, cells in enumerate(self.rows):
            whole[r, shift[r] : shift[r] + len(cells)] = torch.tensor(cells)
        names = ("input_ids", "position_ids", "owner", "branch")
        parts = {name: whole[..., j].contiguous() for j, name in enumerate(names)}
        return parts, torch.tensor(shift)


def _assign(encoded: list[EncodedQuestion], row_tokens: int) -> list[tuple[int, int]]:
    """Share questions out over rows of about equal length: (question, row), longest first."""
    total = sum(q.n_tokens for q in encoded)
    filled = [0] * -(-total // row_tokens)
    places = []
    for i in sorted(range(len(encoded)), key=lambda i: (-encoded[i].n_tokens, i)):
        row = min(range(len(filled)), key=filled.__getitem__)
        filled[row] += encoded[i].n_tokens
        places.append((i, row))
    return places


def _tree_mask(owner: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Causal mask in which a branch sees its question's prefix and itself; (B, T, T) bool."""
    steps = torch.arange(owner.shape[1])
    earlier = steps[None, :] <= steps[:, None]  # (T, T)
    same = (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, :, None]
    line = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    # Padding sees itself, so that no softmax is over nothing.
    return (same & line & earlier) | torch.eye(owner.shape[1], dtype=torch.bool)


def option_scores(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the model once and read every option's score.

    Returns
    -------
    scores : (Q, K) float32; the option's log-probability, ``Σ_steps log Σ_tokens P(token)``, over
        its divisor; ``-inf`` for padding options.
    question_logprobs : (L,) float32 log-probabilities of the prefix tokens, or None.
    """
    inner = unwrapped(model)
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
    visible = batch["visible"]
    inputs["attention_mask"] = (
        visible.long() if visible.ndim == 2 else _for_attention(inner, visible)
    )
    accepted = inspect.signature(inner.forward).parameters
    if "position_ids" in accepted:
        inputs["position_ids"] = batch["position_ids"]
    if "logits_to_keep" in accepted:
        logits = model(**inputs, logits_to_keep=batch["keep"]).logits  # (kept, V)
    else:
        logits = model(**inputs).logits[batch["keep"]]
    logits = logits.float()
    log_total = logits.logsumexp(dim=-1)  # (kept,)
    logprobs = logits[batch["read_at"], batch["read_token"]] - log_total[batch["read_at"]]  # (R,)
    n_questions, k_max = batch["option"].shape
    step_option = batch["step_option"]
    steps = _logsumexp(logprobs, batch["read_step"], len(step_option))  # (S,)
    total = logprobs.new_zeros(n_questions * k_max).index_add(0, step_option, steps)
    scores = total.view(n_questions, k_max) / batch["divisor"]
    scores = scores.masked_fill(~batch["option"], -torch.inf)
    if "question_at" not in batch:
        return scores, None
    at = batch["question_at"]
    return scores, logits[at, batch["question_token"]] - log_total[at]


def _logsumexp(values: torch.Tensor, group: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Log of the summed exponentials of each group's values; exact for a group of one."""
    fixed = values.detach()
    top = fixed.new_full((n_groups,), -torch.inf).scatter_reduce(0, group, fixed, "amax")
    top = top.masked_fill(top == -torch.inf, 0.0)  # a group of zero probability
    weights = (values - top[group]).exp()
    return top + values.new_zeros(n_groups).index_add(0, group, weights).log()


def _for_attention(model: Any, visible: torch.Tensor) -> torch.Tensor:
    """4-D mask in the form the model's attention wants: bool for sdpa, additive for eager."""
    mask = visible[:, None]  # (B, 1, T, T)
    if model.config._attn_implementation == "sdpa":
        return mask
    additive = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)
    return additive.masked_fill(~mask, torch.finfo(model.dtype).min)
