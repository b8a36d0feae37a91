"""What the variants share: one model, one forget and one retain batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geffect.api import load_model
from geffect.core.forward import Outputs, forward
from geffect.core.gradients import NamedTensors, capture_gradients
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.data.encode import collate, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.step import Step
from geffect.objectives.base import Counts, mean_nll, window_counts
from geffect.objectives.registry import make_objective
from geffect.rectifiers.registry import make_rectifier

BUILT_IN = {"forget": "builtin:authors/forget", "retain": "builtin:authors/retain"}
TOFU = {"forget": "tofu:forget01", "retain": "tofu:retain99"}


@dataclass(frozen=True)
class Setting:
    """A model in evaluation mode, and the batches every variant sees.

    Attributes:
        name: the model's.
        model: a causal language model.
        batches: ``forget`` (with its reference NLLs) and ``retain``.
    """

    name: str
    model: Any
    batches: dict[str, Batch]

    def mean_nll(self, name: str) -> Tensor:
        """R of one batch, with a graph."""
        batch = self.batches[name]
        return mean_nll(forward(self.model, batch), Counts.of([batch]))

    def of_random_examples(self, examples: int, tokens: int) -> "Setting":
        """The same model with other forget examples: random ones of equal length, labeled throughout."""
        forget = random_batch(self.model.config.vocab_size, examples, tokens, torch.Generator().manual_seed(0))
        return replace(self, batches=self.batches | {"forget": on_device(forget, self.model.device)})

    def clear(self) -> None:
        """Leave no gradient behind."""
        self.model.zero_grad(set_to_none=True)

    def direction(self) -> NamedTensors:
        """∇R of the retain batch."""
        return capture_gradients(self.model, {"retain": lambda: self.mean_nll("retain")})["retain"]

    def measurement(self, objective: str, rectifier: str = "none") -> Measurement:
        """What steps of an objective share, as the trainer makes it."""

        def run(batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
            return forward(self.model, batch, needs)

        tie = find_tied_weights(self.model)
        return Measurement(
            trainable_parameters(self.model), run, make_objective(objective), make_rectifier(rectifier), tie=tie
        )

    def stepping(self, objective: str, rectifier: str = "none", *, measure: bool = True) -> Callable[[], Measured]:
        """A function that takes one step, all but the optimizer's, and leaves its gradient in ``.grad``."""
        measurement, counts = self.measurement(objective, rectifier), window_counts([self.batches])

        def step() -> Measured:
            taken = Step(measurement, counts, measure=measure)
            taken.micro_batch(self.batches, last=True)
            return taken.finish()

        return step

    def plain(self, *names: str) -> Callable[[], None]:
        """A function that runs nothing but a forward and a backward pass over the named batches."""

        def passes() -> None:
            for name in names:
                self.mean_nll(name).backward()

        return passes


def random_batch(vocabulary: int, examples: int, tokens: int, generator: torch.Generator) -> Batch:
    """Random examples of equal length, labeled throughout."""
    ids = torch.randint(vocabulary, (examples, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def make_setting(
    spec: str, examples: int = 8, data_dir: Path | None = None, device: torch.device | str | None = None
) -> Setting:
    """Load a model and the first examples of two sets.

    Args:
        spec: of the model.
        examples: of each batch.
        data_dir: where ``tofu/*.json`` lies; without it the built-in authors are used.
        device: of the model and its batches; that of the loaded model by default.

    Returns:
        The setting.
    """
    loaded = load_model(spec)
    model, batches = loaded.model.eval(), {}
    if device is not None:
        model.to(device)
    for name, source in (TOFU if data_dir else BUILT_IN).items():
        encoded = encode_set(loaded.tokenizer, load_set(f"{source}[:{examples}]", data_dir))
        batches[name] = on_device(collate(encoded, pad_id_of(loaded.tokenizer)), model.device)
    with torch.no_grad():
        batches["forget"]["ref_nll"] = forward(model, batches["forget"]).nll
    return Setting(spec, model, batches)
