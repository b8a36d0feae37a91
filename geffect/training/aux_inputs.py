"""What an objective needs beside a row's own tokens, computed once per data row before a run starts."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geffect.core.forward import IGNORE_INDEX, Outputs
from geffect.core.splits import role_of, split_names
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.data.relabel import random_labels
from geffect.errors import GeffectError
from geffect.models.scoring import compute_reference_nll
from geffect.objectives.base import Objective
from geffect.training.adversarial import adversarial_labels

Columns = dict[str, dict[str, list[Tensor]]]


def compute_columns(
    model: Any,
    tokenizer: Any,
    objective: Objective,
    sets: Mapping[str, Sequence[EncodedExample]],
    seed: int,
    *,
    autocast: bool = False,
) -> Columns:
    """Reference NLLs and other labels of the rows an objective needs them for.

    Args:
        model: the start of the run, as it is now.
        tokenizer: its tokenizer.
        objective: what is descended.
        sets: set → encoded rows.
        seed: of random labels.
        autocast: compute in bfloat16, as the run will.

    Returns:
        Set → column → one tensor ``[T]`` a row.
    """
    needs, pad_id = objective.needs, pad_id_of(tokenizer)
    found: Columns = {name: {} for name in split_names("forget", sets)}
    with torch.autocast(model.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
        if "ref_nll" in needs:
            sides = {"forget"} | ({"alternative"} if "alternative" in needs else set())
            for name in (name for name in sets if role_of(name) in sides):
                found[name] = {"ref_nll": compute_reference_nll(model, sets[name], pad_id)}
        for name in split_names("forget", sets):
            for need in sorted(needs):
                found[name] |= _labels(model, tokenizer, need, sets[name], seed)
    return found


def _labels(
    model: Any, tokenizer: Any, need: str, rows: Sequence[EncodedExample], seed: int
) -> dict[str, list[Tensor]]:
    """The other labels that one need stands for, if any."""
    kind, _, variant = need.removesuffix("_labels").partition("_")
    if kind == "adversarial":
        return {need: adversarial_labels(model, rows, pad_id_of(tokenizer), misaligned=variant == "knowundo")}
    if kind == "random":
        vocabulary, special = int(model.config.get_text_config().vocab_size), tokenizer.all_special_ids
        return {need: random_labels(rows, vocabulary, special, seed, everywhere=variant == "knowundo")}
    return {}


def check_columns(sets: Mapping[str, Sequence[EncodedExample]], columns: Columns) -> None:
    """Raise unless every column has one number a token of its set.

    Args:
        sets: set → encoded rows.
        columns: set → column → one tensor a row.

    Raises:
        GeffectError: a column is of other rows, or of another tokenizer's tokens; it is named.
    """
    for name, named in columns.items():
        lengths = [len(row.input_ids) for row in sets[name]]
        for column, rows in named.items():
            found = [len(row) for row in rows]
            if found != lengths:
                i = next((i for i, pair in enumerate(zip(found, lengths, strict=False)) if pair[0] != pair[1]), None)
                other = f"{len(found)} rows" if i is None else f"{found[i]} tokens in row {i}, not {lengths[i]}"
                raise GeffectError(
                    f"{column} of the {name} set's own {len(lengths)} rows and tokens",
                    other,
                    "compute it with the run's start and tokenizer",
                )


def check_starts_at_one(outputs: Outputs, atol: float) -> None:
    """Raise unless every token's weight 2p/(p + p₀) is 1, as it is where θ = θ₀.

    Args:
        outputs: of the run's start.
        atol: what rounding may do.

    Raises:
        GeffectError: the reference is another model's.
    """
    weight = 2 * torch.sigmoid(outputs.ref - outputs.nll)[outputs.mask]
    if not torch.allclose(weight, torch.ones_like(weight), atol=atol):
        raise GeffectError(
            "a reference that is the run's start, so that every weight is 1",
            f"weights from {weight.min():.3g} to {weight.max():.3g}",
            "compute the reference with the model as it is now",
        )


def collated(
    rows: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int
) -> dict[str, dict[str, Tensor]]:
    """Some rows of each set, padded to each set's own length, with the columns of each.

    Args:
        rows: set → its rows.
        columns: set → column → one tensor a row of the whole set.
        pad_id: fills the batches.

    Returns:
        Set → batch.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, each in rows.items():
        batch = collate(each, pad_id)
        extra = padded(columns.get(name, {}), batch["index"].tolist(), batch["labels"].shape[1])
        found[name] = batch | extra
    return found


def padded(columns: Mapping[str, Sequence[Tensor]], positions: Sequence[int], width: int) -> dict[str, Tensor]:
    """Some rows of every column as ``[B, T]``; NLLs are padded with 0, labels with ``IGNORE_INDEX``."""
    batch: dict[str, Tensor] = {}
    for name, column in columns.items():
        fill = IGNORE_INDEX if name.endswith("_labels") else 0
        batch[name] = torch.full((len(positions), width), fill, dtype=column[positions[0]].dtype)
        for i, position in enumerate(positions):
            batch[name][i, : len(column[position])] = column[position]
    return batch
