"""What further DPO does to a real model's calibration, and what a base model looks like.

usage: python examples/dpo.py [--data ../shared/data] [--model models/smollm2-135m-instruct]
                              [--beside models/gemma-3-270m] [--output runs/dpo]

Trains a LoRA adapter by DPO on UltraFeedback pairs (one pass, batches of 8, on a CPU about half an
hour), then runs `calibrant collapse` on ARC-Easy test questions, cloze and letter, with the
pre-trained base model of another family beside it. docs/results/dpo.md was made so.
"""

import argparse
import random
from pathlib import Path

from calibrant.cli import run
from calibrant.preferences import load_preferences

REPOSITORY = Path(__file__).parents[1]


def train(model: str, pairs_file: Path, target: Path, arguments: argparse.Namespace) -> None:
    """Train the adapter unless it is there."""
    if (target / "adapter_config.json").exists():
        return
    from peft import LoraConfig
    from transformers import set_seed

    from calibrant.scoring.models import load_model
    from calibrant.training.preference import PreferenceConfig, PreferenceTrainer

    pairs = load_preferences(pairs_file)
    random.Random(arguments.seed).shuffle(pairs)
    network, tokenizer = load_model(model)
    set_seed(arguments.seed)
    trainer = PreferenceTrainer(
        model=network,
        args=PreferenceConfig(
            output_dir=str(target.parent / "checkpoints"),
            beta=arguments.beta,
            learning_rate=arguments.learning_rate,
            max_tokens=arguments.max_tokens,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            logging_steps=5,
            save_strategy="no",
            seed=arguments.seed,
            use_cpu=network.device.type == "cpu",
        ),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
    )
    print(f"{len(trainer.train_dataset)} pairs of at most {arguments.max_tokens} tokens")
    trainer.train()
    trainer.save_model(str(target))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data")
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--beside", default="models/gemma-3-270m")
    parser.add_argument("--output", type=Path, default=Path("runs/dpo"))
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    adapter = arguments.output / "adapter"
    pairs_file = arguments.data / "preferences/ultrafeedback_train.jsonl.gz"
    train(arguments.model, pairs_file, adapter, arguments)
    stages = ["--aligned", str(adapter)]
    if Path(arguments.beside).is_dir():
        stages += ["--aligned", arguments.beside]
    for prompt in ("cloze", "letter"):
        code = run(
            ["collapse", "--base", arguments.model, *stages, "--prompt", prompt,
             "--questions", str(arguments.data / "arc_easy/test.jsonl.gz"),
             "--limit", str(arguments.limit), "--output-dir", str(arguments.output / prompt)]
        )  # fmt: skip
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
