"""What is wrong with a set-up before a run is spent on it: each finding with what was found and what to do."""

from collections.abc import Iterator

from geffect.config import UnlearnConfig
from geffect.core.splits import TARGETS, split_names
from geffect.data.encode import collate, pad_id_of
from geffect.preflight.finding import Finding
from geffect.preflight.numerics import derivative, determinism, precision
from geffect.preflight.rows import ends, known, masks, shared
from geffect.preflight.setup import batches, memory, tie, weights
from geffect.training.setup import Start

__all__ = ["Finding", "examine"]


def examine(config: UnlearnConfig, start: Start) -> Iterator[Finding]:
    """Look at a run that has not begun.

    Args:
        config: of the run.
        start: its model and sets.

    Yields:
        The findings, cheap ones first.
    """
    model, tokenizer = start.loaded.model, start.loaded.tokenizer
    yield memory(config, start)
    yield batches(config, start)
    yield weights(config, model)
    yield tie(model)
    yield from shared(start.sets)
    for name, rows in start.encoded.items():
        yield masks(name, rows)
        yield ends(name, rows, tokenizer)
    for name, rows in start.encoded.items():
        yield known(name, rows, model, pad_id_of(tokenizer))
    if any(p.requires_grad for p in model.parameters()):
        probe = {
            role: collate(start.encoded[split_names(role, start.encoded)[0]][: config.batch_size], pad_id_of(tokenizer))
            for role in TARGETS
        }
        yield determinism(model, probe)
        yield derivative(model, probe)
        yield from precision(config, model, probe)
