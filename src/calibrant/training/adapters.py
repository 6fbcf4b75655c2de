"""Adapters are saved whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from calibrant.errors import InputError

_WRAPPED = "_checkpoint_wrapped_module"  # what PyTorch's wrapper calls the layer within


@contextlib.contextmanager
def plain_names(model: Any) -> Iterator[None]:
    """Take layers out of their activation-checkpoint wrappers for a while.

    A wrapper's name is part of its layers' names, and not of their state dict's. PEFT goes by the
    former to find its weights in the latter: it would save an adapter without tensors.
    """
    wrapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _WRAPPED in child._modules
    ]
    try:
        for parent, name, child in wrapped:
            while _WRAPPED in child._modules:
                child = child._modules[_WRAPPED]
            parent._modules[name] = child
        yield
    finally:
        for parent, name, child in wrapped:
            parent._modules[name] = child


def check_whole(model: Any, state_dict: Mapping[str, Any] | None = None) -> None:
    """Check that a saved adapter would have all that was trained.

    Parameters
    ----------
    model : of PEFT.
    state_dict : of the model, gathered from all devices; None where the model holds it.

    Raises
    ------
    InputError
        If it would hold no weights, or not every trainable one in its full size.
    """
    from peft import get_peft_model_state_dict

    state_dict = model.state_dict() if state_dict is None else state_dict
    everything = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    kept = {
        id(value)
        for adapter in model.active_adapters
        for value in get_peft_model_state_dict(
            model, everything, adapter, save_embedding_layers=False
        ).values()
    }

    def is_saved(name: str, weight: Any) -> bool:
        given = state_dict.get(name)
        size = getattr(weight, "ds_numel", weight.numel())  # of all devices' parts, with DeepSpeed
        return id(weight) in kept and given is not None and given.numel() == size

    trained = {name: weight for name, weight in everything.items() if weight.requires_grad}
    lacking = [name for name, weight in trained.items() if not is_saved(name, weight)]
    if lacking or not kept:
        raise InputError(
            f"the adapter lacks {len(lacking)} of its {len(trained)} trained weights"
            f"{f' (first: {lacking[0]})' if lacking else ''} and was not saved; expected them "
            "gathered whole: FULL_STATE_DICT with FSDP, zero3_save_16bit_model with ZeRO-3"
        )
