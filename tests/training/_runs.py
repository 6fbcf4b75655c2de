"""Short trainings whose result must not depend on how they are run; by test or under torchrun."""

import contextlib
import tempfile
from unittest.mock import patch

import torch
from peft import LoraConfig

from calibrant.scoring import local
from calibrant.scoring.processes import Processes
from calibrant.training import CalibrationConfig, CalibrationTrainer
from helpers import make_model, make_questions

# 21 questions: the last of each epoch's three steps has 5, which two processes cannot share evenly.
RUNS = {
    "cft-letter": {"method": "cft", "prompt": "letter"},
    "rcft-letter": {"method": "rcft", "prompt": "letter", "lora": False},
    "rcft-cloze": {"method": "rcft", "prompt": "cloze", "e_step_share": 1.0},
}
QUESTIONS, STEPS = 21, 6
HELD_OUT = make_questions(17, seed=5, prefix="c")


def make(tokenizer, *, model=None, lora=True, train=None, calibration=HELD_OUT, **settings):
    torch.manual_seed(7)  # of the adapter's first weights
    settings = {
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 1,
        "output_dir": tempfile.gettempdir() + "/runs",
    } | settings
    return CalibrationTrainer(
        model=make_model() if model is None else model,
        args=CalibrationConfig(**settings),
        train_dataset=make_questions(QUESTIONS) if train is None else train,
        calibration_dataset=calibration,
        eval_dataset=make_questions(19, seed=6, prefix="e"),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )


@contextlib.contextmanager
def counted():
    """Numbers of questions of the scoring batches made within, which are small."""
    sizes, run = [], local._Forward._run

    def noted(self, rows):
        sizes.append(len(rows))
        return run(self, rows)

    small = patch.object(local, "automatic_batch_tokens", lambda *_: 128)
    with small, patch.object(local._Forward, "_run", noted):
        yield sizes


def trained(tokenizer, name, per_device, accumulation=1, **settings):
    """Losses, weights, E-step statistics of every refresh, evaluation, questions scored for it."""
    trainer = make(
        tokenizer,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        **RUNS[name] | settings,
    )
    refreshes, e_step = [], trainer.e_step

    def noted():
        e_step()
        refreshes.append(trainer._e_state().statistics)

    trainer.e_step = noted
    with counted():
        trainer.train()
    with counted() as evaluated:
        evaluation = trainer.evaluate()
    return {
        "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        "weights": {
            n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad
        },
        "refreshes": refreshes,
        "evaluation": evaluation,
        "evaluated": sum(evaluated),
    }


def by_hand(tokenizer, rank=0, world=1, shard=None):
    """Three steps of RCFT without `train`, on weights that may be sharded."""
    model = make_model()
    trainer = make(
        tokenizer, lora=False, per_device_train_batch_size=8 // world, **RUNS["rcft-cloze"]
    )
    if shard is not None:
        shard(model)
        together = property(lambda self: Processes(rank, world, lockstep=True))
        trainer.__class__ = type("Sharded", (CalibrationTrainer,), {"processes": together})
    trainer.model = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, forwards = [], 0
    for step in range(3):
        with counted() as sizes:
            trainer.e_step()
        forwards += len(sizes)
        own = trainer.train_dataset[5 * step : 5 * step + 8][rank * 8 // world :][: 8 // world]
        batches, counts = trainer.get_batch_samples(
            iter([trainer.data_collator(own)]), 1, torch.device("cpu")
        )
        loss = trainer.compute_loss(model, batches[0], num_items_in_batch=counts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(trainer.accelerator.reduce(loss.detach(), "mean").item())
    weights = {
        n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for n, p in model.named_parameters()
    }
    return {
        "losses": losses,
        "weights": weights,
        "statistics": trainer._e_state().statistics,
        "forwards": forwards,
    }
