"""Encoded questions to tensors, and one forward pass to option scores.

Scoring and training share this path. A question is laid out in a *packed* row, the prefix once and
every option's branch after it, each branch seeing the prefix and itself only; several questions may
share such a row. For models that cannot take such an attention mask, every option is a row. Only
the positions that are read are projected onto the vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, linear_cross_entropy

from calibrant.errors import InputError
from calibrant.prompts import EncodedQuestion
from calibrant.scoring.tokens import Integers, Tokens, ranges, starts

# Architectures whose attention takes a 4-D mask and explicit positions as they are, and whose
# logits are what their head gives; each is held to plain `transformers` by a test.
PACKABLE = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3"})

# Logits held at once where a question's own tokens are learnt: enough rows for a matrix product to
# be fast, 32 MiB on a CPU, 512 MiB elsewhere.
CPU_LOGITS, ACCELERATOR_LOGITS = 2**23, 2**27

Batch = dict[str, torch.Tensor]


def can_pack(model: Any, encoded: Sequence[EncodedQuestion] | Tokens) -> bool:
    """Whether the model can read all options of a question in one row."""
    config, text = unwrapped(model).config, text_config(model)
    window: int | None = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True):
        window = None
    # A ready-made mask replaces the window's, so no row may be longer than the window.
    if window is not None and Tokens.of(encoded).longest.max() > window:
        return False
    return config.model_type in PACKABLE and config._attn_implementation in ("sdpa", "eager")


def unwrapped(model: Any) -> Any:
    """Return the Hugging Face model under compiled, data-parallel and adapter wrappers."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """Return the language model's configuration; one that sees images too keeps it apart."""
    return unwrapped(model).config.get_text_config()


def check_lengths(model: Any, encoded: Sequence[EncodedQuestion] | Tokens) -> None:
    """Raise `InputError` if a question is longer than the model's context: nothing is cut."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit is None:
        return
    tokens = Tokens.of(encoded)
    if (longer := np.flatnonzero(tokens.longest > limit)).size:
        i = int(longer[0])
        raise InputError(
            f"question {tokens.ids[i]!r} takes {tokens.longest[i]} tokens, the model's context is "
            f"{limit}; expected it to fit, prompts are never cut"
        )


def collate(
    encoded: Sequence[EncodedQuestion] | Tokens,
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
    question_loss : also read every prefix token's log-likelihood (L_SFT2).

    Returns
    -------
    dict with, for B rows of T tokens:
        input_ids, position_ids : (B, T) int64.
        visible : (B, T, T) bool, which token sees which; or (B, T) bool where rows are plain
            sequences and the model builds its own causal mask.
        keep : (B, T) bool, positions that the head is applied to.
        read_at, read_token, read_step : (R,) int64: place among the positions that are read, token
            and step of each read.
        step_option : (S,) int64: flat option index ``q * K + k`` of each step. The reads of a step
            are alternatives, the steps of an option a sequence.
        read_row : with question_loss, (P,) int64: kept position of each position that is read.
        question_at, question_token, question_of : with question_loss, (L,) int64: kept position,
            token (-100: not learnt) and question of each prefix token but the first.
        divisor : (Q, K) float32; option : (Q, K) bool, real options; answer : (Q,) int64.
    """
    q = Tokens.of(encoded)
    branched = bool(q.n_branch.any())
    shared = packed and row_tokens > 0 and len(q) > 1
    parts = _parts(q, each_option=branched and not packed, row_tokens=row_tokens if shared else 0)
    batch, shift = _rows(q.token, parts, pad_token, padding_side)
    shape = batch["input_ids"].shape

    asked = np.repeat(np.arange(len(q)), q.n_reads)  # question of each read, (R,)
    option, offset, token = q.read.T
    at = q.option_start[asked] + option
    column = np.where(
        offset <= 0,
        parts.prefix_column[at] + q.n_prefix[asked] - 1 + offset,
        parts.branch_column[at] + offset - 1,
    )
    column += shift[parts.option_row[at]]
    place = parts.option_row[at] * shape[1] + column  # in the flat (B, T) grid
    read = np.zeros(shape, dtype=bool)
    read.flat[place] = True
    keep = read
    if question_loss:
        first = q.option_start[:-1]  # the prefix as the first option has it
        began = parts.option_row[first] * shape[1] + parts.prefix_column[first]
        # Every prefix token but the first is read where the one before it stands.
        prefix_place = ranges(began + shift[parts.option_row[first]], q.n_prefix - 1)
        keep = read.copy()
        keep.flat[prefix_place] = True
        slot = keep.cumsum() - 1  # kept position of each token, (B * T,)
        batch["read_row"] = slot[read.ravel()]
        batch["question_at"] = slot[prefix_place]
        batch["question_token"] = q.token[ranges(q.start[:-1] + 1, q.n_prefix - 1)].astype(np.int64)
        batch["question_of"] = np.repeat(np.arange(len(q)), q.n_prefix - 1)
    k_max = int(q.n_options.max())
    step, read_step = np.unique((asked * k_max + option) * keep.size + place, return_inverse=True)
    owner, branch = batch.pop("owner"), batch.pop("branch")
    real = np.arange(k_max)[None, :] < q.n_options[:, None]  # (Q, K)
    divisor = np.ones(real.shape, dtype=np.float32)
    divisor[real] = q.divisor
    batch |= {
        "keep": keep,
        "read_at": (read.cumsum() - 1)[place],
        "read_token": token.astype(np.int64),
        "read_step": read_step,
        "step_option": step // keep.size,
        "divisor": divisor,
        "option": real,
        "answer": q.answer,
    }
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if shared or (branched and packed):
        visible = _tree_mask(torch.from_numpy(owner), torch.from_numpy(branch))
    else:
        visible = torch.from_numpy(owner >= 0)
    return tensors | {"visible": visible}


