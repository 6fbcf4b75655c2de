"""Memory and time of a fine-tuning, from the model's shape: see docs/scaling.md, recipes/.

    python benchmarks/scaling.py                 the tables of docs/scaling.md
    python benchmarks/scaling.py --write         ... put into docs/scaling.md, and into recipes/
    python benchmarks/scaling.py --measure       the memory formula beside what a small model takes

Nothing here is measured on a GPU. Bytes are counted from what PyTorch keeps for the backward pass
of a Llama-like layer; `--measure` (and a test) holds the count to a real one on a CPU. Times are
floating-point operations over an assumed share of the card's peak.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ROW_TOKENS = 512  # of a packed row, as in calibrant.training.base


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, as its config.json has them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int = 0  # 0: hidden / heads
    tied: bool = False

    @property
    def q(self) -> int:
        """Width of the queries, and of the attention's output."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.q * self.kv_heads // self.heads

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear maps: q, k, v, o, gate, up, down."""
        d, i = self.hidden, self.intermediate
        return [(d, self.q), (d, self.kv), (d, self.kv), (self.q, d), (d, i), (d, i), (i, d)]

    @property
    def linear(self) -> int:
        """Parameters of all layers' linear maps."""
        return self.layers * sum(a * b for a, b in self.linear_shapes)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the output layer where it has its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters but the norms', one part in ten thousand."""
        return self.linear + self.embedding

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on every linear map of the layers."""
        return self.layers * rank * sum(a + b for a, b in self.linear_shapes)


SHAPES = {
    "allenai/Llama-3.1-Tulu-3-8B-DPO": Shape(4096, 14336, 32, 32, 8, 128264),
    "lmsys/vicuna-7b-v1.5": Shape(4096, 11008, 32, 32, 32, 32000),
    "allenai/OLMo-2-1124-7B-DPO": Shape(4096, 11008, 32, 32, 32, 100352),
    "princeton-nlp/Mistral-7B-Instruct-DPO": Shape(4096, 14336, 32, 32, 8, 32000),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(576, 1536, 30, 9, 3, 49152, tied=True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Shape(960, 2560, 32, 15, 5, 49152, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Shape(2048, 8192, 24, 32, 32, 49152, tied=True),
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 18944, 28, 28, 4, 152064),
    "google/gemma-3-270m-it": Shape(640, 2048, 18, 4, 1, 262144, head_dim=256, tied=True),
    "google/gemma-3-1b-it": Shape(1152, 6912, 26, 4, 1, 262144, head_dim=256, tied=True),
}
LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256)

# Letters: mean and longest of 400 questions each of OpenBookQA, MedMCQA and MMLU (test), SmolLM2's
# tokenizer; a chat template adds 35. A cloze question is about as long.
MEAN_TOKENS, LONGEST = {"letter": 60, "chat-letter": 95, "cloze": 60}, 250
UNPACKED = ("allenai/OLMo", "google/gemma-3")  # each option of a cloze question is a row of its own
CHUNK = 2**27  # logits made at a time for the question tokens' loss, as in calibrant.scoring.batch


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step at its peak, on one device."""

    weights: float
    trained: float  # gradients and AdamW's moments of what is trained, and an adapter's weights
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return self.weights + self.trained + self.activations + self.logits


def memory(
    shape: Shape,
    tokens: int,
    *,
    kept: int,
    rank: int = 32,
    dropout: bool = False,
    base: str = "bfloat16",
    question_loss: bool = False,
    checkpointing: bool = False,
    shards: int = 1,
) -> Memory:
    """Bytes at the peak of a step of ``tokens`` tokens a device.

    Parameters
    ----------
    tokens : of a micro-batch. kept : of these, positions that reach the vocabulary.
    rank : of LoRA on all linear maps, 0 trains every weight.
    dropout : LoRA has one. base : dtype of the weights, "nf4", "bfloat16" or "float32"; every
        weight is trained in float32, with activations in bfloat16 if base is.
    question_loss : the questions' own tokens are trained on too (sft, rcft).
    shards : devices that share the weights and all that is trained (FSDP2, ZeRO-3).
    """
    s = 4 if base == "float32" else 2  # bytes of an activation
    per_weight = {"float32": 4.0, "bfloat16": 2.0, "nf4": 0.5 + 4 / 64}[base]
    plain = 4.0 if base == "float32" else 2.0
    weights = shape.linear * per_weight + shape.embedding * plain
    if not rank:
        weights = shape.parameters * 4.0
    # AdamW in float32: gradient 4, two moments 8; an adapter's own weights 4.
    trained = shape.adapter(rank) * 16.0 if rank else shape.parameters * 12.0
    layer = _layer_bytes(shape, s, rank, dropout, min(tokens, ROW_TOKENS))
    if checkpointing:  # every layer's input, and one layer made again
        activations = tokens * (shape.layers * s * shape.hidden + layer)
    else:
        activations = tokens * shape.layers * layer
    # Logits and their gradient in the activations' dtype and in float32, and one softmax.
    logits = kept * shape.vocabulary * (12.0 if s == 4 else 16.0)
    if question_loss:
        logits += min(tokens * shape.vocabulary, CHUNK) * 8.0
    whole = shape.linear / shape.layers * s if shards > 1 else 0.0  # one layer is gathered
    return Memory(weights / shards + whole, trained / shards, activations, logits)


