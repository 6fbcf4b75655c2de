"""Speed of scoring beside lm-eval, the released evaluator's way, and the hardware's limit.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py             # about twenty minutes of a core
    OMP_NUM_THREADS=1 python benchmarks/scoring.py --write     # also docs/results/scoring-speed.md
    python benchmarks/scoring.py --device cuda --dtype bfloat16 --questions 2376 --write
                                                               # scoring-speed-gpu.md

Every variant scores ARC-Easy test questions in a process of its own (so that peak memory is its
own), in turn, the best of the rounds. On a CPU processor seconds are compared, not the clock, so
that what else the machine does counts little.

ours      `calibrant.scoring.local.score`, tokenisation included.
lm-eval   `HFLM.loglikelihood` on the same contexts and continuations, tokenisation included, its
          best batch size of a few; also in the checkpoint's dtype, which is its default.
released  every prompt padded to 1,024 tokens in batches of 2, the full logits of every position, a
          softmax of the last one. Its cost does not depend on the question; a few are timed.
limit     plain forward passes over as many tokens in rows of equal length, in our batches or twice
          as large: no padding, no mask, no tokenisation, no logits but as many as are read.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PADDED, RELEASED_BATCH = 1024, 2
RELEASED_QUESTIONS = {"cpu": 2, "cuda": 64}
LM_EVAL_BATCHES = {"cpu": (4, 16), "cuda": (32, 128)}
SIZES = (128, 256, 512, 1024)  # tokens of a forward pass
MORE = 300  # letter questions, of which less is padding
# Questions that are enough to choose lm-eval's batch size, or to time what is slow.
FEW = {"cpu": 16, "cuda": 256}
TARGETS = (
    ("letter", "released", 20.0),
    ("letter", "lm-eval", 2.0),
    ("cloze", "lm-eval", 1.5),
    ("letter", "limit", 0.9),
    ("cloze", "limit", 0.9),
)


# -- the variants: each returns seconds, questions timed, and what else is worth knowing ----------


def ours(model, tokenizer, questions, prompt, seconds):
    from calibrant.scoring.local import score

    table = []
    took = seconds(
        lambda: table.append(
            score(model, tokenizer, questions, prompt=asked(prompt), show_progress=False)
        )
    )
    rows = zip(table[0].logprobs.tolist(), table[0].n_options, strict=True)
    return took, len(questions), {"logprobs": [row[:k] for row, k in rows]}


def lm_eval(model, tokenizer, questions, prompt, seconds):
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def requests(some):
        every = [pair for q in some for pair in pairs(q, prompt)]
        return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(every)]

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32")

    def run(batch, some):
        lm.batch_size_per_gpu = batch
        found.append(lm.loglikelihood(some, disable_tqdm=True))

    found = []
    device = model.device.type
    slow = model.dtype != torch.float32 and device == "cpu"
    questions = questions[: FEW[device] // 4] if slow else questions
    few = requests(questions[: FEW[device]])
    sizes = LM_EVAL_BATCHES[device][: 1 if slow else 2]
    times = {b: seconds(lambda b=b: run(b, few)) for b in sizes}
    best = min(times, key=times.get)
    took = times[best] if slow else seconds(lambda: run(best, requests(questions)))
    scores = iter([s for s, _ in found[-1]])
    logprobs = []
    for q in questions:
        own = [
            next(scores) / (1 if prompt == "letter" else len(lm._encode_pair(*pair)[1]))
            for pair in pairs(q, prompt)
        ]  # by the tokens of the option, as ours are
        logprobs.append(own)
    return took, len(questions), {"logprobs": logprobs, "batch": best}


def released(model, tokenizer, questions, prompt, seconds):
    import torch

    from calibrant.prompts import context

    few = questions[: RELEASED_QUESTIONS[model.device.type]]
    texts = [context(q, prompt) for q in few]
    letters = [tokenizer(f" {c}")["input_ids"][-1] for c in "ABCD"]
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"

    def run():
        for start in range(0, len(texts), RELEASED_BATCH):
            batch = tokenizer(
                texts[start : start + RELEASED_BATCH],
                padding="max_length",
                max_length=PADDED,
                return_tensors="pt",
            ).to(model.device)
            with torch.no_grad():
                logits = model(**batch).logits.cpu()
            logits[:, -1, letters].float().softmax(-1)

    return seconds(run), len(texts), {}


def limit(model, tokenizer, questions, prompt, seconds):
    import torch

    from calibrant.prompts import encode
    from calibrant.scoring.local import automatic_batch_tokens
    from calibrant.scoring.tokens import Tokens

    tokens = Tokens.of(encode(list(questions), tokenizer, asked(prompt)))
    n, width = len(tokens), round(tokens.n_tokens.mean())
    reads = round(tokens.n_kept.mean())
    best, best_rows = float("inf"), 0
    for size in (1, 2):  # in our batches, or twice as large, whichever is faster
        rows = max(1, size * automatic_batch_tokens(model) // width)
        part = min(n, 120) if model.device.type == "cpu" else n
        n_rows = rows * max(1, part // rows // 2)  # every batch costs the same
        ids = torch.randint(10, 40_000, (n_rows, width), device=model.device)
        keep = torch.zeros(rows, width, dtype=torch.bool, device=model.device)
        keep[:, width - reads :] = True

        def run(ids=ids, keep=keep):
            for part in ids.split(len(keep)):
                model(part, use_cache=False, logits_to_keep=keep).logits.float().logsumexp(-1)

        with torch.no_grad():
            took = seconds(run) * int(tokens.n_tokens.sum()) / (n_rows * width)
        if took < best:
            best, best_rows = took, rows
    return best, n, {"batch": best_rows}


VARIANTS = {
    "ours": ours,
    "lm-eval": lm_eval,
    "lm-eval, bfloat16": lm_eval,  # what it does by default: the checkpoint's dtype
    "released": released,
    "limit": limit,
}


def asked(prompt):
    """The rule for letters that lm-eval has, so that the same numbers come out."""
    from calibrant.prompts import Prompt

    return Prompt(prompt, letter_tokens="single") if prompt == "letter" else Prompt(prompt)


def pairs(question, prompt):
    from calibrant.prompts import LETTERS, context

    options = LETTERS if prompt == "letter" else question.choices
    text = context(question, prompt)
    return [(text, f" {option}") for option, _ in zip(options, question.choices, strict=False)]


# -- one variant in a process of its own ----------------------------------------------------------


def measure(a):
    import torch

    from calibrant.prompts import encode
    from calibrant.questions import load_questions
    from calibrant.scoring.models import load_model
    from calibrant.scoring.tokens import Tokens

    questions = load_questions(a.data / "arc_easy/test.jsonl.gz").sample(a.questions)
    model, tokenizer = load_model(a.model, device=a.device, dtype=a.dtype)
    loaded = peak_gb()
    if a.device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def seconds(run):
        if a.device == "cpu":
            start = time.process_time()
            run()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.no_grad():
        model(torch.arange(10, 74, device=model.device)[None])  # first call: kernels are chosen
    if a.device == "cuda":  # more kernels are chosen, and memory is got
        VARIANTS[a.variant](model, tokenizer, questions, a.prompt, seconds)
    wall = time.perf_counter()
    took, n, notes = VARIANTS[a.variant](model, tokenizer, questions, a.prompt, seconds)
    tokens = Tokens.of(encode(list(questions), tokenizer, asked(a.prompt)))
    memory = torch.cuda.max_memory_allocated() / 1e9 if a.device == "cuda" else peak_gb()
    return notes | {
        "seconds": took / n,  # per question
        "tokens": float(tokens.n_tokens.mean()),
        "peak_gb": memory,
        "loaded_gb": loaded,
        "threads": torch.get_num_threads(),
        "wall": time.perf_counter() - wall,
    }


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def profile(a):
    """Where our time goes: from a matrix product alone to the whole run, and by kind of work."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    from calibrant.questions import load_questions
    from calibrant.scoring.local import automatic_batch_tokens, score
    from calibrant.scoring.models import load_model

    model, tokenizer = load_model(a.model, device="cpu", dtype=a.dtype)
    layers = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    each = 2 * sum(layer.weight.numel() for layer in layers)  # operations a token
    exact = a.dtype == "float32"

    def gflops(run, operations, times):
        """Of the fastest of several runs."""
        took = []
        for _ in range(times):
            start = time.process_time()
            run()
            took.append(time.process_time() - start)
        return operations / min(took) / 1e9

    def rows_of(n, width):
        return torch.randn(n, width, dtype=model.dtype)

    def forward(n_tokens):
        ids = torch.randint(10, 40_000, (n_tokens // 64, 64))
        return lambda: model(ids, use_cache=False, logits_to_keep=1)

    found = {}
    batch, times = (automatic_batch_tokens(model), 3) if exact else (64, 1)
    with torch.no_grad():
        weight = rows_of(1536, 576)
        inputs = {layer.in_features: rows_of(batch, layer.in_features) for layer in layers}
        one = inputs[576]
        found["one product, 576 to 1,536"] = gflops(
            lambda: torch.nn.functional.linear(one, weight), 2 * weight.numel() * batch, 9
        )
        found["all the model's products, in turn"] = gflops(
            lambda: [layer(inputs[layer.in_features]) for layer in layers], each * batch, times
        )
        found["forward pass, rows of 64"] = gflops(forward(batch), each * batch, times)
        sizes = SIZES if exact else ()
        sweep = {n: gflops(forward(n), each * n, 2) for n in sizes}
    questions = load_questions(a.data / "arc_easy/test.jsonl.gz").sample(30 if exact else 4)
    score(model, tokenizer, questions[:2], show_progress=False)
    start = time.process_time()
    tokens = score(model, tokenizer, questions, show_progress=False).provenance["tokens"]
    found["our whole run"] = each * tokens / (time.process_time() - start) / 1e9
    with profiler(activities=[ProfilerActivity.CPU]) as trace:
        start = time.process_time()
        score(model, tokenizer, questions, show_progress=False)
        traced = time.process_time() - start
    kinds = {"matrix products": 0.0, "attention": 0.0, "element-wise and copies": 0.0}
    for event in trace.key_averages():
        name = event.key
        kind = "matrix products" if name in ("aten::mm", "aten::addmm") else "attention"
        if kind == "attention" and "scaled_dot_product" not in name:
            kind = "element-wise and copies"
        kinds[kind] += event.self_cpu_time_total / 1e6
    kinds["tokenisation, Python"] = max(0.0, traced - sum(kinds.values()))
    return {
        "gflops": found,
        "sweep": sweep,
        "shares": {k: v / sum(kinds.values()) for k, v in kinds.items()},
    }


# -- all of them ----------------------------------------------------------------------------------


def child(a, **changes):
    given = {k: v for k, v in (vars(a) | changes).items() if v is not None and v is not False}
    given.pop("write", None)
    command = [sys.executable, __file__]
    for name, value in given.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def rounds(a):
    """(prompt, variant) -> the best of the rounds, variants in turn within a round."""
    best = {}
    for i in range(a.rounds):
        for prompt in ("letter", "cloze"):
            for variant in VARIANTS:
                if (prompt, variant) == ("cloze", "released"):
                    continue  # it knows letters only
                if variant == "lm-eval, bfloat16" and (
                    a.dtype != "float32" or i or prompt != "letter"
                ):
                    continue  # slow, and once is enough
                dtype = "bfloat16" if variant == "lm-eval, bfloat16" else a.dtype
                row = child(a, variant=variant, prompt=prompt, dtype=dtype)
                print(f"round {i}: {prompt} {variant} {row['seconds'] * 1e3:.0f} ms a question, "
                      f"{row['wall']:.0f} s by the clock", file=sys.stderr, flush=True)  # fmt: skip
                key = prompt, variant
                if key not in best or row["seconds"] < best[key]["seconds"]:
                    best[key] = row
    return best


def table(best):
    lines = [
        "| prompt | variant | ms / question | questions/s | tokens/s | peak memory, GB | ours is |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for (prompt, variant), row in best.items():
        s, ratio = row["seconds"], row["seconds"] / best[prompt, "ours"]["seconds"]
        name = f"{variant}, batch {row['batch']}" if "batch" in row else variant
        lines.append(
            f"| {prompt} | {name} | {s * 1e3:.1f} | {1 / s:.2f} | {row['tokens'] / s:.0f} | "
            f"{row['peak_gb']:.2f} | {f'{ratio:.2f}× as fast' if variant != 'ours' else ''} |"
        )
    lines += ["", "| target: ours as fast as | at least | measured | |", "|---|---:|---:|---|"]
    for prompt, variant, least in TARGETS:
        ratio = best[prompt, variant]["seconds"] / best[prompt, "ours"]["seconds"]
        verdict = "met" if ratio >= least else "**missed**"
        lines.append(f"| {variant}, {prompt} | {least:g}× | {ratio:.2f}× | {verdict} |")
    return lines


def agreement(best):
    import numpy as np

    for prompt in ("letter", "cloze"):
        # Every option of every question; lm-eval has been asked fewer questions where it is slow.
        each = zip(*(best[prompt, v]["logprobs"] for v in ("ours", "lm-eval")), strict=False)
        most = max(np.abs(np.subtract(a, b)).max() for a, b in each)
        yield f"{prompt} {most:.1e}"


def most(best):
    for prompt in ("letter", "cloze"):
        ratio = best[prompt, "lm-eval"]["seconds"] / best[prompt, "limit"]["seconds"]
        yield f"{prompt} {ratio:.2f}×"


def with_more(a):
    """Of the limit, with more questions: the longest of few differ most in length."""
    rows = [child(a, variant=v, prompt="letter", questions=MORE) for v in ("ours", "limit")]
    ours, limit = (row["seconds"] * 1e3 for row in rows)
    return (
        f"With {MORE} letter questions ours takes {ours:.1f} ms a question, the limit {limit:.1f} "
        f"({limit / ours:.2f}×): of the longest of a few questions more is padding."
    )


def where(a):
    found = {dtype: child(a, profile=True, dtype=dtype) for dtype in ("float32", "bfloat16")}
    single, half = found["float32"], found["bfloat16"]
    yield from ("| GFLOP/s of one thread | float32 | bfloat16 |", "|---|---:|---:|")
    for name, rate in single["gflops"].items():
        yield f"| {name} | {rate:.1f} | {half['gflops'][name]:.1f} |"
    yield from ("", "| share of our run | float32 | bfloat16 |", "|---|---:|---:|")
    for name, share in single["shares"].items():
        yield f"| {name} | {share:.1%} | {half['shares'][name]:.1%} |"
    yield from (
        "",
        "| tokens of a forward pass, rows of 64 | " + " | ".join(single["sweep"]) + " |",
    )
    yield "|---|" + "---:|" * len(single["sweep"])
    rates = " | ".join(f"{rate:.1f}" for rate in single["sweep"].values())
    yield f"| GFLOP/s, float32 | {rates} |"


def machine(a):
    if a.device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def report(a):
    best = rounds(a)
    loaded = best["letter", "ours"]
    clock = "processor seconds" if a.device == "cpu" else "seconds by the clock"
    lines = [
        f"SmolLM2-135M-Instruct, {a.dtype}, {machine(a)}, threads: {loaded['threads']}; "
        f"{a.questions} ARC-Easy test questions; the best of {a.rounds} round(s), {clock}. "
        "The machine was shared with other work. "
        f"Tokens are those of the question and its options once. The process holds "
        f"{loaded['loaded_gb']:.2f} GB with the model loaded.",
        "",
        *table(best),
        "",
        f"Largest difference between our log-probabilities and lm-eval's: "
        f"{', '.join(agreement(best))}. The released evaluator knows letters only.",
        "",
        "The most that could be had over lm-eval in the same dtype is what the limit has: "
        f"{', '.join(most(best))}. For letters lm-eval, too, runs each prompt once; what it does "
        "in vain is the projection of every position onto the vocabulary, and its softmax. "
        "For cloze it runs each question once for every option.",
    ]
    if a.device == "cpu":
        lines += [
            "",
            with_more(a),
            "",
            "Where the time goes, letter questions in our batches, a forward pass of 64 tokens in "
            "bfloat16 (the operations counted are the linear layers' alone; the shares are a "
            "profiler's, which costs some time itself):",
            "",
            *where(a),
        ]
    names = ("torch", "transformers", "lm_eval")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return [
        *lines,
        "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when done. Made by "
        f"`OMP_NUM_THREADS={loaded['threads']} python benchmarks/scoring.py --questions "
        f"{a.questions} --rounds {a.rounds} --device {a.device} --dtype {a.dtype} --write`.",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--model", default=str(ROOT / "models/smollm2-135m-instruct"))
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true", help="into docs/results")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--prompt", default="letter", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.profile or a.variant:
        print(json.dumps(profile(a) if a.profile else measure(a)))
        return
    lines = report(a)
    print("\n".join(lines))
    if a.write:
        name = "scoring-speed" if a.device == "cpu" else "scoring-speed-gpu"
        page = ROOT / "docs" / "results" / f"{name}.md"
        page.write_text(
            "\n".join([f"# Speed of scoring{' on a GPU' * (a.device != 'cpu')}", "", *lines, ""]),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
