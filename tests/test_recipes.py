"""Every recipe parses, says what it takes, and trains a tiny model of its architecture."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from calibrant.cli.restore import command
from calibrant.prompts import Prompt, encode
from calibrant.restore import RestoreSettings
from calibrant.training import METHODS as FINE_TUNING
from calibrant.training import CalibrationTrainer
from calibrant.training.tuning import adapter_config, training_arguments, validation_split
from helpers import make_model, make_questions

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

# The families of chat templates, in the words of the models' own, shortened to one turn of each.
TEMPLATES = {
    "tulu": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "olmo": (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
        "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
        "<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    None: None,  # Vicuna's tokenizer has none
}
FAMILIES = {
    "allenai/Llama-3.1-Tulu-3-8B-DPO": ("llama", "tulu"),
    "lmsys/vicuna-7b-v1.5": ("llama", None),
    "allenai/OLMo-2-1124-7B-DPO": ("olmo2", "olmo"),
    "princeton-nlp/Mistral-7B-Instruct-DPO": ("mistral", "mistral"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", "chatml"),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", "chatml"),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", "chatml"),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", "chatml"),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", "chatml"),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", "chatml"),
    "google/gemma-3-270m-it": ("gemma3", "gemma"),
    "google/gemma-3-1b-it": ("gemma3", "gemma"),
}


@pytest.fixture(scope="module")
def scaling():
    import sys

    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def settings_of(recipe):
    """As ``calibrant restore --config`` has them."""
    options = command.make_context("restore", ["--config", str(recipe)]).params
    known = {field.name for field in fields(RestoreSettings)}
    return RestoreSettings(**{name: options[name] for name in known & set(options)})


def test_there_is_a_recipe_for_each_model_and_for_no_other():
    assert [yaml.safe_load(r.read_text())["model"] for r in RECIPES] == sorted(
        FAMILIES, key=lambda name: next(
            r.name for r in RECIPES if yaml.safe_load(r.read_text())["model"] == name
        )
    )  # fmt: skip
    assert len(RECIPES) == len(FAMILIES) == 12


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_two_steps_of_a_tiny_model_of_its_kind(recipe, tokenizer, tmp_path):
    import copy

    settings = settings_of(recipe)
    content = yaml.safe_load(recipe.read_text())
    for key, value in content.items():  # nothing is lost on the way from the file
        name = {"eval": "evaluate", "method": "methods"}.get(key, key.replace("-", "_"))
        if key not in ("output-dir", "prompt"):
            found = getattr(settings, name)
            assert found == (tuple(value) if isinstance(value, list) else value), key
    architecture, family = FAMILIES[settings.model]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATES[family]
    questions, validation = validation_split(settings, make_questions(40))
    for method in settings.methods:
        if method not in FINE_TUNING:
            continue
        args = training_arguments(settings, method, tmp_path / method, on_cpu=True)
        args.max_steps, args.save_strategy, args.disable_tqdm = 2, "no", True
        trainer = CalibrationTrainer(
            model=make_model(architecture),
            args=args,
            train_dataset=questions,
            eval_dataset=validation,
            processing_class=tokenizer,
            peft_config=adapter_config(settings),
        )
        start = {n: p.clone() for n, p in trainer.model.named_parameters() if "lora_B" in n}
        trainer.train()
        assert trainer.state.global_step == 2
        changed = [n for n, p in trainer.model.named_parameters() if n in start and p.any()]
        assert len(changed) == len(start) == 14
        lora = trainer.model.peft_config["default"]
        assert (lora.r, lora.lora_alpha) == (content["lora-rank"], content["lora-alpha"])
        assert lora.lora_dropout == content["lora-dropout"]
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        assert per_step == content["batch-size"]


@pytest.mark.parametrize("family", [name for name in TEMPLATES if name])
def test_a_letter_is_read_where_the_assistant_begins(family, tokenizer):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATES[family]
    questions = list(make_questions(3))
    for question, encoded in zip(
        questions, encode(questions, tokenizer, Prompt.of("chat-letter")), strict=True
    ):
        text = tokenizer.decode(encoded.prefix)
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
        )
        assert text.rstrip().endswith(rendered.rpartition("?")[2].strip().splitlines()[-1])
        assert question.question in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_the_model_of_memory_and_time_says(recipe, scaling):
    text = recipe.read_text()
    line = re.search(r"^# Expected .*$", text, flags=re.M).group()
    assert line == scaling.expected(yaml.safe_load(text))


def test_the_page_shows_what_the_script_computes(scaling):
    assert scaling.table() in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize(
    ("model", "billions"),
    [  # of the models' cards
        ("allenai/Llama-3.1-Tulu-3-8B-DPO", 8.03),
        ("lmsys/vicuna-7b-v1.5", 6.74),
        ("allenai/OLMo-2-1124-7B-DPO", 7.30),
        ("princeton-nlp/Mistral-7B-Instruct-DPO", 7.24),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.1345),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.711),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.494),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("google/gemma-3-270m-it", 0.268),
        ("google/gemma-3-1b-it", 1.0),
    ],
)
def test_shapes_have_as_many_parameters_as_the_models(model, billions, scaling):
    assert scaling.SHAPES[model].parameters == pytest.approx(1e9 * billions, rel=0.003)


@pytest.mark.parametrize(
    ("rank", "dropout", "base"),
    [(8, False, "float32"), (8, False, "bfloat16"), (8, True, "bfloat16"), (0, False, "float32")],
)
def test_the_count_of_activations_is_what_autograd_keeps(rank, dropout, base, scaling):
    shape = scaling.Shape(64, 160, 3, 4, 2, 300)
    kept = scaling.kept_for_backward(shape, 256, rank=rank, dropout=dropout, base=base, kept=8)
    parts = scaling.memory(shape, 256, kept=8, rank=rank, dropout=dropout, base=base)
    assert kept == pytest.approx(parts.activations, rel=0.05)


def test_time_counts_the_output_layer_where_it_is_read(scaling):
    """By hand, one operation a second: two layers of 10 x 10 maps and a vocabulary of 30."""
    shape = scaling.Shape(10, 10, 2, 1, 1, 30)
    linear, head = 2 * 7 * 100, 30 * 10
    how = {"rank": 0, "peak": 1.0, "utilisation": 1.0}
    assert scaling.seconds(shape, 5, read=0, **how) == 6 * linear * 5
    assert scaling.seconds(shape, 5, read=3, **how) == 6 * (linear * 5 + head * 3)
    again = scaling.seconds(shape, 5, read=3, checkpointing=True, **how)
    assert again == 8 * linear * 5 + 6 * head * 3


@pytest.mark.slow
def test_the_formula_is_near_the_peak_of_a_process(scaling):
    for name, formula, found in scaling.measure():
        assert found == pytest.approx(formula, rel=0.3), name