class _Parts(NamedTuple):
    """Where each prefix and branch lies: P parts of Q questions with O options in all."""

    row: Integers  # (P,)
    column: Integers  # (P,)
    source: Integers  # (P,) first token in the flat tokens
    length: Integers  # (P,)
    position: Integers  # (P,) of the first token in its sequence
    owner: Integers  # (P,) question
    branch: Integers  # (P,) 0 for a prefix, k + 1 for the branch of option k
    option_row: Integers  # (O,)
    prefix_column: Integers  # (O,) where the option's prefix begins in its row
    branch_column: Integers  # (O,)


def _parts(q: Tokens, *, each_option: bool, row_tokens: int) -> _Parts:
    """Lay out every option in a row of its own, or all of a question in one that may be shared."""
    of = np.repeat(np.arange(len(q)), q.n_options)  # question of each option, (O,)
    number = np.arange(len(of)) - q.option_start[of]
    before = starts(q.n_branch)[:-1]
    before = before - before[q.option_start[of]]  # branch tokens before this option's
    branch_source = q.start[of] + q.n_prefix[of] + before
    if each_option:
        option_row = np.arange(len(of))
        prefix_column, branch_column, prefixes = np.zeros_like(of), q.n_prefix[of], of
        prefix_row, prefix_at = option_row, prefix_column
    else:
        prefix_row, prefix_at = _assign(q.n_tokens, row_tokens)
        option_row, prefix_column = prefix_row[of], prefix_at[of]
        branch_column, prefixes = prefix_column + q.n_prefix[of] + before, np.arange(len(q))
    return _Parts(
        row=np.concatenate([prefix_row, option_row]),
        column=np.concatenate([prefix_at, branch_column]),
        source=np.concatenate([q.start[prefixes], branch_source]),
        length=np.concatenate([q.n_prefix[prefixes], q.n_branch]),
        position=np.concatenate([np.zeros_like(prefixes), q.n_prefix[of]]),
        owner=np.concatenate([prefixes, of]),
        branch=np.concatenate([np.zeros_like(prefixes), number + 1]),
        option_row=option_row,
        prefix_column=prefix_column,
        branch_column=branch_column,
    )


