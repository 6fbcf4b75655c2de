"""SmolLM2-135M-Instruct on real questions; skipped where the model or the data are absent."""

import numpy as np
import pytest
import torch

import calibrant
from calibrant import metrics
from calibrant.prompts import LETTERS, Prompt, context
from calibrant.scoring.local import score
from calibrant.scoring.models import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(smollm2):
    return load_model(str(smollm2), device="cpu")


@pytest.fixture(scope="module")
def arc_easy(data_folder):
    return calibrant.load_questions(data_folder / "arc_easy/test.jsonl.gz")


def summary(table):
    probs, labels = table.probs(), table.labels
    return {
        "accuracy": metrics.accuracy(probs, labels, n_options=table.n_options),
        "confidence": table.confidence.mean(),
        "conf_ece": metrics.conf_ece(probs, labels, n_options=table.n_options),
    }


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # Measured independently, question by question, before this project was begun.
        (Prompt("letter", "single"), {"accuracy": 0.245, "confidence": 0.776, "conf_ece": 0.531}),
        ("cloze", {"accuracy": 0.485, "confidence": 0.597, "conf_ece": 0.131}),
    ],
)
def test_first_200_arc_easy_questions_measure_as_known(network, arc_easy, prompt, expected):
    table = score(*network, arc_easy[:200], prompt=prompt, show_progress=False)
    found = summary(table)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.011), name
    if prompt != "cloze":
        assert (table.predictions == 0).all(), "one letter for every question"


@pytest.mark.parametrize(
    "prompt",
    [Prompt("letter", "single"), Prompt("chat-letter", "single"), Prompt("cloze")],
    ids=str,
)
def test_scores_equal_plain_transformers_on_real_text(network, arc_easy, prompt):
    model, tokenizer = network
    questions = arc_easy.sample(8, seed=1)
    table = score(model, tokenizer, questions, prompt=prompt, show_progress=False)
    blank = "" if prompt.format == "chat-letter" else " "
    for i, q in enumerate(questions):
        text = context(q, prompt, tokenizer)
        options = LETTERS[: len(q.choices)] if prompt.is_letter else q.choices
        start = len(tokenizer(text)["input_ids"])
        for k, option in enumerate(options):
            ids = tokenizer(text + blank + option, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            tokens = ids[0, start:]
            mean = logprobs[start - 1 : -1].gather(1, tokens[:, None]).mean().item()
            assert table.logprobs[i, k] == pytest.approx(mean, abs=2e-4)


def test_cft_improves_held_out_questions(network, data_folder, arc_easy, smollm2, tmp_path):
    from peft import LoraConfig

    from calibrant.questions import drop_overlap
    from calibrant.training import CalibrationConfig, CalibrationTrainer

    test = arc_easy.sample(150, seed=2)
    train, _ = drop_overlap(
        calibrant.load_questions(data_folder / "arc_easy/train.jsonl.gz", limit=200), arc_easy
    )
    model, tokenizer = load_model(str(smollm2), device="cpu")
    trainer = CalibrationTrainer(
        model=model,
        args=CalibrationConfig(
            output_dir=str(tmp_path), method="cft", prompt="cloze", per_device_train_batch_size=8,
            save_strategy="no", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
    )  # fmt: skip
    before = trainer.score(test)
    trainer.train()
    after = trainer.score(test)

    def nll(table):
        return -np.log(table.probs()[np.arange(len(table)), table.labels]).mean()

    assert nll(after) < nll(before) - 0.1
    assert after.correct.mean() > before.correct.mean()
