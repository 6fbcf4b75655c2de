"""Models from wherever they are: GGUF, 4-bit, adapters, spread over devices, with own code."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.errors import InputError
from calibrant.scoring.local import score
from calibrant.scoring.models import load_model
from helpers import make_model, make_questions

SHAPE = {"hidden_size": 64, "intermediate_size": 128}  # 4-bit blocks are of 64 weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "model"
    make_model(**SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, folder):
    """A LoRA adapter on the model, with matrices that change its answers."""
    from peft import LoraConfig, get_peft_model

    path = tmp_path_factory.mktemp("models") / "adapter"
    base = load_model(str(folder), device="cpu")[0]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def questions():
    return make_questions(12)


def table(model, tokenizer, questions, prompt="cloze"):
    return score(model, tokenizer, questions, prompt=prompt, show_progress=False)


def answers(questions, *arguments, **options):
    return table(*load_model(*map(str, arguments), device="cpu", **options), questions)


def gap(a, b):
    finite = np.isfinite(b.logprobs)
    assert (np.isfinite(a.logprobs) == finite).all()
    return np.abs(a.logprobs[finite] - b.logprobs[finite]).max()


def same_bits(a, b):
    return a.logprobs.tobytes() == b.logprobs.tobytes()


# -- 4-bit --------------------------------------------------------------------------------------

# The 16 values of normal float (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
NF4 = np.array(
    [-1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)  # fmt: skip


def rounded(weight):
    """Each block of 64 weights over its largest, to the nearest of the 16 values."""
    blocks = weight.detach().double().numpy().reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / largest)[..., None] - NF4).argmin(axis=-1)
    return torch.tensor((NF4[nearest] * largest).reshape(weight.shape), dtype=torch.float32)


def test_nf4_is_the_model_with_its_linear_layers_rounded_to_nf4(folder, tokenizer, questions):
    expected = make_model(**SHAPE)
    for name, module in expected.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = rounded(module.weight)
    found = answers(questions, folder, quantize="nf4")
    assert gap(found, table(expected, tokenizer, questions)) < 2e-3
    plain = answers(questions, folder)
    assert gap(found, plain) > 0.1  # it did round
    assert found.provenance["quantization"] == "nf4"
    assert plain.provenance["quantization"] is None


def test_an_adapter_stays_on_top_of_4_bit_weights(folder, adapter, questions):
    model, tokenizer = load_model(str(adapter), device="cpu", quantize="nf4")
    with_it = table(model, tokenizer, questions)
    with model.disable_adapter():
        without = table(model, tokenizer, questions)
    assert same_bits(without, answers(questions, folder, quantize="nf4"))
    assert not same_bits(with_it, without)


def test_without_bitsandbytes_4_bit_is_refused(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(InputError, match=r"needs bitsandbytes; install it with pip install"):
        load_model(str(folder), device="cpu", quantize="nf4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "quantize 'int3', expected one of None, nf4"),
        ({"device_map": "sideways"}, "device_map 'sideways', expected one of None, auto"),
        ({"dtype": "float8"}, "dtype 'float8', expected one of auto"),
    ],
)
def test_unknown_choices_are_refused(folder, options, message):
    with pytest.raises(InputError, match=message):
        load_model(str(folder), **options)


def test_spread_over_all_devices_it_is_the_same_model(folder, questions):
    assert same_bits(answers(questions, folder, device_map="auto"), answers(questions, folder))


# -- adapters -----------------------------------------------------------------------------------


def test_disabled_an_adapter_gives_the_base_models_answers_bit_for_bit(folder, adapter, questions):
    """Before and after in one load, the way PEFT has it."""
    from peft import PeftModel

    base, tokenizer = load_model(str(adapter), device="cpu", adapter=False)
    before = table(base, tokenizer, questions)
    assert same_bits(before, answers(questions, folder))
    model = PeftModel.from_pretrained(base, str(adapter))
    after = table(model, tokenizer, questions)
    with model.disable_adapter():
        disabled = table(model, tokenizer, questions)
    assert same_bits(disabled, before)
    assert disabled.provenance["adapter"] is None
    assert after.provenance["adapter"] == ["default"]
    assert gap(after, answers(questions, adapter)) < 1e-4
    assert gap(after, before) > 0.1


def test_the_command_compares_an_adapter_with_its_base(
    folder, adapter, questions, tmp_path, capsys
):
    path = tmp_path / "q.jsonl"
    rows = [
        {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer}
        for q in questions
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        "evaluate", str(adapter), "--questions", str(path), "--prompt", "cloze",
        "--device", "cpu", "--compare-base", "--output-dir",
    ]  # fmt: skip
    assert run([*arguments, str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "before" in text
    assert "after" in text
    before = AnswerTable.load(tmp_path / "run" / "base" / "answers.parquet")
    after = AnswerTable.load(tmp_path / "run" / "answers.parquet")
    assert same_bits(before, answers(questions, folder))
    assert same_bits(after, answers(questions, adapter))
    assert "conf-ECE" in (tmp_path / "run" / "report.md").read_text()
    (tmp_path / "run" / "answers.parquet").unlink()  # stopped between the two
    assert run([*arguments, str(tmp_path / "run")]) == 0
    assert same_bits(AnswerTable.load(tmp_path / "run" / "answers.parquet"), after)
    assert run(["compare", str(tmp_path / "run" / "base"), str(tmp_path / "run")]) == 0
    arguments[1] = str(folder)
    assert run([*arguments, str(tmp_path / "other")]) == 1
    assert "is no PEFT adapter" in capsys.readouterr().err


# -- GGUF ---------------------------------------------------------------------------------------


def write_gguf(path, model, tokenizer):
    """A Llama as llama.cpp's converter writes it, in float32, with a byte-level BPE vocabulary."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in tokenizer.all_special_tokens else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.layers": "blk",
    }  # fmt: skip
    for name, weight in model.state_dict().items():
        data = weight.numpy()
        for heads, kind in (("num_attention_heads", "q_"), ("num_key_value_heads", "k_")):
            if f"{kind}proj" in name:  # llama.cpp's rotary layout interleaves the two halves
                n = getattr(config, heads)
                data = data.reshape(n, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", make_model(**SHAPE), tokenizer)
    return folder


@pytest.mark.parametrize("how", ["folder", "named", "file"])
def test_a_gguf_file_is_the_model_it_was_made_of(gguf_folder, folder, questions, how):
    where = gguf_folder / "tiny.gguf" if how == "file" else gguf_folder
    found = answers(questions, where, gguf_file="tiny.gguf" if how == "named" else None)
    assert gap(found, answers(questions, folder)) < 1e-4


def test_which_of_several_gguf_files_must_be_said(gguf_folder, folder, tmp_path, questions):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(gguf_folder / "tiny.gguf", tmp_path / name)
    with pytest.raises(InputError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); expected one"):
        load_model(str(tmp_path), device="cpu")
    with pytest.raises(InputError, match="cannot be quantised again"):
        load_model(str(tmp_path), device="cpu", gguf_file="a.gguf", quantize="nf4")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # weights of its own come first
    assert same_bits(answers(questions, tmp_path), answers(questions, folder))


# -- code that comes with a model ---------------------------------------------------------------


def test_a_models_own_code_runs_only_when_asked_for(folder, tmp_path, questions):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_calibrant_test'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((own / "config.json").read_text())
    config["model_type"] = "own_calibrant_test"
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel",
    }  # fmt: skip
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model(str(own), device="cpu")
    found = answers(questions, own, trust_remote_code=True)
    assert gap(found, answers(questions, folder)) < 1e-5
