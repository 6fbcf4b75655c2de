"""Cost of a training step beside TRL's SFTTrainer and the released trainer's way.

    OMP_NUM_THREADS=1 python benchmarks/training.py            # about fifteen minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/training.py --write    # also docs/results/training-speed.md
    python benchmarks/training.py --model tiny --laps 2        # made-up model: does it run?

Every variant trains LoRA adapters on the same batches of 8 questions (ARC-Easy and OpenBookQA
train, letters) in a process of its own, so that peak memory is its own, through its own `train()`:
data, loss, gradient, clipping and optimiser. The processes take turns, one step each, and a step is
compared with the others' step on the same batch. On a CPU processor seconds are compared, not the
clock, so that what else the machine does counts little.

cft, rcft            `CalibrationTrainer`. RCFT's E-steps are spread over an epoch.
cft, padded          the same with a row of its own for each question instead of shared rows.
trl full, completion `SFTTrainer` with loss on all tokens, as RCFT has, and on the answer alone, as
                     CFT; without gradient checkpointing or bfloat16, which only cost time here.
..., padding-free    its batches as one row instead of padded ones.
plain full           `transformers.Trainer` on padded batches with loss on all tokens, whole logits.
released             as published: two forward and backward passes a batch of 2, padded to 2,048
                     tokens, the logits of every position. Its cost does not depend on the question.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PADDED, RELEASED_BATCH = 2048, 2
OURS = {"cft": ("cft", True), "rcft": ("rcft", True), "cft, padded": ("cft", False)}
TRL = {
    f"trl {loss}{', padding-free' * free}": (loss == "completion", free)
    for loss in ("full", "completion")
    for free in (False, True)
}
VARIANTS = (*OURS, *TRL, "plain full", "released")
E_STEP_SHARE = 0.07


# -- one variant in a process of its own ----------------------------------------------------------


class Stopwatch:
    """Laps that begin when the parent says so; each is reported on standard output."""

    def __init__(self, device):
        self.device, self.began = device, None

    def now(self):
        if self.device == "cpu":
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def ready(self):
        reset_peak(self.device)
        tell({"ready": peak_gb(self.device)})
        self.wait()

    def lap(self, **notes):
        tell({"seconds": self.now() - self.began, "peak_gb": peak_gb(self.device)} | notes)
        self.wait()

    def wait(self):
        if not sys.stdin.readline():
            sys.exit()  # the parent has seen enough
        self.began = self.now()


def tell(what):
    print(json.dumps(what), file=REPORT, flush=True)


REPORT = sys.stdout


def reset_peak(device):
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew


def peak_gb(device):
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / 1e9


def load(a):
    """Training questions, calibration questions, model, tokenizer."""
    from calibrant.questions import Questions, load_questions

    questions = Questions(
        q
        for name in ("openbookqa/train", "arc_easy/train")
        for q in load_questions(a.data / f"{name}.jsonl.gz").sample(a.questions * 5 // 8)
    )
    order = random.Random(0).sample(range(len(questions)), len(questions))
    train, held_out = order[: a.questions], order[a.questions :]
    if Path(a.model).exists():
        from calibrant.scoring.models import load_model

        model, tokenizer = load_model(a.model, device=a.device, dtype=a.dtype)
    else:
        model, tokenizer = made_up(a.model, questions, a.device, a.dtype)
    return questions.select(train), questions.select(held_out), model, tokenizer


# Llama's own shapes: hidden, MLP, layers, heads, key-value heads, vocabulary.
SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 1024),
    "llama-1b": (2048, 8192, 16, 32, 8, 128_256),
    "llama-8b": (4096, 14336, 32, 32, 8, 128_256),
}


def made_up(name, questions, device, dtype):
    """A Llama of random weights, and a tokenizer trained on the questions: nothing is fetched."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from calibrant.prompts import context

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size")
    config = LlamaConfig(
        **dict(zip(names, SHAPES[name], strict=True)),
        max_position_embeddings=4096,
        tie_word_embeddings=name != "llama-8b",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [context(q, "letter") for q in questions] + ["Answer: A B C D E"] * 100
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=min(config.vocab_size, 32_000),
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    return model, tokenizer


def settings(a, folder):
    """What both trainers are given: the same batches, steps and optimiser."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": a.batch,
        "max_steps": a.laps + 1,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "logging_steps": 10**6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": a.device == "cpu",
        "bf16": a.dtype == "bfloat16",
        "gradient_checkpointing": a.checkpointing,
    }


def lora():
    from peft import LoraConfig

    return LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")


def callback(a, watch, notes, lengths):
    """Report every step with the tokens of its questions."""
    from transformers import TrainerCallback

    class Laps(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            watch.ready()

        def on_step_end(self, args, state, control, **kwargs):
            end = state.global_step * a.batch
            watch.lap(tokens=sum(lengths[end - a.batch : end]), **notes)
            notes.clear()

    return Laps()


def ours(a, watch, folder):
    from calibrant.prompts import encode
    from calibrant.scoring.local import score
    from calibrant.training import CalibrationConfig, CalibrationTrainer, base

    method, shared = OURS[a.variant]
    if not shared:
        base.ROW_TOKENS = 0
    train, held_out, model, tokenizer = load(a)
    lengths = [q.n_tokens for q in encode(list(train), tokenizer, "letter")]
    notes = {}
    trainer = CalibrationTrainer(
        model=model,
        args=CalibrationConfig(method=method, prompt="letter", **settings(a, folder)),
        train_dataset=train,
        calibration_dataset=held_out if method == "rcft" else None,
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[callback(a, watch, notes, lengths)],
    )
    e_step = trainer.e_step

    def timed():
        if a.device != "cpu" and not notes:  # kernels are chosen at the first pass
            score(trainer.model, tokenizer, held_out, prompt="letter", show_progress=False)
        began = watch.now()
        e_step()
        notes.update(e_step_s=watch.now() - began, e_step_questions=trainer._e_state().scored)

    trainer.e_step = timed
    trainer.train()


def trl(a, watch, folder):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from calibrant.prompts import encode

    completion, free = TRL[a.variant]
    train, _, model, tokenizer = load(a)
    rows, encoded = [], encode(list(train), tokenizer, "letter")
    for q in encoded:
        answer = q.reads[q.answer][0][1]
        prompt = [-100] * len(q.prefix) if completion else list(q.prefix)
        rows.append({"input_ids": [*q.prefix, answer], "labels": [*prompt, answer]})
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(max_length=None, padding_free=free, **settings(a, folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[callback(a, watch, {}, [q.n_tokens for q in encoded])],
    )
    trainer.train()


def plain(a, watch, folder):
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from calibrant.prompts import encode

    train, _, model, tokenizer = load(a)
    encoded = encode(list(train), tokenizer, "letter")
    rows = [[*q.prefix, q.reads[q.answer][0][1]] for q in encoded]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Trainer(
        model=get_peft_model(model, lora()),
        args=TrainingArguments(**settings(a, folder)),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[callback(a, watch, {}, [q.n_tokens for q in encoded])],
    )
    trainer.train()


def released(a, watch, folder):
    import torch
    from peft import get_peft_model

    from calibrant.prompts import context

    train, _, model, tokenizer = load(a)
    model = get_peft_model(model, lora()).train()
    tokenizer.pad_token = tokenizer.eos_token
    texts = [f"{context(q, 'letter')} {'ABCDEFGH'[q.answer]}" for q in train[:RELEASED_BATCH]]
    batch = tokenizer(texts, padding="max_length", max_length=PADDED, return_tensors="pt")
    batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    last = batch["attention_mask"].sum(1) - 1
    labels = torch.full_like(batch["input_ids"], -100)
    rows = torch.arange(RELEASED_BATCH)
    labels[rows, last] = batch["input_ids"][rows, last]
    letters = [tokenizer(f" {letter}")["input_ids"][-1] for letter in "ABCD"]
    watch.ready()
    while True:
        model(**batch, labels=labels).loss.backward()
        logits = model(**batch).logits.float()
        probs = logits[rows, last - 1][:, letters].softmax(-1)
        (probs**2).sum().backward()
        del logits, probs
        watch.lap()


def work(a):
    global REPORT
    REPORT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the error stream
    others = {"plain full": plain, "released": released}
    way = ours if a.variant in OURS else trl if a.variant in TRL else others[a.variant]
    with tempfile.TemporaryDirectory() as folder:
        way(a, Stopwatch(a.device), folder)


# -- all of them ----------------------------------------------------------------------------------


class Worker:
    def __init__(self, a, variant):
        command = [sys.executable, str(Path(__file__).resolve()), "--variant", variant]
        for name in ("data", "model", "questions", "laps", "batch", "device", "dtype"):
            command += [f"--{name}", str(getattr(a, name))]
        command += ["--checkpointing"] * a.checkpointing
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.variant, self.laps, self.loaded_gb = variant, [], 0.0

    def ready(self):
        self.loaded_gb = self.hear()["ready"]

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"{self.variant} failed:\n{self.log.read()[-4000:]}")
        return json.loads(line)

    def lap(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.laps.append(self.hear())
        print(f"{self.variant:28} {self.laps[-1]}", file=sys.stderr, flush=True)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def run(a, variants):
    """variant -> its worker, all laps done; the first lap is a warm-up."""
    workers = {}
    if "released" in variants:  # alone: it needs the memory
        workers["released"] = alone = Worker(a, "released")
        alone.ready()
        alone.lap()
        alone.close()
    turns = [workers.setdefault(v, Worker(a, v)) for v in variants if v != "released"]
    try:
        for worker in turns:  # they load side by side
            worker.ready()
        for _ in range(a.laps + 1):
            for worker in turns:
                worker.lap()
    finally:
        for worker in turns:
            worker.close()
    return workers


def seconds(worker):
    """Of each timed step, without the E-step."""
    laps = worker.laps[1:] or worker.laps
    return [lap["seconds"] - lap.get("e_step_s", 0.0) for lap in laps]


def per_question(a, worker):
    batch = RELEASED_BATCH if worker.variant == "released" else a.batch
    return statistics.median(seconds(worker)) / batch


def e_step(a, workers):
    """Seconds of an epoch's E-steps spread over its steps, and questions scored."""
    first = workers["rcft"].laps[0]
    return first["e_step_s"] / (a.questions / a.batch), first["e_step_questions"]


def ratio(ours, other, extra=0.0):
    """Median over the steps of ours by theirs on the same batch, lowest and highest."""
    found = [(x + extra) / y for x, y in zip(seconds(ours), seconds(other), strict=True)]
    return statistics.median(found), min(found), max(found)


def peak(worker):
    return max(lap["peak_gb"] for lap in worker.laps)


def report(a, workers):
    lines = [
        "| variant | s / question | steps | peak memory, GB | of it before the first step, GB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, worker in workers.items():
        lines.append(
            f"| {name} | {per_question(a, worker):.3f} | {len(seconds(worker))} | "
            f"{peak(worker):.2f} | {worker.loaded_gb:.2f} |"
        )
    extra = 0.0
    if "rcft" in workers:
        extra, scored = e_step(a, workers)
        share = extra / statistics.median(seconds(workers["rcft"]))
        lines += [
            "",
            f"RCFT's E-steps score {scored} calibration questions an epoch of {a.questions} "
            f"training questions; spread over its steps they add {share:.1%} to each (target: at "
            f"most {E_STEP_SHARE:.0%}).",
        ]
    lines += [
        "",
        "| comparison | measured: median (lowest to highest step) | target | |",
        "|---|---:|---:|---|",
        *comparisons(a, workers, extra),
    ]
    names = ("torch", "transformers", "peft", "trl")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    clock = "processor seconds" if a.device == "cpu" else "seconds by the clock"
    return [
        f"{Path(a.model).name}, {a.dtype}, {a.device}, {os.environ.get('OMP_NUM_THREADS', 'all')} "
        f"thread(s); LoRA rank 32 on all linear layers, batches of {a.batch} questions, {clock}; "
        "median of the steps, each of which is one batch that every variant took in turn. The "
        "machine was shared with other work.",
        "",
        *lines,
        "",
        "TRL's padding-free rows are made for FlashAttention; here they run with a mask, as ours "
        "do. Its head makes the logits of every position, whatever the loss is on, wherever its "
        "own kernels are not to be had, as on a CPU; `plain full` shows what that costs.",
        "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when done. Made by "
        "`OMP_NUM_THREADS=1 python benchmarks/training.py --write`.",
    ]


def comparisons(a, workers, extra):
    """Lines that hold what was measured against the targets."""

    def line(what, value, spread, target, met):
        return f"| {what} | {value:.2f}{spread} | {target} | {'met' if met else '**missed**'} |"

    def pair(mine, theirs, most_time, added=0.0):
        words = "RCFT with E-steps" if mine == "rcft" else "CFT"
        by, low, high = ratio(workers[mine], workers[theirs], added)
        spread, target = f" ({low:.2f} to {high:.2f})", f"≤ {most_time:g}"
        yield line(f"{words}: time by that of {theirs}", by, spread, target, by <= most_time)
        by = peak(workers[mine]) / peak(workers[theirs])
        yield line(f"{words}: peak memory by that of {theirs}", by, "", "≤ 1", by <= 1)

    if {"cft", "released"} <= workers.keys():
        faster = per_question(a, workers["released"]) / per_question(a, workers["cft"])
        yield line("CFT epoch: times as fast as released", faster, "", "≥ 10", faster >= 10)
        by = peak(workers["cft"]) / peak(workers["released"])
        yield line("CFT: peak memory by that of released", by, "", "≤ 0.25", by <= 0.25)
    for theirs in workers:
        if theirs in TRL or theirs == "plain full":
            if "rcft" in workers:
                yield from pair("rcft", theirs, 1.1, extra)
            if "cft" in workers and theirs != "plain full":
                yield from pair("cft", theirs, 1.0)
    if {"cft", "cft, padded"} <= workers.keys():
        yield from pair("cft", "cft, padded", 1.0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data")
    parser.add_argument("--model", default=str(ROOT / "models/smollm2-135m-instruct"),
                        help=f"a folder, or random weights: {', '.join(SHAPES)}")  # fmt: skip
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="questions of a step")
    parser.add_argument("--laps", type=int, default=8, help="timed steps of each variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write docs/results/training-speed.md")
    return parser


def main():
    a = arguments().parse_args()
    if a.variant:
        work(a)
        return
    lines = report(a, run(a, a.variants))
    print("\n".join(lines))
    if a.write:
        page = ROOT / "docs" / "results" / "training-speed.md"
        page.write_text("\n".join(["# Cost of training", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
