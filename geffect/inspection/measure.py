"""Gradients of one checkpoint over whole sets, and effects on its single tokens and of single examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from geffect.core.architectures import Tokenizer
from geffect.core.devices import input_device
from geffect.core.forward import IGNORE_INDEX, Outputs, forward
from geffect.core.gradients import NamedTensors
from geffect.core.layers import find_tied_weights, layout, trainable_parameters
from geffect.core.splits import role_of
from geffect.core.token_effects import token_effects
from geffect.data.encode import EncodedExample, token_texts
from geffect.errors import GeffectError
from geffect.io.readers import JSON
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.step import Step
from geffect.models.scoring import Reference, forward_beside
from geffect.objectives.base import Objective, window_counts
from geffect.rectifiers.registry import NoRectifier
from geffect.training.batches import Columns, PairedDataset, PairedSampler, collate_sets

T = TypeVar("T")
FEWEST = 2  # parts for a standard error


@dataclass
class Inputs:
    """What every checkpoint of a series is measured with.

    Attributes:
        objective: whose gradient is measured.
        sets: set → encoded examples that gradients are drawn from.
        columns: what the objective needs of each example.
        reference: the frozen start, where the objective needs more of it than token NLLs.
        labels: parameter → layer.
        pad_id: fills the batches.
        targets: name → the batches of a further set, whose gradient is measured beside the others.
    """

    objective: Objective
    sets: Mapping[str, list[EncodedExample]]
    columns: Columns
    reference: Reference | None
    labels: Mapping[str, str]
    pad_id: int
    targets: Mapping[str, list[Batch]] = field(default_factory=dict)


def measurement(
    model: nn.Module, inputs: Inputs, overlap: float = 0.0, *, standard_errors: bool = False, keep: bool = False
) -> Measurement:
    """A measurement of one checkpoint, in evaluation mode.

    ``overlap`` is the share of the largest entries in a gradient's mask, ``standard_errors`` goes over the window's
    parts again, ``keep`` holds the gradients.
    """
    device = input_device(model)

    def run(batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        return forward_beside(model, inputs.reference, on_device, needs)

    return Measurement(
        trainable_parameters(model),
        run,
        inputs.objective,
        NoRectifier(),
        tie=find_tied_weights(model),
        overlap=overlap,
        keep=keep,
        updates=False,
        standard_errors=standard_errors,
        labels=inputs.labels,
        targets=inputs.targets,
    )


def dataset_step(run: Measurement, parts: Sequence[Sequence[Mapping[str, Batch]]]) -> tuple[Step, Measured]:
    """The gradients of whole sets, in `dataset_parts`: the step, which may keep them, and the numbers."""
    flat = [(place, batches) for place, part in enumerate(parts) for batches in part]
    step = Step(run, window_counts([batches for _, batches in flat]), measure=True)
    step.ascend(batches for _, batches in flat)
    for i, (place, batches) in enumerate(flat):
        step.micro_batch(batches, last=i == len(flat) - 1, part=place)
    try:
        measured = step.finish()
    except FloatingPointError as error:
        message = f"A loss or gradient of a checkpoint is not finite: {error}"
        raise GeffectError(message, remedy="Inspect the checkpoints before it") from error
    return step, measured


def dataset_parts(
    sets: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int, batch_size: int
) -> list[list[dict[str, Batch]]]:
    """Every example of every set once: parts with equal shares of all sets, each in micro-batches.

    Standard errors see the parts; there are as many as the smallest set fills batches. A part holds an equal share of
    each set, cut into batches of at most ``batch_size``; shorter sets are right-aligned, so that the last micro-batch
    of a part has every set.
    """
    count = num_parts(min(map(len, sets.values())), batch_size)
    parts = []
    for part in range(count):
        cut = {name: chunks(_share(examples, part, count), batch_size) for name, examples in sets.items()}
        longest = max(map(len, cut.values()))
        parts.append([
            collate_sets(
                {name: each[i - longest] for name, each in cut.items() if longest - i <= len(each)}, columns, pad_id
            )
            for i in range(longest)
        ])
    return parts


def num_parts(smallest: int, batch_size: int) -> int:
    """The number of parts that standard errors see, where the smallest set has so many examples.

    >>> num_parts(40, 8), num_parts(8, 8), num_parts(1, 8)
    (5, 2, 1)
    """
    return min(smallest, max(FEWEST, -(-smallest // batch_size)))


def _share(examples: Sequence[EncodedExample], part: int, count: int) -> Sequence[EncodedExample]:
    return examples[part * len(examples) // count : (part + 1) * len(examples) // count]


def chunks(examples: Sequence[T], size: int) -> list[Sequence[T]]:
    """The examples in their order, so many at a time."""
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def paper_batches(
    sets: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int, batch_size: int, seed: int
) -> Iterator[dict[str, Batch]]:
    """One pass over the forget examples beside as many random ones of each other set, drawn as a run draws them."""
    pairs, sampler = PairedDataset(sets), PairedSampler({name: len(each) for name, each in sets.items()}, seed)
    for chunk in chunks([pairs[positions] for positions in sampler], batch_size):
        yield collate_sets({name: [pair[name] for pair in chunk] for name in sets}, columns, pad_id)


def token_lines(
    model: nn.Module,
    tokenizer: Tokenizer,
    sets: Mapping[str, Sequence[EncodedExample]],
    direction: NamedTensors,
    pad_id: int,
    count: int,
    batch_size: int,
) -> Iterator[dict[str, JSON]]:
    """The ``count`` examples of each set that a descended direction serves worst, and its effect on their tokens.

    Worst are the forget examples whose loss it raises least, and of other sets those whose loss it raises most. Each
    line has ``tokens``, ``labeled``, ``effect`` = ⟨∇ℓ_i, direction⟩ of every token i, and its ``groups``.
    """
    groups = layout(model).groups()
    for name, examples in sets.items():
        effects = (
            token_effects(model, batch, direction) for batch in _batches(model, examples, {}, pad_id, batch_size)
        )
        means = torch.cat([each.by_example() / each.labeled.sum(1) for each in effects])
        worst = means.argsort(descending=role_of(name) == "forget", stable=True)[:count].tolist()
        for chunk in chunks([examples[position] for position in worst], batch_size):
            (batch,) = _batches(model, chunk, {}, pad_id, batch_size)
            by_group = token_effects(model, batch, direction, groups)
            for i, example in enumerate(chunk):
                size = len(example.input_ids)
                yield {
                    "set": name,
                    "example": example.index,
                    "tokens": token_texts(tokenizer, example.input_ids),
                    "labeled": [label != IGNORE_INDEX for label in example.labels],
                    "effect": _at_token(by_group.total[i, :size]),
                    "groups": {group: _at_token(each[i, :size]) for group, each in by_group.groups.items()},
                }


def point_lines(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    columns: Columns,
    losses: Mapping[str, NamedTensors],
    objectives: Mapping[str, Objective],
    pad_id: int,
    batch_size: int,
) -> Iterator[dict[str, JSON]]:
    """Every forget example's effect on both losses (PG-effect, arXiv 2502.19301 §5), and objectives' weights on it.

    PG(s; D) = ⟨∇R(D), ∇log p(s)⟩, log p(s) the sum over the example's labeled tokens: what gradient ascent on s alone
    would do. Below 0 on the forget set it unlearns, below 0 on the retain set it harms. ``losses`` is ``unlearn`` and
    ``retain`` → ∇R; ``columns`` has ``ref_nll`` where there is a start; a weight is a mean over labeled tokens.
    """
    for batch in _batches(model, examples, columns, pad_id, batch_size):
        effects = {name: -token_effects(model, batch, gradient).by_example() for name, gradient in losses.items()}
        with torch.no_grad():
            outputs = forward(model, batch)
            counts = outputs.mask.sum(1)
            weights = {name: each.forget_weights(outputs) for name, each in objectives.items()}
        start = None if outputs.ref_nll is None else outputs.ref_nll.sum(1)
        for i, index in enumerate(batch["index"].tolist()):
            yield {
                "example": index,
                **{name: float(effect[i]) for name, effect in effects.items()},
                "nll": float(outputs.sequence_nll[i]),
                "reference_nll": None if start is None else float(start[i]),
                "num_tokens": int(counts[i]),
                "weights": {name: float(w[i].sum() / counts[i]) for name, w in weights.items() if w is not None},
            }


def _batches(
    model: nn.Module, examples: Sequence[EncodedExample], columns: Columns, pad_id: int, size: int
) -> Iterator[Batch]:
    """Forget batches on the model's device."""
    device = input_device(model)
    for chunk in chunks(examples, size):
        batch = collate_sets({"forget": chunk}, columns, pad_id)["forget"]
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def _at_token(effect: Tensor) -> list[float]:
    """Shift effects from the position that predicts a token to the token; no position predicts the first token."""
    return [0.0, *(float(f"{x:.9g}") for x in effect[:-1].tolist())]
