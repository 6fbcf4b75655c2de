"""Runs that are killed with SIGKILL, beside one that is not: a program of its own, see test_kills.

    python killed.py trainer|restore FOLDER SEED

Every run is a child forked here, so that torch is imported once; this process itself starts no
thread. What a child is doing it says in shared memory. Prints JSON: what was going on at each kill.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoTokenizer

import calibrant.cli.restore  # noqa: F401  before the forks, each of which would import it
from calibrant.cli import run as command_line
from calibrant.training import CalibrationConfig, CalibrationTrainer
from calibrant.training.checkpoints import last_whole
from helpers import make_model, make_questions

TRAINING, SAVING, E_STEP = range(3)
NAMES = ("training", "saving", "E-step")
now = mmap.mmap(-1, 16)  # byte 0: what is going on; bytes 1 + p: how often p was begun, modulo 256


def begin(phase):
    now[0] = phase
    now[1 + phase] = (now[1 + phase] + 1) % 256


class Watched(CalibrationTrainer):
    """Says what it is doing."""

    def _save_checkpoint(self, *args):
        begin(SAVING)
        super()._save_checkpoint(*args)
        begin(TRAINING)

    def e_step(self):
        begin(E_STEP)
        super().e_step()
        begin(TRAINING)

    def training_step(self, *args, **kwargs):
        begin(TRAINING)
        return super().training_step(*args, **kwargs)


def trainer(folder, output):
    """Train in a folder, from its last whole checkpoint if it has one."""
    run = Watched(
        model=make_model(),
        args=CalibrationConfig(
            output_dir=str(output / "checkpoints"),
            method="rcft",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=50,
            learning_rate=3e-3,
            save_strategy="steps",
            save_steps=3,
            save_total_limit=1,
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
        ),
        train_dataset=make_questions(30),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1),
    )
    last = last_whole(output / "checkpoints")
    run.train(resume_from_checkpoint=None if last is None else str(last))
    run.save_model(str(output / "adapter"))
    run._save_checkpoint(run.model, None)  # optimiser, scheduler, E-step, generators at the end


def restore(folder, output):
    """Run ``calibrant restore``; the same command goes on with what it finds."""
    questions = [str(folder / f"{name}.jsonl.gz") for name in ("train", "test")]
    begin(TRAINING)
    code = command_line([
        "restore", str(folder / "model"), "--train", questions[0], "--eval", questions[1],
        "--method", "rcft", "--lora-rank", "4", "--batch-size", "4", "--epochs", "10",
        "--learning-rate", "0.003", "--device", "cpu", "--output-dir", str(output),
    ])  # fmt: skip
    if code:
        raise SystemExit(code)


def fork(work, folder, output):
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        work(folder, output)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(child):
    """Exit code of a child, None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return None if not found else os.waitstatus_to_exitcode(status)


def wait_for(child, phase, times):
    """Until the child has begun a phase so many times from now on."""
    left, last = times, now[1 + phase]
    while left > 0:
        if (code := ended(child)) is not None:
            raise SystemExit(f"the run ended ({code}) before it could be killed")
        if now[1 + phase] != last:
            left, last = left - 1, now[1 + phase]
        time.sleep(1e-4)


def kill_in(child, phase, rng):
    """Kill at a random moment within a phase."""
    while True:
        wait_for(child, phase, rng.randint(1, 2))
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGSTOP)  # look before it is too late
        if now[0] == phase:
            os.kill(child, signal.SIGKILL)
            return
        os.kill(child, signal.SIGCONT)


def main(kind, folder, seed):
    folder, rng = Path(folder), random.Random(int(seed))
    work = {"trainer": trainer, "restore": restore}[kind]
    start = time.perf_counter()
    child = fork(work, folder, folder / "undisturbed")
    while (code := ended(child)) is None:
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(code)
    killed = []
    for phase in [TRAINING] * 4 + [SAVING] * 3 + [E_STEP] * 3 if kind == "trainer" else [None] * 3:
        child = fork(work, folder, folder / "killed")
        if phase is None:
            time.sleep(rng.uniform(0.1, 0.5) * seconds)
            if ended(child) is not None:  # the machine is faster than it was: there is no more
                break
            os.kill(child, signal.SIGKILL)
        else:
            kill_in(child, phase, rng)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            raise SystemExit(f"the run ended with {code}, expected to be killed")
        killed.append(NAMES[phase] if phase is not None else "restore")
    child = fork(work, folder, folder / "killed")
    while (code := ended(child)) is None:
        time.sleep(0.01)
    print(json.dumps(killed))
    raise SystemExit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
