"""The memory of an evaluation, estimated before its model is loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from geffect.config import EvaluateConfig
from geffect.data.encode import EncodedExample, encode_examples
from geffect.data.load import ExampleSet
from geffect.evaluation.suites import Part
from geffect.training.memory import MemoryEstimate, evaluation_memory
from geffect.training.setup import encode, load_outline

WRITES = ("rouge_l_recall", "rouge_l_f1", "extraction_strength_generated", "verbmem", "knowmem")  # ask for answers


def estimate_memory(config: EvaluateConfig, sets: Iterable[tuple[Part, ExampleSet]]) -> MemoryEstimate:
    """What the evaluation of sets takes, from the outline of the model and the longest examples of each set."""
    sets = list(sets)
    writes = any(name in WRITES for part, _ in sets for name in part.metrics)
    loaded = load_outline(config, config.model)
    encoder = partial(encode, config, loaded, by=encode_examples)
    encoded: dict[str, Sequence[EncodedExample]] = {
        part.name: encoder(_longest(examples, config.batch_size)) for part, examples in sets
    }
    return evaluation_memory(config, loaded.model, encoded, writes=writes) if encoded else MemoryEstimate()


def _longest(examples: ExampleSet, count: int) -> ExampleSet:
    """The examples with the most characters."""
    by_length = sorted(examples, key=lambda each: -sum(len(str(each[field])) for field in examples.FIELDS))
    return replace(examples, examples=tuple(by_length[:count]))
