"""Training on a GPU: tokens/s, MFU and peak memory beside TRL's SFTTrainer.

    python benchmarks/gpu.py --write                        # docs/results/gpu.md; a 140 GB GPU
    python benchmarks/gpu.py --device cpu --models tiny     # does it run at all?

The models are Llamas of random weights, built from a config; the questions are real (ARC-Easy and
OpenBookQA train, letters). The variants are those of `benchmarks/training.py`, in processes that
take turns. Useful work of a token is a multiplication and an addition for every weight of the
layers, forward and backward to the activations (the weights are frozen, LoRA trains), and for the
head at every position that the loss is on; attention, LoRA and whatever is computed twice do not
count. MFU is that work per second by what a matrix product of the same type reaches here.
"""

import argparse
import os
import platform
import statistics
from importlib.metadata import version

import training

VARIANTS = (
    "cft",
    "rcft",
    "trl full",
    "trl full, padding-free",
    "trl completion",
    "trl completion, padding-free",
    "released",
)
# Questions of a step and variants of each model: all of an 8B's do not fit beside one another.
RUNS = {
    "llama-1b": (32, VARIANTS),
    "llama-8b": (16, ("cft", "rcft", *VARIANTS[3:6:2])),
    "tiny": (8, VARIANTS),
}
EVERYWHERE = ("rcft", "trl full")  # whose loss is on every position


def ceiling(device, dtype):
    """Floating-point operations a second of the best of several large matrix products."""
    import torch

    n = 8192 if device != "cpu" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    watch, best = training.Stopwatch(device), float("inf")
    for _ in range(10):
        start = watch.now()
        a @ b
        best = min(best, watch.now() - start)
    return 2 * n**3 / best


def useful(shape, variant, tokens, questions):
    """Floating-point operations that a step of so many tokens and questions needs."""
    hidden, inner, layers, heads, kv_heads, vocabulary = shape
    attention = 2 * hidden * hidden * (1 + kv_heads / heads)  # queries and output, keys and values
    body = layers * (attention + 3 * hidden * inner)
    read = tokens if variant.startswith(EVERYWHERE) else questions
    return 4 * (body * tokens + hidden * vocabulary * read)


def rows(a, name, most):
    """Lines of the table for one model."""
    batch, variants = RUNS[name]
    given = argparse.Namespace(**vars(a) | {"model": name, "batch": batch})
    workers = training.run(given, variants)
    extra = training.e_step(given, workers)[0]
    for variant, worker in workers.items():
        if variant == "released":
            each = training.per_question(given, worker)
            yield (
                f"| {name} | {variant} | {training.RELEASED_BATCH} | {1e3 * each:.1f} | – | – | – |"
                f" {training.peak(worker):.2f} |"
            )
            continue
        laps = worker.laps[1:]
        added = extra if variant == "rcft" else 0.0
        took = [s + added for s in training.seconds(worker)]
        speed = statistics.median(lap["tokens"] / t for lap, t in zip(laps, took, strict=True))
        work = statistics.median(
            useful(training.SHAPES[name], variant, lap["tokens"], batch) / t
            for lap, t in zip(laps, took, strict=True)
        )
        yield (
            f"| {name} | {variant} | {batch} | {1e3 * statistics.median(took) / batch:.1f} | "
            f"{speed:.0f} | {work / 1e12:.2f} | {work / most:.1%} | {training.peak(worker):.2f} |"
        )


def main():
    parser = training.arguments()
    parser.description = __doc__.splitlines()[0]
    parser.set_defaults(device="cuda", dtype="bfloat16", questions=800, laps=10)
    parser.add_argument("--models", nargs="+", choices=RUNS, default=["llama-1b", "llama-8b"])
    a = parser.parse_args()
    if a.device == "cpu":
        a.dtype = "float32"
        if a.write:
            parser.error("--write is for a GPU's numbers")
    most = ceiling(a.device, a.dtype)
    lines = [
        "| model | variant | batch | ms / question | tokens/s | useful TFLOP/s | MFU | "
        "peak memory, GB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in a.models:
        lines += rows(a, name, most)
    where = platform.machine()
    if a.device != "cpu":
        import torch

        where = torch.cuda.get_device_name()
    names = ("torch", "transformers", "peft", "trl")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        f"{where}, {a.dtype}; random weights, LoRA rank 32 on all linear layers, "
        f"gradient checkpointing {'on' if a.checkpointing else 'off'}, median "
        f"of {a.laps} steps. RCFT's E-steps are counted, spread over an epoch of {a.questions} "
        f"questions. A matrix product reaches {most / 1e12:.1f} TFLOP/s.",
        "",
        *lines,
        "",
        f"Python {platform.python_version()}, {versions}; load {os.getloadavg()[0]:.1f}. Made by "
        "`python benchmarks/gpu.py --write`.",
    ]
    print("\n".join(lines))
    if a.write:
        page = training.ROOT / "docs" / "results" / "gpu.md"
        page.write_text("\n".join(["# Training on a GPU", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
