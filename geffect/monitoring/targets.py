"""Targets: the named sets that a monitored step is measured against, and the inner products of their gradients."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geffect.core.architectures import Tokenizer
from geffect.core.devices import input_device
from geffect.core.distributed import (
    assign_items,
    is_sharded,
    local_part,
    num_processes,
    sum_gradients,
    sum_over_processes,
)
from geffect.core.forward import IGNORE_INDEX, Outputs, forward
from geffect.core.gradients import GradientBuffer
from geffect.core.gram import Gram
from geffect.core.layers import TiedWeights
from geffect.core.model_state import ModelState
from geffect.core.splits import check_target_names
from geffect.data.checks import check_ids, warn_cut
from geffect.data.completions import PAIR, encode_completions, read_sets
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError, shorten
from geffect.measurement.basis import Basis, Combinations, Tensors, add
from geffect.measurement.measurement import Batch
from geffect.measurement.topk import Masks
from geffect.models.scoring import Likelihood, example_scores
from geffect.objectives.base import Counts, mean_nll

LOGGER = logging.getLogger(__name__)
TargetSet = str | ExampleSet | Sequence[EncodedExample] | Sequence[Mapping[str, Any]]
FORMS = "a set's name, geffect.load_set(…), rows with columns such as question and answer, or input_ids and labels"
EXAMPLES = 64  # of a target, at most, by default
GRADIENT, UPDATE, WEIGHTS = "applied_gradient", "update", "weights"
OTHERS = (GRADIENT, UPDATE, WEIGHTS)  # what a monitored step records beside its targets


@dataclass(frozen=True)
class Target:
    """The encoded examples of a set.

    Attributes:
        name: the set's, or ``examples``.
        examples: those that are measured.
        batches: the same, padded.
        whole: all of the set, of which ``examples`` may be evenly spaced ones.
    """

    name: str
    examples: list[EncodedExample]
    batches: list[Batch]
    whole: list[EncodedExample]

    @property
    def data(self) -> dict[str, Any]:
        """The set's entry in a record's environment."""
        text = json.dumps([[example.input_ids, example.labels] for example in self.examples])
        content = {"set": self.name, "examples": len(self.examples), "of": len(self.whole)}
        return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def make_targets(
    targets: Mapping[str, TargetSet],
    tokenizer: Tokenizer | None,
    batch_size: int,
    most: int | None = None,
    config: object = None,
    vocabulary: int | None = None,
) -> dict[str, Target]:
    """Read and batch named sets; refuse names, examples without a label, too long ones, and tokens the model lacks.

    Of preference pairs, the target ``NAME`` becomes ``NAME/chosen`` and ``NAME/rejected``. Encoded examples need no
    tokenizer. Of a set of more than ``most`` examples so many are taken, evenly spaced.
    ``config`` is the model's, ``vocabulary`` how many tokens it knows, None where that is unknown.
    """
    check_names(targets)
    context = getattr(config, "max_position_embeddings", None)
    rotates = any(getattr(config, name, None) for name in ("rope_parameters", "rope_scaling"))
    longest = None if rotates else context  # a rotary model runs beyond its context, too
    pad_id = pad_of(tokenizer)
    found: dict[str, Target] = {}
    for name, source, whole in _sources(targets, tokenizer, context):
        count = min(most or len(whole), len(whole))
        examples = [whole[i * len(whole) // count] for i in range(count)]
        for example in whole:
            _check(name, example, longest)
        check_ids(whole, vocabulary, f"the {name} set", pad_id)
        warn_cut({f"the {name} set": examples})
        if count < len(whole):
            LOGGER.info("target %s: %d of %d examples, evenly spaced", name, count, len(whole))
        numbered = [EncodedExample(i, each.input_ids, each.labels) for i, each in enumerate(examples)]
        batches = [collate(numbered[i : i + batch_size], pad_id) for i in range(0, count, batch_size)]
        found[name] = Target(source, examples, batches, whole)
    return found


def pad_of(tokenizer: Tokenizer | None) -> int:
    """What fills batches; encoded examples need no tokenizer, and what fills them is masked."""
    return 0 if tokenizer is None else pad_id_of(tokenizer)


def check_names(targets: object) -> None:
    """Refuse targets that are no mapping, none, or whose names no record can hold."""
    form = 'Write targets={"math": "math.jsonl"}'
    if not isinstance(targets, Mapping):
        raise GeffectError(f"The targets are {shorten(targets)}, not sets by name", remedy=form)
    if not targets:
        raise GeffectError("There is no target to measure a step against", remedy=form)
    check_target_names(targets)


def _sources(
    targets: Mapping[str, TargetSet], tokenizer: Tokenizer | None, context: int | None
) -> Iterator[tuple[str, str, list[EncodedExample]]]:
    """Target, the name of its set, and its examples; two of a target of preference pairs."""
    for name, content in targets.items():
        rows = None if isinstance(content, str | ExampleSet) else list(content)
        if rows == []:
            raise GeffectError(f"The {name} set has no example", remedy=f"Give {FORMS}")
        if rows and _is_encoded(rows[0]):
            yield name, "examples", [_encode(name, i, example) for i, example in enumerate(rows)]
            continue
        if tokenizer is None:
            raise GeffectError(f"The {name} set needs a tokenizer to be encoded with", remedy="Pass tokenizer=…")
        for side, each in read_sets(content if rows is None else rows, f"the {name} set").items():
            yield f"{name}/{side}".rstrip("/"), each.name, encode_completions(tokenizer, each, context=context)


def _is_encoded(example: object) -> bool:
    """Also an example with one of the two columns alone, of which `_encode` tells what is missing."""
    return isinstance(example, EncodedExample) or not isinstance(example, Mapping | str) or "input_ids" in example


def is_among(name: str, names: Collection[str]) -> bool:
    """Whether a target, or the preference pairs that it is one side of, is among names.

    >>> is_among("pairs/chosen", ["pairs"]), is_among("code/python", ["code"])
    (True, False)
    """
    pairs, _, side = name.rpartition("/")
    return name in names or (side in PAIR and pairs in names)


def _encode(role: str, index: int, example: object) -> EncodedExample:
    if isinstance(example, EncodedExample):
        return EncodedExample(index, example.input_ids, example.labels)
    if not isinstance(example, Mapping) or not {"input_ids", "labels"} <= set(example):
        what = ", ".join(example) if isinstance(example, Mapping) else type(example).__name__
        raise GeffectError(
            f"Example {index} of the {role} set has {shorten(what)}, not input_ids and labels", remedy=f"Give {FORMS}"
        )
    ids, labels = ([int(each) for each in example[key]] for key in ("input_ids", "labels"))
    return EncodedExample(index, ids, labels)


def _check(role: str, example: EncodedExample, longest: int | None) -> None:
    """Refuse an example without loss, or of more tokens than a model can run over."""
    carrying = sum(each != IGNORE_INDEX for each in example.labels[1:])
    if len(example.labels) != len(example.input_ids) or not carrying:
        raise GeffectError(
            f"Example {example.index} of the {role} set has {len(example.labels)} labels "
            f"of {len(example.input_ids)} tokens, {carrying} of them with loss",
            remedy="Label every token: the answer with its own ids and the prompt with -100",
        )
    if longest is not None and len(example.input_ids) > longest:
        length = f"has {len(example.input_ids)} tokens, and the model {longest} positions"
        raise GeffectError(f"Example {example.index} of the {role} set {length}", remedy="Cut it, or leave it out")


@dataclass(frozen=True)
class Others:
    """Gradients that are at hand, beside those of the targets: their names, and one tensor of each by parameter."""

    names: tuple[str, ...]
    tensors: Callable[[str], Tensors]


def measure_targets(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Mapping[str, Sequence[Batch]],
    tied: TiedWeights | None,
    state: ModelState,
    others: Others,
    masks: Masks | None = None,
) -> tuple[Gram, dict[str, Likelihood]]:
    """The Gram of every target's ∇R and of the others, R a target's token-mean NLL; and the targets' scores.

    Of M targets M − 1 gradients are held; in one process the last one is met tensor by tensor in its backward pass.
    Every process gets the same batches, runs its share of them, and has the same Gram in the end. The model is left
    as it was, and hooks on its parameters do not run. ``masks`` gathers the top-k masks of all gradients. Under DDP
    the wrapper is bypassed, so that no all-reduce is triggered. The losses of a tied tensor are split by use.
    """
    products = _Products(parameters, tuple(batches), tied, others, masks)
    counts = {name: Counts.of(each) for name, each in batches.items()}
    scores = {name: torch.zeros(each.example, 3, dtype=torch.float64) for name, each in counts.items()}
    turns = [(name, *item) for name, each in batches.items() for item in assign_items(each)]
    with state.preserve(), torch.enable_grad(), tied.untied() if tied else contextlib.nullcontext():
        for i, (name, batch, weight) in enumerate(turns):
            outputs = bare_outputs(model, batch)
            products.descend(name, weight * mean_nll(outputs, counts[name]), last=i == len(turns) - 1)
            if weight:
                scores[name][batch["index"]] = example_scores(outputs)
    gram = products.finish()
    return gram, {name: Likelihood.from_examples(sum_over_processes(each)) for name, each in scores.items()}


@torch.no_grad()
def score_targets(model: nn.Module, batches: Mapping[str, Sequence[Batch]], state: ModelState) -> dict[str, Likelihood]:
    """The targets' scores alone, as of `measure_targets`."""
    scores = {name: torch.zeros(Counts.of(each).example, 3, dtype=torch.float64) for name, each in batches.items()}
    with state.preserve():
        for name, each in batches.items():
            for batch, weight in assign_items(each):
                outputs = bare_outputs(model, batch)
                if weight:
                    scores[name][batch["index"]] = example_scores(outputs)
    return {name: Likelihood.from_examples(sum_over_processes(each)) for name, each in scores.items()}