def _layer_bytes(shape: Shape, s: int, rank: int, dropout: bool, row: int) -> float:
    """Bytes a token leaves in one layer for the backward pass, with activations of s bytes."""
    d, q, i = shape.hidden, shape.q, shape.intermediate
    norms = 2 * (4 * d + 4)  # input in float32, and its scale
    # Queries, output, keys and values repeated for every head; the mask's row, sums of softmax.
    attention = s * 4 * q + s * row + 4 * shape.heads
    mlp = s * 3 * i  # gate, its activation, up
    inputs = 3 * d + q + 2 * d + i  # of q, k, v; of o; of gate, up; of down
    if rank and s == 2:
        linear = 4 * inputs + 4 * 7 * rank  # cast to the adapter's float32, each on its own
    else:  # kept as they are; o's is the attention's output
        linear = s * (2 * d + i) + (4 * 7 * rank if rank else 2 * s * d)
    if rank and dropout:
        linear += 4 * (inputs - q)
    return norms + attention + mlp + linear


def seconds(
    shape: Shape,
    tokens: float,
    *,
    read: float,
    rank: int = 32,
    checkpointing: bool = False,
    devices: int = 1,
    peak: float = 989e12,
    utilisation: float = 0.3,
) -> float:
    """Seconds to train on ``tokens`` tokens: 2 operations a parameter forward, 2 or 4 backward.

    ``read`` of the tokens' positions reach the vocabulary: all, where the question's own tokens are
    trained on. Checkpointing makes the layers again, not the head.

    Frozen weights need no gradient of their own, so LoRA's backward pass costs as much as its
    forward pass. ``peak`` is an H100's in bfloat16; ``utilisation`` is an assumption.
    """
    passes = 2 + (2 if rank else 4) + (2 if checkpointing else 0)
    used = shape.linear + (shape.adapter(rank) if rank else 0)
    head = (4 if rank else 6) * shape.vocabulary * shape.hidden * read
    return (passes * used * tokens + head) / (devices * peak * utilisation)


# -- recipes --------------------------------------------------------------------------------------


def expected(recipe: dict[str, Any]) -> str:
    """Say what a recipe takes on one GPU, in the line that it carries."""
    shape = SHAPES[recipe["model"]]
    prompt, batch, rank = recipe["prompt"], recipe["batch-size"], recipe["lora-rank"]
    rows = 4 if prompt == "cloze" and recipe["model"].startswith(UNPACKED) else 1
    kept, question_loss = 4 * 8 if prompt == "cloze" else 1, "rcft" in recipe["method"]
    peak = memory(
        shape,
        batch * rows * LONGEST,
        kept=batch * kept,
        rank=rank,
        dropout=recipe["lora-dropout"] > 0,
        question_loss=question_loss,
        checkpointing=recipe["activation-checkpointing"],
    )
    asked = recipe["train-limit"] * recipe["epochs"]
    tokens, steps = asked * MEAN_TOKENS[prompt] * rows, asked / batch
    busy = seconds(
        shape,
        tokens,
        read=tokens if question_loss else asked * kept,
        rank=rank,
        checkpointing=recipe["activation-checkpointing"],
    )
    # Below a few milliseconds a layer the GPU waits for Python.
    launched = steps * shape.layers * LAUNCH * (2 if recipe["activation-checkpointing"] else 1)
    return (
        f"# Expected on one H100, each fine-tuning: {(peak.total + CONTEXT) / 1e9:.1f} GB at the "
        f"peak, {max(busy, launched) / 60:.0f} min"
    )


def write_recipes() -> None:
    """Put the expectation into every recipe."""
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        line = expected(yaml.safe_load(text))
        path.write_text(re.sub(r"^# Expected.*$", line, text, flags=re.M), encoding="utf-8")


# -- the tables of docs/scaling.md ----------------------------------------------------------------


