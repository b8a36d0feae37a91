"""A series of checkpoints, loaded one after the other: one model in memory, adapters exchanged on their base."""

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file

from geffect.inspection.places import Place
from geffect.models.builtin import is_built_in
from geffect.models.checkpoints import CHECKSUMS, check_checksums
from geffect.models.load import Loaded, base_of_adapter, model_errors, resolve, sha256_of


def walk(series: Sequence[Place], load: Callable[[str], Loaded]) -> Iterator[tuple[Place, Loaded]]:
    """Load each checkpoint; what was yielded before is no longer to be used.

    Args:
        series: the checkpoints.
        load: reads a model.

    Yields:
        The checkpoint, and its model and tokenizer.

    Raises:
        GeffectError: one cannot be read.
    """
    held: Loaded | None = None
    for place in series:
        source = place.spec if is_built_in(place.spec) else resolve(place.spec)
        if held is not None and isinstance(source, Path) and base_of_adapter(source) is not None:
            _exchange(held, source)
        else:
            held = None
            gc.collect()  # the model before may lie in cycles
            held = load(place.spec)
        yield place, held


def _exchange(held: Loaded, source: Path) -> None:
    """Put another adapter's weights where the one before has its own; `readable` saw that they fit."""
    from peft import set_peft_model_state_dict

    with model_errors(str(source)):
        if (source / CHECKSUMS).exists():
            check_checksums(source, "*.safetensors")
        set_peft_model_state_dict(held.model, load_file(source / "adapter_model.safetensors"))
    held.source, held.sha256 = str(source), sha256_of(source)
