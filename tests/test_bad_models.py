"""Models, adapters and tokenizers that are damaged or not what they should be: one message each."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from calibrant.cli import run
from calibrant.scoring.models import load_model
from helpers import make_model

GOOD = '{"question": "Which is red?", "choices": ["red", "blue"], "answer": 0}\n'


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


def write(name, content):
    """Put a file into the folder."""

    def change(folder):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def set_(name, **fields):
    """Change fields of a JSON file."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))

    return change


def cut(name, share=0.5):
    def change(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return change


def drop_tensor(folder):
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def only_gguf(folder):
    remove("model.safetensors")(folder)
    (folder / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")


MODELS = {
    "no folder": (shutil.rmtree, "there is no such file or folder; expected a Hub id"),
    "no config": (remove("config.json"), "cannot be loaded"),
    "config is no JSON": (write("config.json", "{"), "cannot be loaded"),
    "config is a list": (write("config.json", "[]"), "cannot be loaded"),
    "config is no text": (write("config.json", b"\xff\xfe"), "cannot be loaded"),
    "unknown architecture": (set_("config.json", model_type="abacus"), "abacus"),
    "not a causal model": (
        set_("config.json", model_type="vit", architectures=["ViTModel"]),
        "cannot be loaded",
    ),
    "wrong width": (set_("config.json", hidden_size=64, head_dim=16), "cannot be loaded"),
    "impossible width": (set_("config.json", hidden_size="wide"), "cannot be loaded"),
    "a layer more": (
        set_("config.json", num_hidden_layers=3),
        "lacks 9 of its weights (first: model.layers.2.",
    ),
    "a weight missing": (drop_tensor, "lacks 1 of its weights (first: model.layers.1.mlp.up_proj"),
    "no weights": (remove("model.safetensors"), "cannot be loaded"),
    "weights cut off": (cut("model.safetensors"), "cannot be loaded"),
    "weights empty": (write("model.safetensors", ""), "cannot be loaded"),
    "GGUF cut off": (only_gguf, "cannot be loaded"),
    "two GGUF files": (
        lambda folder: [only_gguf(folder), write("n.gguf", "GGUF")(folder)],
        "holds 2 GGUF files (m.gguf, n.gguf); expected one named with --gguf-file",
    ),
    "no tokenizer": (
        lambda folder: [remove("tokenizer.json")(folder), remove("tokenizer_config.json")(folder)],
        "tokenizer of",
    ),
    "tokenizer is no JSON": (write("tokenizer.json", "{"), "tokenizer of"),
    "tokenizer cut off": (cut("tokenizer.json"), "tokenizer of"),
    "tokenizer of another kind": (write("tokenizer.json", '{"version": "9"}'), "tokenizer of"),
}
ADAPTERS = {
    "config is no JSON": (
        write("adapter_config.json", "{"),
        "adapter_config.json: cannot be read as JSON",
    ),
    "config is a list": (write("adapter_config.json", "[]"), "names no base model"),
    "no base model named": (
        set_("adapter_config.json", base_model_name_or_path=None),
        "adapter_config.json: names no base model; expected the JSON field",
    ),
    "base model not there": (
        set_("adapter_config.json", base_model_name_or_path="no/such-model"),
        "cannot be loaded",
    ),
    "no weights": (
        remove("adapter_model.safetensors"),
        "holds no adapter_model.safetensors; expected an adapter saved as safetensors",
    ),
    "weights cut off": (cut("adapter_model.safetensors"), "cannot be loaded"),
    "wrong rank": (set_("adapter_config.json", r=3), "cannot be loaded"),
    "unknown kind": (set_("adapter_config.json", peft_type="MAGIC"), "cannot be loaded"),
    "no such layer": (
        set_("adapter_config.json", target_modules=["abacus"]),
        "cannot be loaded",
    ),
}
CASES = [("model", *case) for case in MODELS.items()] + [
    ("adapter", *case) for case in ADAPTERS.items()
]


@pytest.mark.parametrize(
    ("kind", "name", "case"), CASES, ids=[f"{kind}: {name}" for kind, name, _ in CASES]
)
def test_bad_model(plain, kind, name, case, tmp_path, monkeypatch, capsys):
    change, message = case
    shutil.copytree(plain / kind, tmp_path / "m")
    change(tmp_path / "m")
    (tmp_path / "q.jsonl").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", "./m", "--questions", "q.jsonl", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.*"))
