"""A small Llama and its tokenizer, made here: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the corpus: a closed world, so every word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = ["<pad>", "<s>", "<unk>"]
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", special.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", unk_token="<unk>"
    )


def build_model(tokenizer: Any, seed: int, *, hidden_size: int = 64, layers: int = 1) -> Any:
    """Build a random Llama of about 100,000 weights for the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        # So narrow a model hardly learns from the usual .02.
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)
