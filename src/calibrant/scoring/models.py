"""Load a causal language model and its tokenizer from wherever the user has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calibrant.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Parameters
    ----------
    model : Hub id, folder, or the folder of a PEFT adapter (merged into its base model).
    dtype : "auto" is float32 on a CPU, where it is exact and on most processors fastest, and
        bfloat16 elsewhere.
    device : "auto" is the GPU or MPS device if there is one, else the CPU.
    gguf_file : name of a GGUF file in the folder; its weights are de-quantised.
    trust_remote_code : run code that comes with the model. Off unless asked for.

    Returns
    -------
    (model, tokenizer), the model in evaluation mode on the device.

    Raises
    ------
    InputError
        If it cannot be loaded; the message names the model and the reason.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
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
    path = Path(model)
    adapter = path / "adapter_config.json"
    base = _base_of(adapter) if adapter.is_file() else model
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        tokenizer_from = model if (path / "tokenizer_config.json").is_file() else base
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_from, **options)
        if gguf_file is not None:
            from transformers import GgufConfig

            options["quantization_config"] = GgufConfig(dequantize=True)
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), **options)
        if adapter.is_file():
            loaded = _with_adapter(loaded, model)
        loaded = loaded.to(device).eval()
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, AssertionError) as error:
        # transformers turns every failure to find a model into one of these; a device that is not
        # there is a RuntimeError or AssertionError.
        reason = " ".join(str(error).split())
        where = "" if path.exists() else " (no such folder here either)"
        raise InputError(
            f"model {model!r}{where} cannot be loaded on {device!r}: {reason[:600]}; expected a "
            "Hub id, a folder that transformers loads, or a PEFT adapter folder"
        ) from error
    return loaded, tokenizer


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer alone, by Hub id or folder.

    Raises
    ------
    InputError
        If it cannot be loaded; the message names it and the reason.
    """
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"tokenizer {name!r} cannot be loaded: {reason[:400]}; expected a Hub id or the "
            "folder of a model"
        ) from error


def _with_adapter(base: Any, adapter: str) -> Any:
    """Fold an adapter into its base model: the result is the model to restore, not an adapter.

    A new adapter trained on top must not touch this one's matrices, and names this folder as its
    base, so that `load_model` finds the same weights again.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, adapter)
    if not hasattr(model, "merge_and_unload"):
        raise ValueError("its adapter cannot be merged into the base model")
    model = model.merge_and_unload()
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
    return model.merge_and_unload()


def _base_of(adapter_config: Path) -> str:
    """Name of the model an adapter sits on."""
    try:
        base = json.loads(adapter_config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{adapter_config}: names no base model ({error!r}); expected the JSON field "
            "base_model_name_or_path"
        ) from error
    return str(base)
