"""Load a causal language model and its tokenizer from wherever the user has it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibrant.errors import InputError
from calibrant.files import read_json

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    gguf_file: str | None = None,
    quantize: str | None = None,
    adapter: bool = True,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Parameters
    ----------
    model : Hub id, folder, GGUF file, or the folder of a PEFT adapter, which is merged into its
        base model (but stays on top of a 4-bit one, whose weights could not hold the sum).
    dtype : "auto" is float32 on a CPU, where it is exact and on most processors fastest, and
        bfloat16 elsewhere.
    device : "auto" is the GPU or MPS device if there is one, else the CPU.
    device_map : "auto" spreads a model that is too large for one device over all there are.
    gguf_file : name of a GGUF file in the folder; its weights are de-quantised. A folder with no
        other weights and one such file needs none named.
    quantize : "nf4" keeps the weights of linear layers in 4-bit normal float, by bitsandbytes.
    adapter : False loads the base model of a PEFT adapter folder; see `with_adapter`.
    trust_remote_code : run code that comes with the model. Off unless asked for.

    Returns
    -------
    (model, tokenizer), the model in evaluation mode on the device.

    Raises
    ------
    InputError
        If it cannot be loaded; the message names the model and the reason.
    """
    _check_there(model)
    for name, value, allowed in (
        ("dtype", dtype, DTYPES),
        ("device_map", device_map, (None, "auto")),
        ("quantize", quantize, (None, "nf4")),
    ):
        if value not in allowed:
            raise InputError(f"{name} {value!r}, expected one of {', '.join(map(str, allowed))}")
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError(
            f"running a model needs torch and transformers ({error}); install them with "
            "pip install 'calibrant[models]'"
        ) from error
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if accelerator is None else accelerator.type
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    config = Path(model) / "adapter_config.json"
    base, gguf_file = _gguf(_base_of(config) if config.is_file() else model, gguf_file)
    tokenizer = load_tokenizer(model, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    with _explained(f"model {model!r}", f" on {device!r}"):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            base,
            output_loading_info=True,
            dtype=getattr(torch, dtype),
            device_map=device_map or (device if quantize else None),
            trust_remote_code=trust_remote_code,
            **({"use_safetensors": True} if gguf_file is None else {}),
            **_of_gguf(gguf_file),
            **_quantization(quantize, gguf_file, getattr(torch, dtype)),
        )
        if missing := sorted(report["missing_keys"]):  # transformers would make them up
            raise InputError(
                f"model {model!r} lacks {len(missing)} of its weights (first: {missing[0]}); "
                "expected a causal language model with all of them"
            )
        if quantize is not None:
            _keep_as_quantised(loaded)
        elif device_map is None:
            loaded = loaded.to(device)
        if config.is_file() and adapter:
            loaded = with_adapter(loaded, model)
    return loaded.eval(), tokenizer


def _check_there(model: str) -> None:
    """Raise `InputError` for a path to nothing; a Hub id is of the form OWNER/NAME."""
    named = Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    if named and not Path(model).exists():
        raise InputError(
            f"model {model!r}: there is no such file or folder; expected a Hub id, a folder that "
            "transformers loads, a GGUF file, or a PEFT adapter folder"
        )


def _of_gguf(gguf_file: str | None) -> dict[str, str]:
    """Give ``gguf_file`` for `from_pretrained`, which looks for any argument of that name."""
    return {} if gguf_file is None else {"gguf_file": gguf_file}


@contextmanager
def _explained(what: str, where: str = "") -> Iterator[None]:
    """Turn every failure to load a model into one clear error."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # of transformers, tokenizers, safetensors, gguf and peft: dozens
        reason = " ".join(str(error).split())
        raise InputError(
            f"{what} cannot be loaded{where}: {reason[:600]}; expected a Hub id, a folder that "
            "transformers loads, or a PEFT adapter folder"
        ) from error


def _gguf(model: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Folder and name of the GGUF file to load, None where the model has weights of its own."""
    path = Path(model)
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if gguf_file is not None or not path.is_dir():
        return model, gguf_file
    if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
        return model, None
    found = sorted(p.name for p in path.glob("*.gguf"))
    if len(found) > 1:
        raise InputError(
            f"{model}: holds {len(found)} GGUF files ({', '.join(found[:6])}); expected one named "
            "with --gguf-file"
        )
    return model, found[0] if found else None


def _quantization(quantize: str | None, gguf_file: str | None, dtype: Any) -> dict[str, Any]:
    """Give ``quantization_config`` for `from_pretrained`, {} for weights as they are."""
    if gguf_file is not None:
        if quantize is not None:
            raise InputError(
                f"{gguf_file}: a GGUF file cannot be quantised again; expected no --quantize"
            )
        from transformers import GgufConfig

        return {"quantization_config": GgufConfig(dequantize=True)}
    if quantize is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"--quantize {quantize} needs bitsandbytes; install it with "
            "pip install 'calibrant[quantize]'"
        )
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quantize, bnb_4bit_compute_dtype=dtype
        )
    }


def _keep_as_quantised(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew on a CPU that has AVX512-BF16.

    It would at the first answer: everything is then computed in bfloat16, and training from there
    on has no gradient through these layers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(
    model: str, *, gguf_file: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load a model's tokenizer alone; an adapter's own, or else its base model's.

    Raises
    ------
    InputError
        If it cannot be loaded; the message names it and the reason.
    """
    _check_there(model)
    config = Path(model) / "adapter_config.json"
    own = (Path(model) / "tokenizer_config.json").is_file() or not config.is_file()
    source, gguf_file = _gguf(model if own else _base_of(config), gguf_file)
    with _explained(f"tokenizer of {model!r}"):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, **_of_gguf(gguf_file)
        )


def on_top(base: Any, adapter: str) -> Any:
    """Lay a PEFT adapter folder over its base model, in evaluation mode.

    Raises
    ------
    InputError
        If its weights are not in safetensors format, or it does not fit the model.
    """
    from peft import PeftModel

    if not (Path(adapter) / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{adapter}: holds no adapter_model.safetensors; expected an adapter saved as "
            "safetensors (pickled .bin weights can run code and are not read)"
        )
    with _explained(f"adapter {adapter!r}"):
        return PeftModel.from_pretrained(base, adapter).eval()


def with_adapter(base: Any, adapter: str) -> Any:
    """Fold an adapter into its base model: the result is the model to restore, not an adapter.

    A new adapter trained on top must not touch this one's matrices, and names this folder as its
    base, so that `load_model` finds the same weights again. Weights of 4 bits cannot hold the sum:
    there the adapter stays on top. ``base`` is changed, and no model of its own any more.
    """
    model = on_top(base, adapter)
    if getattr(base, "is_loaded_in_4bit", False):
        return model
    if not hasattr(model, "merge_and_unload"):
        raise ValueError("its adapter cannot be merged into the base model")
    model = model.merge_and_unload().eval()
    model.config._name_or_path = model.name_or_path = adapter
    return model


def merged(model: Any) -> Any:
    """Fold a LoRA adapter into float32 weights, where that changes nothing but the time it takes.

    Other dtypes would round the sum, and other models have nothing to fold: they are returned as
    they are.
    """
    import torch

    if not hasattr(model, "merge_and_unload") or model.dtype != torch.float32:
        return model
    if getattr(model, "is_loaded_in_4bit", False):
        return model
    return model.merge_and_unload()


def _base_of(adapter_config: Path) -> str:
    """Name of the model an adapter sits on."""
    content = read_json(adapter_config)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{adapter_config}: names no base model; expected the JSON field "
            "base_model_name_or_path"
        )
    return base
