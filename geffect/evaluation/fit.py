"""The memory of an evaluation, estimated before its model is loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from geffect.config import EvaluateConfig
from geffect.data.encode import EncodedExample, encode_examples
from geffect.data.load import ExampleSet
from geffect.training.memory import MemoryEstimate, evaluation_memory
from geffect.training.setup import encode, load_outline


def estimate_memory(config: EvaluateConfig, sets: Iterable[ExampleSet]) -> MemoryEstimate:
    """What the evaluation of sets takes, from the outline of the model and the longest examples of each set."""
    loaded = load_outline(config, config.model)
    encoder = partial(encode, config, loaded, by=encode_examples)
    encoded: dict[str, Sequence[EncodedExample]] = {
        str(i): encoder(_longest(examples, config.batch_size)) for i, examples in enumerate(sets)
    }
    return evaluation_memory(config, loaded.model, encoded) if encoded else MemoryEstimate()


def _longest(examples: ExampleSet, count: int) -> ExampleSet:
    """The examples with the most characters."""
    by_length = sorted(examples, key=lambda each: -sum(len(str(each[field])) for field in examples.FIELDS))
    return replace(examples, examples=tuple(by_length[:count]))
