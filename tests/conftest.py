"""A tiny model, a tokenizer trained here, questions and real data: nothing is downloaded."""

import gc
import os
from pathlib import Path

import pytest
from filelock import FileLock

from helpers import make_model, make_questions, restored_arguments, write_questions

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).parents[1]

gc.disable()  # until all modules are in: there is no garbage, only more and more to look through


def pytest_collection_finish():
    """Leave what was imported, most of a million objects, out of every later collection.

    Every training makes one (by accelerate), which took longer than many a training here.
    """
    gc.freeze()
    gc.enable()


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


def _made_once(tmp_path_factory, name, make):
    """Folder that the first of pytest-xdist's workers to ask for it makes, for all of them."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with FileLock(base / f"{name}.lock"):
        if not (base / name).exists():
            make(base / f"{name}-draft")
            (base / f"{name}-draft").rename(base / name)
    return base / name


@pytest.fixture(scope="session")
def world(tmp_path_factory, tokenizer):
    """A model folder, training and test questions."""

    def make(folder):
        make_model().save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        train = list(make_questions(60, seed=1))
        test = list(make_questions(40, seed=2, prefix="t"))
        other = make_questions(30, seed=3, prefix="o", k_min=3, k_max=9)
        write_questions(folder / "train.jsonl.gz", train + test[:5])
        write_questions(folder / "test.jsonl.gz", test)
        write_questions(folder / "other.jsonl.gz", other)

    folder = _made_once(tmp_path_factory, "world", make)
    files = {name: str(folder / f"{name}.jsonl.gz") for name in ("train", "test", "other")}
    return {"model": str(folder / "model"), **files}


@pytest.fixture(scope="session")
def restored(world, tmp_path_factory):
    from calibrant.cli import run

    def make(folder):
        assert run(restored_arguments(world, folder)) == 0

    return _made_once(tmp_path_factory, "restored", make)


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
