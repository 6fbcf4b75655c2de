"""Memory and time of a run of many questions, through a model that costs nothing.

    OMP_NUM_THREADS=1 python benchmarks/large_run.py            # about five minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/large_run.py --write    # also docs/results/scoring-large.md

A file of made-up questions is read, asked (SmolLM2's tokenizer, a random model of one layer and
width 8), saved, and measured by `calibrant evaluate --answers`. What is left is what calibrant
itself takes: each size in a process of its own, processor seconds and peak resident memory.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZES = (10_000, 100_000)
WORDS = ("red", "green", "blue", "stone", "river", "seven", "nine", "cat", "dog", "old", "new")


def write_questions(path, n):
    """Four options each; about as many words as ARC-Easy has."""
    with open(path, "w") as file:
        for i in range(n):
            words = [WORDS[(i // 11**k) % 11] for k in range(4)]
            text = f"Which of the following is most likely to be found beside {' '.join(words)} {i}"
            choices = [f"the {WORDS[(i + 2 * k) % 11]} one of them" for k in range(4)]
            row = {"id": f"q{i}", "question": f"{text}?", "choices": choices, "answer": i % 4}
            file.write(json.dumps(row) + "\n")


def tiny_model(vocabulary):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(n, model_folder, prompt):
    from transformers import AutoTokenizer

    from calibrant.diagnosis.report import evaluate
    from calibrant.questions import load_questions
    from calibrant.runs import answers_at
    from calibrant.scoring.local import score

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = tiny_model(len(tokenizer))
    rows = [("imports and model", 0.0, peak_mb())]

    def step(name, run):
        start = time.process_time()
        result = run()
        rows.append((name, time.process_time() - start, peak_mb()))
        return result

    with tempfile.TemporaryDirectory() as folder:
        source, answers = Path(folder, "q.jsonl"), Path(folder, "answers.parquet")
        write_questions(source, n)
        questions = step("questions", lambda: load_questions(source))

        def ask(partial):
            return score(
                model, tokenizer, questions, prompt=prompt, batch_tokens=4096, partial=partial,
                show_progress=False,
            )  # fmt: skip

        table = step("answers", lambda: answers_at(answers, ask))
        step("report", lambda: evaluate(table))
    return rows


def child(n, a):
    command = [sys.executable, __file__, "--n", str(n), "--model", a.model, "--prompt", a.prompt]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(a):
    lines = [
        "| questions | after | processor seconds | peak memory, MB | more, kB / question |",
        "|---:|---|---:|---:|---:|",
    ]
    for n in a.sizes:
        rows = child(n, a)
        for name, seconds, mb in rows:
            each = (mb - rows[0][2]) * 1e3 / n
            lines.append(f"| {n:,} | {name} | {seconds:.1f} | {mb:.0f} | {each:.2f} |")
    return [
        *lines,
        "",
        "*More* is over the memory after the imports. "
        f"Prompt `{a.prompt}`, one thread, a random model of one layer and width 8, partial "
        f"results kept. Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores shared with other work. Made by "
        "`OMP_NUM_THREADS=1 python benchmarks/large_run.py --write`.",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models/smollm2-135m-instruct"))
    parser.add_argument("--prompt", default="letter")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--write", action="store_true", help="write docs/results/scoring-large.md")
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.n:
        print(json.dumps(measure(a.n, a.model, a.prompt)))
        return
    lines = report(a)
    print("\n".join(lines))
    if a.write:
        page = ROOT / "docs" / "results" / "scoring-large.md"
        page.write_text("\n".join(["# Large runs", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