def table() -> str:
    """8B, letters, micro-batches of 8 questions at most 250 tokens long."""
    lines = [
        "| trained | base | checkpointing | GPUs | weights | trained | activations | logits | "
        "GB a GPU | min |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rank, base, again, shards, devices in CASES:
        parts = memory(
            LLAMA_8B,
            8 * LONGEST,
            kept=8,
            rank=rank,
            base=base,
            question_loss=True,
            checkpointing=again,
            shards=shards,
        )
        took = seconds(
            LLAMA_8B, TOKENS, read=TOKENS, rank=rank, checkpointing=again, devices=devices
        )
        numbers = (parts.weights, parts.trained, parts.activations, parts.logits)
        total = parts.total + CONTEXT
        fits = "" if total < 80e9 else " (does not fit)"
        lines.append(
            f"| {name} | {base} | {'yes' if again else 'no'} | {devices} | "
            + " | ".join(f"{n / 1e9:.1f}" for n in numbers)
            + f" | {total / 1e9:.1f}{fits} | {took / 60:.1f} |"
        )
    return "\n".join(lines)


CONTEXT = 1.0e9  # CUDA's own, and what its allocator cannot use: assumed
LAUNCH = 5e-3  # seconds of Python for a layer's forward and backward with LoRA: assumed
TOKENS = 3000 * 5 * MEAN_TOKENS["chat-letter"]
CASES = [  # trained, rank, base, checkpointing, shards, GPUs
    ("QLoRA r 32", 32, "nf4", True, 1, 1),
    ("QLoRA r 32", 32, "nf4", False, 1, 1),
    ("LoRA r 32", 32, "bfloat16", False, 1, 1),
    ("LoRA r 128", 128, "bfloat16", False, 1, 1),
    ("LoRA r 128", 128, "bfloat16", True, 1, 1),
    ("all", 0, "bfloat16", True, 1, 1),
    ("LoRA r 128, DDP", 128, "bfloat16", False, 1, 8),
    ("LoRA r 128, FSDP2", 128, "bfloat16", True, 8, 8),
    ("all, FSDP2 or ZeRO-3", 0, "bfloat16", True, 8, 8),
]


def write_page() -> None:
    """Put the table into docs/scaling.md, between its marks."""
    path = ROOT / "docs" / "scaling.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        re.sub(r"(<!-- table -->\n).*?(\n<!-- end -->)", rf"\1{table()}\2", text, flags=re.S),
        encoding="utf-8",
    )


# -- the formula beside a measurement -------------------------------------------------------------

SMALL = Shape(384, 1024, 4, 6, 3, 4000)


def kept_for_backward(shape: Shape, tokens: int, **how: Any) -> int:
    """Bytes that a forward pass of random weights keeps for the backward pass, counted."""
    import torch

    model, inputs = _small(shape, tokens, **how)
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    known.add(inputs["attention_mask"].untyped_storage().data_ptr())
    kept = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = tensor  # holds on to it, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, use_cache=False).logits.float().logsumexp(-1).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _small(
    shape: Shape, tokens: int, *, rank: int, dropout: bool, base: str, kept: int
) -> tuple[Any, dict[str, Any]]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
    )
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, base))
    if rank:
        how = {"lora_dropout": 0.1 * dropout, "target_modules": "all-linear"}
        model = get_peft_model(model, LoraConfig(r=rank, **how))
    rows = max(1, tokens // ROW_TOKENS)
    size = (rows, tokens // rows)
    keep = torch.zeros(size, dtype=torch.bool)
    keep.view(-1)[-kept:] = True
    inputs = {
        "input_ids": torch.randint(shape.vocabulary, size),
        "position_ids": torch.arange(size[1]).expand(size),
        "attention_mask": torch.ones(size[0], 1, size[1], size[1], dtype=torch.bool).tril(),
        "logits_to_keep": keep,
    }
    return model.train(), inputs


def peak_of_steps(rank: int, tokens: int) -> None:
    """Take two steps, and print by how many bytes the memory rose at its peak (Linux)."""
    import psutil
    import torch

    _small(Shape(8, 8, 1, 1, 1, 8), 8, rank=2, dropout=False, base="float32", kept=1)
    torch.nn.Linear(8, 8)(torch.zeros(2, 8)).sum().backward()  # threads and libraries are there
    start = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    model, inputs = _small(SMALL, tokens, rank=rank, dropout=False, base="float32", kept=8)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        model(**inputs, use_cache=False).logits.float().logsumexp(-1).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    status = Path("/proc/self/status").read_text()
    print(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) - start)


def measure() -> list[tuple[str, float, float]]:
    """Case, bytes by the formula and measured at the peak of a process of its own."""
    found = []
    for rank, tokens in ((16, 1024), (16, 2048), (0, 1024)):
        done = subprocess.run(
            [sys.executable, __file__, "--peak", str(rank), str(tokens)],
            capture_output=True,
            text=True,
            check=True,
            # What is freed goes back to the system, so that the peak is of what is in use.
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        )
        formula = memory(SMALL, tokens, kept=8, rank=rank, base="float32").total
        what = f"LoRA r {rank}" if rank else "all"
        found.append((f"{what}, {tokens} tokens", formula, float(done.stdout)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md and recipes/")
    parser.add_argument("--measure", action="store_true", help="beside a small model's peak")
    parser.add_argument("--peak", nargs=2, type=int, metavar=("RANK", "TOKENS"))
    asked = parser.parse_args()
    if asked.peak:
        peak_of_steps(*asked.peak)
    elif asked.measure:
        print("| small model, float32, CPU | formula, MB | measured, MB | measured / formula |")
        print("|---|---|---|---|")
        for name, formula, found in measure():
            print(f"| {name} | {formula / 1e6:.0f} | {found / 1e6:.0f} | {found / formula:.2f} |")
    elif asked.write:
        write_page()
        write_recipes()
    else:
        print(table())


if __name__ == "__main__":
    main()
