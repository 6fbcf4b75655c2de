"""A tiny model, a tokenizer trained here, questions and real data: nothing is downloaded."""

import os
from pathlib import Path

import pytest

from helpers import ALL_METHODS, make_model, make_questions, restore_arguments, write_questions

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).parents[1]

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE trained on the made-up questions: blanks belong to the next token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from calibrant.prompts import LETTERS, context

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    texts = [context(q, "letter") for q in make_questions(200, k_min=10, k_max=10)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    letters = [f"Answer: {letter}" for letter in LETTERS] * 100
    inner.train_from_iterator(texts + letters, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture
def model():
    """A fresh tiny Llama."""
    return make_model()


@pytest.fixture(scope="session")
def world(tmp_path_factory, tokenizer):
    """A model folder, training and test questions."""
    folder = tmp_path_factory.mktemp("world")
    make_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    train = list(make_questions(60, seed=1))
    test = list(make_questions(40, seed=2, prefix="t"))
    return {
        "model": str(folder / "model"),
        "train": write_questions(folder / "train.jsonl.gz", train + test[:5]),
        "test": write_questions(folder / "test.jsonl.gz", test),
        "other": write_questions(
            folder / "other.jsonl.gz", make_questions(30, seed=3, prefix="o", k_min=3, k_max=9)
        ),
    }


@pytest.fixture(scope="session")
def restored(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "restore"
    from calibrant.cli import run

    assert run(restore_arguments(world, output, *ALL_METHODS)) == 0
    return output


def _folder(variable, *candidates):
    named = [Path(os.environ[variable])] if variable in os.environ else []
    return next((p for p in (*named, *candidates) if p.is_dir()), None)


@pytest.fixture(scope="session")
def data_folder():
    """Real questions, laid beside the repository here; tests that need them skip without."""
    folder = _folder("CALIBRANT_DATA", REPOSITORY / "../shared/data", REPOSITORY / "data")
    if folder is None:
        pytest.skip("real questions are absent (../shared/data, or set CALIBRANT_DATA)")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """Folder of SmolLM2-135M-Instruct; tests that need it skip without."""
    name = "smollm2-135m-instruct"
    folder = _folder("CALIBRANT_SMOLLM2", REPOSITORY / "models" / name)
    if folder is None:
        pytest.skip("SmolLM2-135M-Instruct is absent (make model, or set CALIBRANT_SMOLLM2)")
    return folder
