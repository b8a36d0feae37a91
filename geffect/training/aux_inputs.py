"""What an objective needs beside a row's own tokens, computed once per data row before a run starts."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.forward import ALL_LOGITS, IGNORE_INDEX, Outputs
from geffect.core.splits import role_of, split_names
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.data.relabel import random_labels
from geffect.errors import GeffectError
from geffect.models.scoring import compute_reference_nll, forward_batches
from geffect.objectives.base import Objective

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
    """Reference NLLs and other labels of the rows an objective needs them for: set → column → one tensor ``[T]`` a row.

    ``model`` is the start of the run, as it is now; with ``autocast`` it computes in bfloat16, as the run will.
    """
    needs, pad_id = objective.needs, pad_id_of(tokenizer)
    columns: Columns = {name: {} for name in split_names("forget", sets)}
    with torch.autocast(model.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
        if "ref_nll" in needs:
            sides = {"forget"} | ({"alternative"} if "alternative" in needs else set())
            for name in (name for name in sets if role_of(name) in sides):
                columns[name] = {"ref_nll": compute_reference_nll(model, sets[name], pad_id)}
        for name in split_names("forget", sets):
            for need in sorted(needs):
                columns[name] |= _labels(model, tokenizer, need, sets[name], seed)
    return columns


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
    """Refuse a column, by name, of other rows than its set's, or of another tokenizer's tokens."""
    for name, named in columns.items():
        lengths = [len(row.input_ids) for row in sets[name]]
        for column, rows in named.items():
            sizes = [len(row) for row in rows]
            if sizes != lengths:
                i = next((i for i, pair in enumerate(zip(sizes, lengths, strict=False)) if pair[0] != pair[1]), None)
                other = f"{len(sizes)} rows" if i is None else f"{sizes[i]} tokens in row {i}, not {lengths[i]}"
                raise GeffectError(
                    f"{column} of the {name} set has {other}; the set has {len(lengths)} examples",
                    remedy="Compute it with the run's start and tokenizer",
                )


def check_starts_at_one(outputs: Outputs, atol: float) -> None:
    """Refuse another model's reference: every token's weight 2p/(p + p₀) is 1 within ``atol`` where θ = θ₀."""
    weight = 2 * torch.sigmoid(outputs.ref - outputs.nll)[outputs.mask]
    if not torch.allclose(weight, torch.ones_like(weight), atol=atol):
        raise GeffectError(
            f"The reference is not the run's start: weights go from {weight.min():.3g} to {weight.max():.3g}, not 1",
            remedy="Compute the reference with the model as it is now",
        )


def collate_sets(
    rows: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int
) -> dict[str, dict[str, Tensor]]:
    """Set → batch of some of its rows, padded to that set's own length; a column has a tensor for each of its rows."""
    batches: dict[str, dict[str, Tensor]] = {}
    for name, each in rows.items():
        batch = collate(each, pad_id)
        extra = pad_columns(columns.get(name, {}), batch["index"].tolist(), batch["labels"].shape[1])
        batches[name] = batch | extra
    return batches


def pad_columns(columns: Mapping[str, Sequence[Tensor]], positions: Sequence[int], width: int) -> dict[str, Tensor]:
    """Some rows of every column as ``[B, T]``; NLLs are padded with 0, labels with ``IGNORE_INDEX``."""
    batch: dict[str, Tensor] = {}
    for name, column in columns.items():
        fill = IGNORE_INDEX if name.endswith("_labels") else 0
        batch[name] = torch.full((len(positions), width), fill, dtype=column[positions[0]].dtype)
        for i, position in enumerate(positions):
            batch[name][i, : len(column[position])] = column[position]
    return batch


def adversarial_labels(
    model: nn.Module, rows: Sequence[EncodedExample], pad_id: int, *, misaligned: bool = False, batch_size: int = 16
) -> list[Tensor]:
    """The model's best token but the true one, as labels.

    Aligned: the label of a loss-carrying token t is argmax of the prediction of t, with token t itself banned.
    Misaligned (arXiv 2407.01920's code): the label of every position j is argmax of the prediction of token j + 1, with
    token j and the vocabulary's last banned, although a label at j is scored by the prediction of j.
    They are ``[T]`` a row, ``IGNORE_INDEX`` where no loss is carried.
    """
    labels: dict[int, Tensor] = {}
    label = _misaligned if misaligned else _aligned
    for chosen, outputs in forward_batches(model, rows, pad_id, batch_size, {ALL_LOGITS} if misaligned else ()):
        for i, logits in zip(chosen, outputs.logits_by_example(), strict=True):
            labels[i] = label(logits.cpu(), rows[i])
    return [labels[i] for i in range(len(rows))]


def _aligned(logits: Tensor, row: EncodedExample) -> Tensor:
    """Of the n labeled tokens' predictions ``[n, V]``."""
    labels = torch.tensor(row.labels)
    labeled = labels[1:] != IGNORE_INDEX  # nothing predicts a row's first token
    true = torch.tensor(row.input_ids)[1:][labeled]
    best = logits.scatter(1, true[:, None], -torch.inf).argmax(-1)
    labels[1:][labeled] = best
    return labels


def _misaligned(logits: Tensor, row: EncodedExample) -> Tensor:
    """Of every position's prediction, padding included."""
    ids = torch.tensor(row.input_ids)
    banned = logits[: len(ids)].scatter(1, ids[:, None], -torch.inf)
    banned[:, -1] = -torch.inf
    return banned.argmax(-1)
