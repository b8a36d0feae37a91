"""Rows of random tokens, half labeled, as a user's own data set has them."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.cases import VOCABULARY

QUIET: dict[str, Any] = {  # of a Trainer: nothing is saved, reported or printed, on the CPU
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 3,
    "logging_strategy": "no",
    "use_cpu": True,
    "dataloader_pin_memory": False,
}
Rows = list[dict[str, Any]]


def made_rows(lengths: list[int], seed: int) -> Rows:
    """One row a length; the first two tokens carry no loss."""
    random = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, VOCABULARY, (n,), generator=random).tolist() for n in lengths]
    return [{"input_ids": each, "labels": [-100, -100, *each[2:]]} for each in ids]


def padded(rows: Rows) -> dict[str, Tensor]:
    """A batch, padded on the right."""
    fills = {"input_ids": 0, "labels": -100}
    width = max(len(row["labels"]) for row in rows)
    batch = {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in rows]) for k, v in fills.items()}
    lengths = torch.tensor([len(row["labels"]) for row in rows])
    return batch | {"attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def nats(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Every token's −log p, 0 where there is no label."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
