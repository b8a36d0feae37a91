"""What a launched process does: ``torchrun -m tests.launched KIND OUT``, KIND one of ``alone``, ``ddp``, ``fsdp2``.

A tiny model in float64 is trained for three steps on rows that are dealt over the processes, and watched.
"""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from geffect.replicas import processes, rank
from geffect.watching import Watch
from tests.cases import gpt2, llama
from tests.rows import made_rows, nats, padded

FORGET, RETAIN, TRAIN = made_rows([7, 5, 9, 6, 8], 0), made_rows([6, 8, 5, 7], 1), made_rows([6, 9, 7, 5], 2)
STEPS = 3


def main(kind: str, out: Path) -> None:
    """Train and watch."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    model = wrapped((llama if "llama" in out.name else gpt2)().double(), kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    counted = sum(sum(label != -100 for label in row["labels"][1:]) for row in TRAIN)
    with Watch(model, FORGET, RETAIN, update=True, batch_size=2, out=out) as watch:
        for _ in range(STEPS):
            own = TRAIN[rank() :: processes()]
            loss = -nats(model, padded(own)).sum() / counted
            (loss * processes()).backward()  # both kinds of replicas divide by their number
            watch.step()
            optimizer.step()
            watch.updated()
            optimizer.zero_grad()
    distributed.destroy_process_group()


def wrapped(model: Any, kind: str) -> nn.Module:
    """The model as replicas or shards."""
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp2":
        blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        for block in blocks:
            fully_shard(block)
        fully_shard(model)
    return model  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
