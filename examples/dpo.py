"""What further DPO does to a real model's calibration, and what a base model looks like.

usage: python examples/dpo.py [--data ../shared/data] [--model models/smollm2-135m-instruct]
                              [--beside models/gemma-3-270m] [--output runs/dpo]
                              [--loss dpo catto preference-matching] [--write]

Trains LoRA adapters by DPO on UltraFeedback pairs, one for every β, then runs `calibrant collapse`
on ARC-Easy test questions, cloze, and letter in cyclic orders, with the pre-trained base model of
another family beside it. About an hour of one core at the defaults, which are small; a second call
goes on where a first was stopped. --write puts the tables and figures into docs/results/dpo.md.
Several losses are compared with each other at one β, by cloze alone, and have a block of their own
there: give them an --output of their own.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np
from protocol import device_name

from calibrant.cli import run
from calibrant.diagnosis.collapse import CollapseReport
from calibrant.files import replace_block, write_json, write_text
from calibrant.preferences import load_preferences
from calibrant.report.collapse import collapse_table, letter_table
from calibrant.report.tables import Table, number

REPOSITORY = Path(__file__).parents[1]
MICRO_BATCH = 4  # pairs of a forward pass
NO_BETA = "preference-matching"  # there is none in it
LOSSES = ("dpo", "catto", NO_BETA)
PAGE = REPOSITORY / "docs/results/dpo.md"
TITLES = {
    "cloze": "Cloze: what the models know",
    "letter": "Letters, in all cyclic orders of the options: which place each model takes",
}
# Prompt -> how many questions, and how else they are asked.
ASKED = {"cloze": (300, []), "letter": (60, ["--permutations", "cyclic"])}


def train(target: Path, loss: str, beta: float, arguments: argparse.Namespace) -> None:
    """Train the adapter of one loss and β and note what became of the pairs, unless done."""
    if (target / "training.json").exists():
        return
    from peft import LoraConfig
    from transformers import set_seed

    from calibrant.scoring.local import score_encoded
    from calibrant.scoring.models import load_model
    from calibrant.training.preference import (
        PreferenceConfig,
        PreferenceTrainer,
        encode_preferences,
    )

    pairs = load_preferences(arguments.data / "preferences/ultrafeedback_train.jsonl.gz")
    fresh = load_preferences(arguments.data / "preferences/ultrafeedback_validation.jsonl.gz")
    random.Random(arguments.seed).shuffle(pairs)
    network, tokenizer = load_model(arguments.model, dtype="float32")
    fresh = [
        q for q in encode_preferences(fresh, tokenizer) if q.longest <= arguments.max_tokens
    ]  # pairs that DPO does not see
    before = score_encoded(network, tokenizer, fresh)
    set_seed(arguments.seed)
    trainer = PreferenceTrainer(
        model=network,
        args=PreferenceConfig(
            output_dir=str(target.parent / "checkpoints"),
            loss=loss,
            beta=beta,
            learning_rate=arguments.learning_rate,
            num_train_epochs=arguments.epochs,
            max_tokens=arguments.max_tokens,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=arguments.batch // MICRO_BATCH,
            logging_steps=0.1,
            save_strategy="no",
            seed=arguments.seed,
            use_cpu=network.device.type == "cpu",
        ),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
    )
    print(f"{len(trainer.train_dataset)} pairs", flush=True)
    trainer.train()
    after = score_encoded(trainer.model, tokenizer, fresh)
    margin = (after - before) @ np.array([1.0, -1.0])  # (N,) nats
    trainer.save_model(str(target))
    told = {
        "pairs": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        "fresh_pairs": len(fresh),
        "fresh_margin_rose": float((margin > 0).mean()),
        "fresh_margin": float(margin.mean()),
        "fresh_chosen_change": float((after - before)[:, 0].mean()),
        "loss": loss,
        "beta": beta,
        "device": device_name(network),
        **{k: getattr(arguments, k) for k in ("batch", "learning_rate", "max_tokens", "seed")},
    }
    write_json(target / "training.json", told)


def training_block(found: list[dict]) -> str:
    """Say what training did to the pairs themselves, a line for every loss and β."""
    told = found[0]
    rows = tuple(
        (
            t.get("loss", "dpo"),
            "–" if t.get("loss") == NO_BETA else f"{t['beta']:g}",
            number(t["losses"][0]),
            number(t["losses"][-1]),
            f"{100 * t['fresh_margin_rose']:.0f} %",
            f"{t['fresh_margin']:+.2f}",
            f"{t['fresh_chosen_change']:+.2f}",
        )
        for t in found
    )
    columns = (
        "method",
        "β",
        "loss, first",
        "last",
        "preferred gained",
        "margin, nats",
        "preferred, nats",
    )
    return (
        f"{told['pairs']} pairs of at most {told['max_tokens']} tokens, {told['steps']} steps of "
        f"{told['batch']} pairs, learning rate {told['learning_rate']:g}, LoRA of rank 16, seed "
        f"{told['seed']}. ln 2 = .693 is DPO's loss of one who has learnt nothing. The last three "
        f"columns are of {told['fresh_pairs']} validation pairs not trained on: how often "
        "the preferred answer gained on the other, by how much on average, and what became of its "
        "own log-probability.\n\n" + Table(columns, rows).to_markdown()
    )


def section(prompt: str, folder: Path, picture: Path) -> str:
    """Markdown of one prompt's stages; the figure is copied beside the page."""
    found = json.loads((folder / "collapse.json").read_text(encoding="utf-8"))
    reports = {name: CollapseReport.from_dict(r) for name, r in found["stages"].items()}
    lines = [collapse_table(reports).to_markdown()]
    if prompt == "letter":
        lines.append(letter_table(reports).to_markdown())
    shutil.copy(folder / "collapse.png", picture)
    lines.append(f"![confidence, entropy and scores by stage, {prompt}]({picture.name})")
    return "\n".join(lines)


