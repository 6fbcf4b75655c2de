"""Things made for the tests: questions of nonsense words, tiny random models, sizes, children."""

import os
import subprocess
import sys
from pathlib import Path

# Sizes of a story of the laboratory that takes every step, too small to show anything.
TINY_LAB = {
    "texts": 600,
    "layers": 1,
    "sft_questions": 40,
    "pairs": 40,
    "betas": (1.0, 0.1),
    "fresh": 40,
    "few": 40,
    "held_out": 20,
    "epochs": 2,
    "test": 60,
}
WORDS = ("red", "green", "blue", "stone", "river", "seven", "nine", "cat", "dog", "old", "new")


def make_questions(n, seed=0, k_min=2, k_max=5, prefix="q"):
    """Questions of nonsense words with a learnable answer: the option the question names last."""
    import numpy as np

    from calibrant.questions import Question, Questions

    rng = np.random.default_rng(seed)
    questions = []
    for i in range(n):
        k = int(rng.integers(k_min, k_max + 1))
        choices = tuple(
            f"{rng.choice(WORDS)} {rng.choice(WORDS)} {j}"[: int(rng.integers(5, 14))].strip()
            for j in range(k)
        )
        answer = int(rng.integers(k))
        words = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 9))))
        questions.append(
            Question(f"{prefix}{i}", f"Which of {words} is {choices[answer]} ?", choices, answer)
        )
    return Questions(questions, name="made-up")


def make_model(architecture="llama", seed=0, vocab_size=512, **changes):
    """A random model of two layers, built from a config, in float32."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        Gemma3Config,
        Gemma3TextConfig,
        GPT2Config,
        LlamaConfig,
        MistralConfig,
        Olmo2Config,
        OPTConfig,
        Qwen2Config,
        Qwen3Config,
    )

    small = {
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
    }
    configs = {
        "llama": lambda: LlamaConfig(**small | changes),
        "mistral": lambda: MistralConfig(**small | {"sliding_window": None} | changes),
        "olmo2": lambda: Olmo2Config(**small | changes),
        "qwen2": lambda: Qwen2Config(**small | changes),
        # Attention and final logits are soft-capped, and every other layer sees a window only.
        "gemma2": lambda: Gemma2Config(
            **small
            | {
                "head_dim": 12,
                "query_pre_attn_scalar": 12,
                "sliding_window": 16,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 6.0,
            }
            | changes
        ),
        "gemma3": lambda: Gemma3TextConfig(
            **small
            | {
                "head_dim": 12,
                "query_pre_attn_scalar": 12,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
                "final_logit_softcapping": 6.0,
            }
            | changes
        ),
        # As the checkpoints that also see images are: the language model's configuration is a part.
        "gemma3-with-images": lambda: Gemma3Config(
            text_config=small
            | {"head_dim": 12, "sliding_window": 16, "final_logit_softcapping": 6.0}
            | {"layer_types": ["sliding_attention", "full_attention"]}
            | changes,
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        ),
        "qwen3": lambda: Qwen3Config(**small | {"head_dim": 12} | changes),
        "gpt2": lambda: GPT2Config(
            **{
                "vocab_size": vocab_size,
                "n_embd": 48,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 512,
                "initializer_range": 0.3,
            }
            | changes
        ),
        "opt": lambda: OPTConfig(
            **{
                "vocab_size": vocab_size,
                "hidden_size": 48,
                "ffn_dim": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 48,
                "max_position_embeddings": 512,
                "init_std": 0.3,
            }
            | changes
        ),
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(configs[architecture]()).float().eval()


def write_questions(path, questions):
    import gzip
    import json

    lines = [
        json.dumps(
            {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer}
        )
        for q in questions
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return str(path)


def train_further(model):
    """Change the weights in a model's folder, as more training there would."""
    from safetensors.torch import load_file, save_file

    file = model / "model.safetensors"
    weights = {name: 1.01 * weight for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


def restore_arguments(world, output, *more):
    return [
        "restore", world["model"], "--train", world["train"], "--eval", world["test"],
        "--prompt", "cloze", "--lora-rank", "4", "--batch-size", "4",
        "--learning-rate", "0.01", "--device", "cpu", "--output-dir", str(output), *more,
    ]  # fmt: skip


def restored_arguments(world, output, *more):
    """What the fixture `restored` is made by: more methods and sets than most tests need."""
    methods = ("--method", "temperature", "--method", "cft", "--method", "rcft")
    return restore_arguments(world, output, "--out-of-domain", world["other"], *methods, *more)


def run_script(path, *arguments, processes=None, timeout=500):
    """Run a script, under torchrun if processes are given; it finds these helpers and ends well."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    found = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes else []), path, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(found)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done
