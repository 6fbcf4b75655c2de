"""Memory and time of a fine-tuning, from the model's shape: see docs/scaling.md, recipes/.

    python benchmarks/scaling.py                 the tables of docs/scaling.md
    python benchmarks/scaling.py --write         ... put into docs/scaling.md, and into recipes/
    python benchmarks/scaling.py --measure       the memory formula beside what a small model takes

Nothing here is measured on a GPU. Bytes are counted from what PyTorch keeps for the backward pass
of a Llama-like layer; `--measure` (and a test) holds the count to a real one on a CPU. Times are
floating-point operations over an assumed share of the card's peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    "alignment-handbook/zephyr-7b-dpo-full": Shape(4096, 14336, 32, 32, 8, 32000),
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
    checkpointing: bool = False,
    shards: int = 1,
) -> Memory:
    """Bytes at the peak of a step of ``tokens`` tokens a device.

    Parameters
    ----------
    tokens : of a micro-batch. kept : of these, positions that reach the vocabulary.
    rank : of LoRA on all linear maps, 0 trains every weight.
    dropout : LoRA has one. base : dtype of the weights, "nf4", "bfloat16" or "float32".
    shards : devices that share the weights and all that is trained (FSDP2, ZeRO-3).
    """
    s = 4 if base == "float32" else 2  # bytes of an activation
    per_weight = {"float32": 4.0, "bfloat16": 2.0, "nf4": 0.5 + 4 / 64}[base]
    plain = 4.0 if base == "float32" else 2.0
    weights = shape.linear * per_weight + shape.embedding * plain
    # AdamW in float32: gradient 4, two moments 8; an adapter's own weights 4.
    trained = shape.adapter(rank) * 16.0 if rank else shape.parameters * 12.0
    layer = _layer_bytes(shape, s, rank, dropout)
    if checkpointing:  # every layer's input, and one layer made again
        activations = tokens * (shape.layers * s * shape.hidden + layer)
    else:
        activations = tokens * shape.layers * layer
    # Logits in the weights' dtype and float32, their softmax and gradients.
    logits = kept * shape.vocabulary * (16.0 if s == 4 else 14.0)
    whole = shape.linear / shape.layers * s if shards > 1 else 0.0  # one layer is gathered
    return Memory(weights / shards + whole, trained / shards, activations, logits)


def _layer_bytes(shape: Shape, s: int, rank: int, dropout: bool) -> float:
    """Bytes a token leaves in one layer for the backward pass."""
    d, q, kv, i = shape.hidden, shape.q, shape.kv, shape.intermediate
    norms = 2 * (4 * d + s * d)  # float32 input, output in the model's dtype
    attention = s * (2 * q + 2 * kv) + s * q  # queries, keys, values, output; output in its order
    mlp = s * 4 * i  # gate, its activation, up, their product
    lora = 0.0
    if rank:
        inputs = 3 * d + q + 2 * d + i  # of q, k, v; o; gate, up; down
        lora += 4 * 7 * rank
        lora += 4 * inputs if s == 2 else 0  # cast to the adapter's float32
        lora += 5 * inputs if dropout else 0  # what was kept, and which
    return norms + attention + mlp + lora


def seconds(
    shape: Shape,
    tokens: int,
    *,
    rank: int = 32,
    checkpointing: bool = False,
    devices: int = 1,
    peak: float = 989e12,
    utilisation: float = 0.3,
) -> float:
    """Seconds to train on ``tokens`` tokens: 2 operations a parameter forward, 2 or 4 backward.

    Frozen weights need no gradient of their own, so LoRA's backward pass costs as much as its
    forward pass. ``peak`` is an H100's in bfloat16; ``utilisation`` is an assumption.
    """
    passes = 2 + (2 if rank else 4) + (2 if checkpointing else 0)
    used = shape.linear + (shape.adapter(rank) if rank else 0)
    return passes * used * tokens / (devices * peak * utilisation)