def _assign(n_tokens: Integers, row_tokens: int) -> tuple[Integers, Integers]:
    """Row and first column of each question: one row each, or rows of about equal length."""
    if not row_tokens:
        return np.arange(len(n_tokens)), np.zeros_like(n_tokens)
    filled = [0] * -(-int(n_tokens.sum()) // row_tokens)
    rows, columns = np.zeros_like(n_tokens), np.zeros_like(n_tokens)
    for i in np.argsort(-n_tokens, kind="stable"):  # longest first
        rows[i] = row = min(range(len(filled)), key=filled.__getitem__)
        columns[i] = filled[row]
        filled[row] += int(n_tokens[i])
    return rows, columns


def _rows(
    token: NDArray[np.int32], parts: _Parts, pad_token: int, padding_side: str
) -> tuple[dict[str, Any], Integers]:
    """Padded (B, T) arrays, and by how much each row was shifted to the right, (B,)."""
    ends = np.zeros(int(parts.row.max()) + 1, dtype=np.int64)
    np.maximum.at(ends, parts.row, parts.column + parts.length)
    width = int(ends.max())
    shift = width - ends if padding_side == "left" else np.zeros_like(ends)
    place = ranges(parts.row * width + parts.column + shift[parts.row], parts.length)
    arrays = {}
    for name, padding, values in (
        ("input_ids", pad_token, token[ranges(parts.source, parts.length)]),
        ("position_ids", 0, ranges(parts.position, parts.length)),
        ("owner", -1, np.repeat(parts.owner, parts.length)),
        ("branch", -1, np.repeat(parts.branch, parts.length)),
    ):
        arrays[name] = np.full((len(ends), width), padding, dtype=np.int64)
        arrays[name].flat[place] = values
    return arrays, shift


def _tree_mask(owner: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Causal mask in which a branch sees its question's prefix and itself; (B, T, T) bool."""
    steps = torch.arange(owner.shape[1])
    earlier = steps[None, :] <= steps[:, None]  # (T, T)
    same = (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, :, None]
    line = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    # Padding sees itself, so that no softmax is over nothing.
    return (same & line & earlier) | torch.eye(owner.shape[1], dtype=torch.bool)


def option_scores(
    model: Any, batch: Batch, *, see: Callable[[torch.Tensor], None] | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the model once and read every option's score.

    Parameters
    ----------
    see : is given the logits of the positions read, (P, V) float32; ``batch["read_at"]`` says which
        of them each read is at.

    Returns
    -------
    scores : (Q, K) float32; the option's log-probability, ``Σ_steps log Σ_tokens P(token)``, over
        its divisor; ``-inf`` for padding options.
    question_nll : float32 scalar, nats, the negative log-likelihood of all prefix tokens that are
        learnt, or None. Logits of the whole vocabulary are never held for all of them.
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
    keep, question_nll = batch["keep"], None
    if "question_at" in batch and _has_plain_head(model):
        with _head_that_reads_questions(inner, batch):
            logits, question_nll = model(**inputs, logits_to_keep=keep).logits
    else:
        if "logits_to_keep" in accepted:
            logits = model(**inputs, logits_to_keep=keep).logits  # (kept, V)
        else:
            logits = model(**inputs).logits[keep]
        if "question_at" in batch:
            question_nll = cross_entropy(
                logits[batch["question_at"]].float(), batch["question_token"], reduction="sum"
            )
            logits = logits[batch["read_row"]]
    logits = logits.float()
    if see is not None:
        see(logits)
    log_total = logits.logsumexp(dim=-1)  # (kept,)
    logprobs = logits[batch["read_at"], batch["read_token"]] - log_total[batch["read_at"]]  # (R,)
    n_questions, k_max = batch["option"].shape
    step_option = batch["step_option"]
    steps = _logsumexp(logprobs, batch["read_step"], len(step_option))  # (S,)
    total = logprobs.new_zeros(n_questions * k_max).index_add(0, step_option, steps)
    scores = total.view(n_questions, k_max) / batch["divisor"]
    return scores.masked_fill(~batch["option"], -torch.inf), question_nll


def _has_plain_head(model: Any) -> bool:
    """Whether logits are hidden states times a matrix, so that they may be made piece by piece."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    return (
        inner.config.model_type in PACKABLE
        and type(head) is torch.nn.Linear  # without adapter, not quantised
        and "forward" not in vars(head)  # nothing else has put its own in its place
        and not _is_compiled(model)  # for the forward that it has
    )


def _is_compiled(model: Any) -> bool:
    while model is not None and not hasattr(model, "_orig_mod"):
        model = getattr(model, "module", None)
    return model is not None


@contextlib.contextmanager
def _head_that_reads_questions(inner: Any, batch: Batch) -> Iterator[None]:
    """Let the head give logits of what is read, and of the question's tokens only their loss.

    The head is called inside the model's own forward, as data-parallel and sharded models need.
    """
    head = inner.get_output_embeddings()
    plain = head.forward

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # (kept, H)
        states, weight, device = hidden[batch["question_at"]], head.weight, hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            states, weight = states.to(dtype), weight.to(dtype)
        budget = CPU_LOGITS if device == "cpu" else ACCELERATOR_LOGITS
        options = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=max(1, budget // weight.shape[0])
        )
        # Its gradient is made piece by piece too, in the forward pass: logits are made once.
        nll = linear_cross_entropy(
            states,
            weight,
            batch["question_token"],
            linear_bias=head.bias,
            reduction="sum",
            options=options,
        )
        return plain(hidden[batch["read_row"]]), nll.float()

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


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
