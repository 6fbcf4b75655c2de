"""Preference optimisation as a `transformers.Trainer`: DPO, preference matching and CATTO.

The two answers of a pair share their prompt's tokens, so a pair costs one row, and what is trained
on are the answers' log-probabilities, read as a question's options are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from calibrant.errors import InputError
from calibrant.preferences import Preference
from calibrant.prompts import CHUNK, EncodedQuestion
from calibrant.scoring.batch import option_scores
from calibrant.scoring.local import score_encoded
from calibrant.training.base import OptionTrainer
from calibrant.training.losses import catto, dpo, preference_matching

LOSSES = ("dpo", "preference-matching", "catto")


@dataclass
class PreferenceConfig(TrainingArguments):
    """Arguments of `PreferenceTrainer`: all of `transformers.TrainingArguments`, and these.

    Parameters
    ----------
    loss : "dpo", "preference-matching", or "catto", DPO with a calibration term; see
        `calibrant.training.losses`.
    beta : β of DPO.
    calibration_weight : λ of CATTO, over the sum of its term over the preferred answer's tokens.
    max_tokens : pairs whose prompt with its longer answer takes more are left out; None keeps all.

    Raises
    ------
    InputError
        If one of these is out of its range.
    """

    loss: str = "dpo"
    beta: float = 0.1
    calibration_weight: float = 0.1
    max_tokens: int | None = None

    learning_rate: float = 5e-5
    num_train_epochs: float = 1.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    logging_steps: float = 10
    save_strategy: str = "epoch"
    report_to: str | list[str] = "none"
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        """Check what is ours, then let `TrainingArguments` check its own."""
        if self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r}, expected one of {', '.join(LOSSES)}")
        if not 0 < self.beta < float("inf"):
            raise InputError(f"beta {self.beta!r}, expected a positive number")
        if not 0 <= self.calibration_weight < float("inf"):
            raise InputError(
                f"calibration_weight {self.calibration_weight!r}, expected a number of at least 0"
            )
        super().__post_init__()


class PreferenceTrainer(OptionTrainer):
    """Optimise a language model on preference pairs.

    DPO's reference is the model as it is when `train` begins, scored once before the first step, so
    no second model stays in memory.

    Parameters
    ----------
    model : a causal language model.
    args : `PreferenceConfig`.
    train_dataset : preference pairs.
    processing_class : the tokenizer; with a chat template, prompts and answers are its turns.
    peft_config : a PEFT configuration; without it every weight is trained.
    **kwargs : passed to `transformers.Trainer`.

    Raises
    ------
    InputError
        If there is no pair, one cannot be encoded, or none fits ``args.max_tokens``.
    """

    args: PreferenceConfig

    def __init__(
        self,
        model: Any,
        args: PreferenceConfig,
        train_dataset: Sequence[Preference] | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        encoded = None
        if train_dataset is not None and processing_class is not None:
            if not train_dataset:
                raise InputError("train_dataset: holds no preference pair, expected at least one")
            encoded = encode_preferences(train_dataset, processing_class)
            if args.max_tokens is not None:
                encoded = [q for q in encoded if q.longest <= args.max_tokens]
            if not encoded:
                raise InputError(f"no preference pair fits into {args.max_tokens} tokens")
        super().__init__(model, args, encoded, processing_class, peft_config=peft_config, **kwargs)
        self._reference: dict[str, np.ndarray] = {}
        self._off: torch.Tensor | None = None  # CATTO's term of each pair in the batch just read

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Score the reference, then train; a resumed training has the same reference."""
        if self.args.loss != "preference-matching":
            scores = score_encoded(
                self.model,
                self.tokenizer,
                self.train_dataset,
                processes=self.processes,
                show_progress=not self.args.disable_tqdm,
            )
            self._reference = dict(zip((q.id for q in self.train_dataset), scores, strict=True))
        return super().train(*args, **kwargs)

    def question_losses(self, scores: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Loss of each pair, (Q,) float32."""
        if self.args.loss == "preference-matching":
            return preference_matching(scores)
        reference = np.stack([self._reference[name] for name in inputs["ids"]])
        loss = dpo(scores, torch.as_tensor(reference).to(scores), self.args.beta)
        if self._off is not None:
            loss = loss + self.args.calibration_weight * self._off
        return loss

    def read(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Run the model on a micro-batch; for CATTO, look at the preferred answers' tokens too."""
        if self.args.loss != "catto":
            return super().read(model, inputs)

        def see(logits: torch.Tensor) -> None:
            option = inputs["step_option"][inputs["read_step"]]  # 2 q of the preferred answer of q
            preferred = option % 2 == 0
            off = catto(logits[inputs["read_at"][preferred]], inputs["read_token"][preferred])
            n_pairs = len(inputs["answer"])
            self._off = off.new_zeros(n_pairs).index_add(0, option[preferred] // 2, off)

        return option_scores(model, inputs, see=see)


def encode_preferences(preferences: Sequence[Preference], tokenizer: Any) -> list[EncodedQuestion]:
    """Tokenise pairs: the prompt is the shared prefix, the two answers its branches.

    With a chat template the prompt is the user's turn and the answer the assistant's; without one
    an answer simply follows its prompt.

    Raises
    ------
    InputError
        If ids repeat, or an answer has no token of its own after the prompt.
    """
    if len({p.id for p in preferences}) != len(preferences):
        raise InputError("preference pairs: an id occurs more than once; expected unique ids")
    chat = bool(getattr(tokenizer, "chat_template", None))
    encoded = []
    for start in range(0, len(preferences), CHUNK):
        chunk = preferences[start : start + CHUNK]
        texts = [text for pair in chunk for text in _texts(pair, tokenizer, chat)]
        ids = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
        encoded += [_encoded(pair, *ids[3 * i : 3 * i + 3]) for i, pair in enumerate(chunk)]
    return encoded


def _encoded(
    pair: Preference, prefix: list[int], chosen: list[int], rejected: list[int]
) -> EncodedQuestion:
    rows = (chosen, rejected)
    if any(len(row) <= len(prefix) for row in rows):
        raise InputError(f"preference pair {pair.id!r}: an answer has no token of its own")
    shared = len(prefix)  # less where the answer's first token took in the prompt's last
    while chosen[:shared] != rejected[:shared]:
        shared -= 1
    return EncodedQuestion(
        id=pair.id,
        prefix=chosen[:shared],
        branches=[row[shared:-1] for row in rows],
        reads=[[(t - shared, row[t]) for t in range(len(prefix), len(row))] for row in rows],
        divisors=[1.0, 1.0],
        answer=0,
    )


def _texts(pair: Preference, tokenizer: Any, chat: bool) -> list[str]:
    """Texts of the prompt, and of the prompt with either answer."""
    if not chat:
        return [pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected]
    user = {"role": "user", "content": pair.prompt}
    head: str = tokenizer.apply_chat_template(
        [user], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    both = [
        tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": answer}], tokenize=False
        )
        for answer in (pair.chosen, pair.rejected)
    ]
    for text in both:
        if not text.startswith(head):
            raise InputError(
                f"preference pair {pair.id!r}: this chat template does not begin the assistant's "
                "turn with its generation prompt; pairs cannot be encoded"
            )
    return [head, *both]
