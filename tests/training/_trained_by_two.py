"""Run under torchrun: what two processes make of the trainings of `_runs`, in one file a rank."""

import sys

import torch
from _runs import RUNS, by_hand, make, trained
from accelerate import PartialState
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer

from calibrant.errors import InputError


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def refused(tokenizer, **settings):
    try:
        make(tokenizer, per_device_train_batch_size=4, **settings)
    except InputError as error:
        return str(error)


def main(folder):
    torch.set_num_threads(1)
    PartialState(cpu=True)
    rank = distributed.get_rank()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    result = {name: trained(tokenizer, name, 4) for name in RUNS}
    result["accumulated"] = trained(tokenizer, "rcft-cloze", 2, 2)
    result["sharded"] = by_hand(tokenizer, rank, 2, shard)
    result["refused"] = refused(tokenizer, fsdp=True)
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.barrier()  # see examples/train.py
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
