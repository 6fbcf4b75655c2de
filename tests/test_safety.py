"""Nothing that is loaded can run code, and nothing is sent anywhere."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import calibrant
from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.foreign import read_table
from calibrant.questions import load_questions
from calibrant.scoring.models import load_model, load_tokenizer, on_top
from helpers import make_model, restore_arguments


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (Path(self.file),))


@pytest.fixture
def owned(tmp_path):
    """File that is there if code was run."""
    return tmp_path / "owned"


def test_the_payload_is_real(owned):
    pickle.loads(pickle.dumps(Payload(owned)))
    assert owned.exists()


def poisoned_weights(path, owned):
    """A file as torch.save makes it, whose pickle runs code."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(owned), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def test_poisoned_weights_run_code_where_pickles_are_read(tmp_path, owned):
    """The attack works on torch.load as it used to be, so that refusing it is worth something."""
    import torch

    poisoned_weights(tmp_path / "x.bin", owned)
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert owned.exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokenizer):
    """A tiny model's folder, and an adapter of it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("plain")
    make_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model, _ = load_model(str(folder / "model"), device="cpu")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_model_with_pickled_weights_is_refused(plain, tmp_path, owned, name):
    """Also where the pickle goes by the name of the safe format."""
    copy = tmp_path / "model"
    shutil.copytree(plain / "model", copy)
    (copy / "model.safetensors").unlink()
    poisoned_weights(copy / name, owned)
    with pytest.raises(InputError, match=r"model '.*' cannot be loaded"):
        load_model(str(copy), device="cpu")
    assert not owned.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_with_pickled_weights_is_refused(plain, tmp_path, owned, name):
    copy = tmp_path / "adapter"
    shutil.copytree(plain / "adapter", copy)
    (copy / "adapter_model.safetensors").unlink()
    poisoned_weights(copy / name, owned)
    with pytest.raises(InputError, match="adapter"):
        load_model(str(copy), device="cpu")
    assert not owned.exists()


def test_code_that_comes_with_a_model_is_not_run(plain, tmp_path, owned):
    copy = tmp_path / "model"
    shutil.copytree(plain / "model", copy)
    code = f"from pathlib import Path\nPath({str(owned)!r}).touch()\n"
    (copy / "evil.py").write_text(code + "class Evil: pass\n")
    for name, kind in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((copy / name).read_text())
        content |= {"model_type": "evil", "auto_map": {kind: "evil.Evil"}}
        content["auto_map"]["AutoModelForCausalLM"] = "evil.Evil"
        (copy / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match="trust"):
        load_model(str(copy), device="cpu")
    assert not owned.exists()


def test_a_chat_template_cannot_reach_the_system(tmp_path, owned, tokenizer):
    """It is a program of the model's author: transformers runs it in a sandbox."""
    copy = tmp_path / "tokenizer"
    tokenizer.save_pretrained(copy)
    attack = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ 'touch {owned}' }}}}"
    loaded = load_tokenizer(str(copy))
    loaded.chat_template = attack
    with pytest.raises(Exception, match="unsafe"):
        loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def parquet_with_a_pickle(path, owned, columns):
    """Columns beside which stand a pickle as an extension type's parameter and as metadata."""
    poison = pickle.dumps(Payload(owned))
    fields = [
        pa.field(
            name,
            column.type,
            metadata={
                b"ARROW:extension:name": b"arrow.py_extension_type",
                b"ARROW:extension:metadata": poison,
            },
        )
        for name, column in columns.items()
    ]
    schema = pa.schema(fields, metadata={b"pandas": poison, b"calibrant-extra": poison})
    pq.write_table(pa.table(list(columns.values()), schema=schema), path)


def test_a_parquet_file_cannot_run_code(tmp_path, owned):
    path = tmp_path / "p.parquet"
    table = {"label": pa.array([0, 1]), "p_0": pa.array([0.5, 0.5]), "p_1": pa.array([0.5, 0.5])}
    parquet_with_a_pickle(path, owned, table)
    with contextlib.suppress(InputError):  # refused is as good
        assert read_table(path).labels.tolist() == [0, 1]
    questions = {
        "question": pa.array(["x"]),
        "choices": pa.array([["a", "b"]]),
        "answer": pa.array([0]),
    }
    parquet_with_a_pickle(path, owned, questions)
    with contextlib.suppress(InputError):
        assert load_questions(path)[0].choices == ("a", "b")
    with pytest.raises(InputError, match="not an answer table"):
        AnswerTable.load(path)
    assert not owned.exists()


def test_a_calibrator_or_config_cannot_run_code(tmp_path, owned):
    for name in ("calibrator.json", "restored.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(owned)))
    with pytest.raises(InputError, match="cannot be read as JSON"):
        calibrant.posthoc.load(tmp_path / "calibrator.json")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        calibrant.load(tmp_path)
    assert not owned.exists()


def test_nothing_of_ours_reads_pickles():
    """No loader that could, anywhere in the package."""
    words = ("import pickle", "pickle.load", "torch.load(", "np.load(", "yaml.load(", " exec(")
    source = Path(calibrant.__file__).parent
    for file in source.rglob("*.py"):
        text = file.read_text()
        found = [word for word in words if word in text]
        assert not found, (file, found)


def test_an_adapter_of_another_model_is_one_message(plain, tmp_path):
    other = make_model(hidden_size=24, intermediate_size=32)
    with pytest.raises(InputError, match=r"adapter '.*' cannot be loaded: .*size mismatch"):
        on_top(other, str(plain / "adapter"))


# Every way out, closed: whoever looks up a name or connects leaves a line, and fails.
NO_NETWORK = """
import os, socket
def refuse(*arguments, **options):
    with open(os.environ["CALLS"], "a") as file:
        file.write(repr(arguments) + "\\n")
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
"""


@pytest.fixture
def watched(tmp_path):
    """Environment in which every attempt to reach a network fails, and leaves a line in a file."""
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    calls = tmp_path / "calls"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment["CALLS"] = str(calls)
    attempt = "import socket; socket.create_connection(('localhost', 1))"
    assert subprocess.run([sys.executable, "-c", attempt], env=environment, check=False).returncode
    assert calls.exists(), "the trap does not work"
    calls.unlink()
    return environment, calls


def test_nothing_is_sent_anywhere(watched, world, tmp_path):
    """Every command on a local model, offline mode not set: no look-up, no connection."""
    environment, calls = watched
    methods = ("temperature", "cft", "rcft")
    answers = [f"restored/{m}/answers/world-test.parquet" for m in ("before", "cft")]
    tuned = "restored/cft/answers/train.parquet"
    commands = [
        restore_arguments(world, "restored", *(w for m in methods for w in ("--method", m))),
        restore_arguments(world, "auto", "--fine-tune", "never"),
        ["evaluate", world["model"], "--questions", world["test"], "--prompt", "cloze"],
        ["predict", "restored/cft", "--questions", world["test"], "--output", "p.csv"],
        ["export", "restored/cft", "exported"],
        ["compare", "restored", "--output-dir", "compared"],
        ["diagnose", "--train", tuned, "--test", answers[1], "--output-dir", "diagnosed"],
        ["collapse", "--base", answers[0], "--aligned", answers[1], "--output-dir", "stages"],
        ["plan", "--tolerance", ".1"],
    ]  # fmt: skip
    code = "import sys\nfrom calibrant.cli import run\n"
    code += "".join(f"assert run({command!r}) == 0\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not calls.exists(), calls.read_text()