def write(output: Path, page: Path) -> None:
    """Fill the page's blocks from the run folders there are."""
    text = page.read_text(encoding="utf-8")
    told = [json.loads(file.read_text(encoding="utf-8")) for file in output.glob("*/training.json")]
    told.sort(key=lambda t: (LOSSES.index(t.get("loss", "dpo")), -t["beta"]))
    if len({t.get("loss", "dpo") for t in told}) > 1:
        found = section("cloze", output / "cloze", page.parent / "dpo-losses.png")
        write_text(page, replace_block(text, "losses", f"{training_block(told)}\n\n{found}"))
        return
    text = replace_block(text, "training", training_block(told))
    sections = [
        f"## {title}\n\n" + section(prompt, output / prompt, page.parent / f"dpo-{prompt}.png")
        for prompt, title in TITLES.items()
        if (output / prompt / "collapse.json").exists()
    ]
    write_text(page, replace_block(text, "stages", "\n\n".join(sections)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data")
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--beside", default="models/gemma-3-270m")
    parser.add_argument("--output", type=Path, default=Path("runs/dpo"))
    parser.add_argument("--loss", nargs="+", default=["dpo"], choices=LOSSES)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.1])
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch", type=int, default=8, help=f"a multiple of {MICRO_BATCH}")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="into docs/results/dpo.md")
    arguments = parser.parse_args()
    stages = []
    if len(arguments.loss) > 1 < len(arguments.beta):
        parser.error("several losses are compared at one --beta")
    for loss in arguments.loss:
        for beta in arguments.beta:
            named = loss if loss == NO_BETA else f"{loss}-{beta:g}"
            adapter = arguments.output / named
            train(adapter, loss, beta, arguments)
            stages += ["--aligned", str(adapter)]
    asked = {"cloze": ASKED["cloze"]} if len(arguments.loss) > 1 else ASKED
    if Path(arguments.beside).is_dir() and len(arguments.loss) == 1:
        stages += ["--aligned", arguments.beside]
    for prompt, (limit, how) in asked.items():
        code = run(
            ["collapse", "--base", arguments.model, *stages, "--prompt", prompt, *how,
             "--dtype", "float32",
             "--questions", str(arguments.data / "arc_easy/test.jsonl.gz"),
             "--limit", str(limit), "--output-dir", str(arguments.output / prompt)]
        )  # fmt: skip
        if code:
            return code
    if arguments.write:
        write(arguments.output, PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
