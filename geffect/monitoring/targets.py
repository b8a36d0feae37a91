"""The sets that a monitored step is measured against: their examples, and the gradients of their losses."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geffect.core.architectures import Tokenizer
from geffect.core.devices import input_device
from geffect.core.distributed import assign_items, is_sharded, sum_gradients, sum_over_processes
from geffect.core.forward import IGNORE_INDEX, forward
from geffect.core.gradients import GradientBuffer, NamedTensors
from geffect.core.gram import Gram
from geffect.core.layers import TiedWeights
from geffect.core.model_state import ModelState
from geffect.data.checks import check_ids, warn_cut
from geffect.data.encode import EncodedExample, collate, encode_set, pad_id_of
from geffect.data.load import ExampleSet, load_set
from geffect.errors import GeffectError, shorten
from geffect.measurement.basis import Basis, Combinations, add
from geffect.measurement.measurement import Batch
from geffect.models.scoring import Likelihood, example_scores
from geffect.objectives.base import Counts, mean_nll

TargetSet = str | ExampleSet | Sequence[EncodedExample] | Sequence[Mapping[str, Sequence[int]]]
FORMS = "a set's name, geffect.load_set(…), or examples with input_ids and labels"


@dataclass(frozen=True)
class Target:
    """The encoded examples of a set, and the same in padded batches; ``name`` is the set's, or ``examples``."""

    name: str
    examples: list[EncodedExample]
    batches: list[Batch]

    @property
    def data(self) -> dict[str, Any]:
        """The set's entry in a record's environment."""
        text = json.dumps([[example.input_ids, example.labels] for example in self.examples])
        return {"set": self.name, "examples": len(self.examples), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def make_target(
    role: str,
    content: TargetSet,
    tokenizer: Tokenizer | None,
    batch_size: int,
    context: int | None,
    vocabulary: int | None = None,
) -> Target:
    """Read and batch the ``forget`` or ``retain`` set; refuse examples without a label, and tokens the model lacks.

    Encoded examples need no tokenizer. The model's positions (``context``) and tokens (``vocabulary``) are None where
    they are unknown.
    """
    name, examples = _examples(role, content, tokenizer, context)
    for example in examples:
        _check_labels(role, example)
    pad_id = 0 if tokenizer is None else pad_id_of(tokenizer)
    check_ids(examples, vocabulary, f"the {role} set", pad_id)
    warn_cut({f"the {role} set": examples})
    batches = [collate(examples[i : i + batch_size], pad_id) for i in range(0, len(examples), batch_size)]
    return Target(name, examples, batches)


def _examples(
    role: str, content: TargetSet, tokenizer: Tokenizer | None, context: int | None
) -> tuple[str, list[EncodedExample]]:
    if isinstance(content, str | ExampleSet):
        if tokenizer is None:
            raise GeffectError(f"The {role} set needs a tokenizer to be encoded with", remedy="Pass tokenizer=…")
        example_set = load_set(content) if isinstance(content, str) else content
        return example_set.name, encode_set(tokenizer, example_set, context=context)
    examples = [_encode(role, i, example) for i, example in enumerate(content)]
    if not examples:
        raise GeffectError(f"The {role} set has no example", remedy=f"Give {FORMS}")
    return "examples", examples


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


def _check_labels(role: str, example: EncodedExample) -> None:
    carrying = sum(each != IGNORE_INDEX for each in example.labels[1:])
    if len(example.labels) != len(example.input_ids) or not carrying:
        raise GeffectError(
            f"Example {example.index} of the {role} set has {len(example.labels)} labels "
            f"of {len(example.input_ids)} tokens, {carrying} of them with loss",
            remedy="Label every token: the answer with its own ids and the prompt with -100",
        )


def compute_target_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Mapping[str, Sequence[Batch]],
    tied: TiedWeights | None,
    state: ModelState,
) -> tuple[dict[str, NamedTensors], dict[str, Likelihood]]:
    """Each set's ∇R, R its token-mean NLL, and its scores, both summed over processes; a tied tensor is split by use.

    Every process gets the same batches and runs its share of them. The model is left as it was, and hooks on its
    parameters do not run. Under DDP the wrapper is bypassed, so that no all-reduce is triggered.
    """
    device = input_device(without_ddp(model))
    buffer = GradientBuffer(dict(parameters) | ({tied.head_name: tied.alias} if tied else {}))
    counts = {name: Counts.of(each) for name, each in batches.items()}
    scores = {name: torch.zeros(each.example, 3, dtype=torch.float64) for name, each in counts.items()}
    with state.preserve(), torch.enable_grad(), tied.untied() if tied else contextlib.nullcontext():
        for name, target_batches in batches.items():
            for batch, weight in assign_items(target_batches):
                outputs = forward(without_ddp(model), {key: tensor.to(device) for key, tensor in batch.items()})
                buffer.add(name, weight * mean_nll(outputs, counts[name]))
                if weight:
                    scores[name][batch["index"]] = example_scores(outputs)
    gradients = sum_gradients(buffer.gradients, buffer.parameters)
    return gradients, {name: Likelihood.from_examples(sum_over_processes(each)) for name, each in scores.items()}


def compute_gram(
    gradients: Mapping[str, NamedTensors], parameters: Mapping[str, nn.Parameter], tied: TiedWeights | None
) -> Gram:
    """All inner products of gradients by parameter, the same in every process; those of a tied tensor by use.

    ``gradients`` maps a name to this process's part of a gradient by parameter, ``forget`` and ``retain`` with the two
    uses of the tied tensor apart.
    """
    basis = Basis(tuple(gradients), tied)
    for name in parameters:
        embeds = {each: tensors.get(name) for each, tensors in gradients.items()}
        if tied is None or name != tied.name:
            basis.add(name, embeds)
        else:
            heads = {each: tensors.get(tied.head_name) for each, tensors in gradients.items()}
            basis.add(name, {each: add(embeds[each], heads[each]) for each in gradients}, embeds)
    basis.sum_up(sharded=is_sharded(parameters))
    return basis.combine(Combinations.everywhere({each: {each: 1.0} for each in gradients}), list(parameters))


def without_ddp(model: nn.Module) -> nn.Module:
    """The model without DDP's wrapper; an adapter, a compiled model and shards run as they are."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