def bare_outputs(model: nn.Module, batch: Batch) -> Outputs:
    """The model's outputs on a batch, without DDP's wrapper, whose passes all processes would have to share."""
    bare = without_ddp(model)
    device = input_device(bare)
    return forward(bare, {key: tensor.to(device) for key, tensor in batch.items()})


class _Products:
    """Inner products of targets' gradients and others, parameter by parameter."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        targets: tuple[str, ...],
        tied: TiedWeights | None,
        others: Others,
        masks: Masks | None,
    ) -> None:
        self.parameters, self.targets, self.tied, self.others = parameters, targets, tied, others
        self.masks = masks
        self.buffer = GradientBuffer(dict(parameters) | ({tied.head_name: tied.alias} if tied else {}))
        self.basis = Basis((*targets, *others.names), tied, losses=targets)
        self._uses: dict[str, Tensors] = {}  # of the tied tensor, whose two parts arrive apart

    def descend(self, name: str, loss: torch.Tensor, *, last: bool) -> None:
        """Add a share of a target's gradient; the ``last`` one is met as it is made."""
        if last and num_processes() == 1:
            self.buffer.stream(name, loss, self._visit)
        else:  # of several processes, gradients are added up before any product is taken
            self.buffer.add(name, loss)

    def finish(self) -> Gram:
        """The Gram, over all processes."""
        if num_processes() > 1:
            self.buffer.gradients = sum_gradients(self.buffer.gradients, self.buffer.parameters)
            for key in self.buffer.parameters:
                self._visit(key, self.buffer.gradients.get(self.targets[-1], {}).pop(key, None))
        self.basis.sum_up(sharded=is_sharded(self.parameters))
        everywhere = Combinations.everywhere({each: {each: 1.0} for each in self.basis.names})
        return self.basis.combine(everywhere, list(self.parameters))

    def _visit(self, key: str, streamed: torch.Tensor | None) -> None:
        held = {each: self.buffer.gradients.get(each, {}).pop(key, None) for each in self.targets[:-1]}
        arrived = held | {self.targets[-1]: streamed}
        losses = {each: None if tensor is None else local_part(tensor) for each, tensor in arrived.items()}
        if self.tied is None or key not in (self.tied.name, self.tied.head_name):
            self._add(key, losses | dict(self.others.tensors(key)))
            return
        self._uses[key] = losses
        if len(self._uses) == 2:
            embed, head = (self._uses.pop(each) for each in (self.tied.name, self.tied.head_name))
            others = dict(self.others.tensors(self.tied.name))
            whole = {each: add(embed[each], head[each]) for each in self.targets}
            self._add(self.tied.name, whole | others, dict(embed) | others)

    def _add(self, key: str, tensors: Tensors, embeds: Tensors | None = None) -> None:
        self.basis.add(key, tensors, embeds)
        if self.masks is not None:
            self.masks.add(key, {name: tensor for name, tensor in tensors.items() if name != WEIGHTS})


def without_ddp(model: nn.Module) -> nn.Module:
    """The model without DDP's wrapper; an adapter, a compiled model and shards run as they are."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
