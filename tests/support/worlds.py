"""Everything an objective may be handed, twice: padded in batches for the fast path, row by row for its twin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geffect.core.forward import Outputs, forward
from geffect.objectives.base import Counts, Objective
from tests.support.cases import VOCABULARY, gpt2, make_batch
from tests.support.steps import Batches, make_measurement

LENGTHS = {"forget": [9, 5, 7], "alternative": [6, 8, 4], "general": [7, 3, 5], "retain": [4, 8, 6]}
LABELLINGS = [f"{kind}_{variant}_labels" for kind in ("random", "adversarial") for variant in ("aligned", "knowundo")]
SKIPPED = "skipped_1_labels"


@dataclass(frozen=True)
class World:
    """A float64 model, a reference unlike it, and batches of three rows a set.

    Attributes:
        model: the model.
        reference: the frozen start it has left.
        batches: set → padded batch, with reference NLLs and other labels.
    """

    model: Any
    reference: Any
    batches: Batches

    def outputs(self, objective: Objective, name: str, batches: Batches | None = None) -> Outputs:
        """What the fast path hands the objective's terms on one set."""
        measurement = make_measurement(self.model, objective.text, reference=self.reference)
        return measurement.outputs(name, batches or self.batches, dropout=False)

    def loss(self, objective: Objective, batches: Batches | None = None, counts: Any = None) -> Tensor:
        """The objective's whole loss, by the fast path."""
        batches = batches or self.batches
        counts = counts or {name: Counts.of([batch]) for name, batch in batches.items()}
        sets = [name for name in batches if objective.on(name)]
        return torch.stack([
            objective.loss(name, self.outputs(objective, name, batches), counts) for name in sets
        ]).sum()

    def places(self, name: str) -> range:
        """The positions of a set's rows."""
        return range(len(self.batches[name]["labels"]))

    def log_p(self, name: str, row: int, *, start: bool = False) -> Tensor:
        """``[T, V]`` log-probabilities of one unpadded row, by the model or by its start."""
        logits: Tensor = self._run(name, row, start=start).logits[0]
        return logits.log_softmax(-1)

    def hidden(self, name: str, row: int, layer: int, *, start: bool = False) -> Tensor:
        """``[T, d]`` one hidden state of one unpadded row."""
        states: Tensor = self._run(name, row, start=start).hidden_states[layer][0]
        return states

    def nll(self, name: str, row: int, labels: str = "labels", *, start: bool = False) -> Tensor:
        """``[n]`` −log p of one row's labeled tokens, picked one after another."""
        log_p = self.log_p(name, row, start=start)
        chosen = self.batches[name][labels][row]
        return torch.stack([-log_p[t - 1, chosen[t]] for t in self.labeled(name, row, labels)])

    def ref(self, name: str, row: int) -> Tensor:
        """``[n]`` the same under the start, without a graph."""
        return self.nll(name, row, start=True).detach()

    def labeled(self, name: str, row: int, labels: str = "labels") -> list[int]:
        """The positions of one row's labeled tokens; nothing predicts the first."""
        length = int(self.batches[name]["attention_mask"][row].sum())
        return [t for t in range(1, length) if self.batches[name][labels][row, t] != -100]

    def _run(self, name: str, row: int, *, start: bool) -> Any:
        batch = self.batches[name]
        length = int(batch["attention_mask"][row].sum())
        model = self.reference if start else self.model
        return model(input_ids=batch["input_ids"][row, None, :length], output_hidden_states=True)


def make_world(make: Callable[[], Any] = lambda: gpt2().double()) -> World:
    """A world of a model and a reference that differs from it on every token."""
    model, reference = make(), make()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.3)
    batches = {name: make_batch(lengths, seed=seed) for seed, (name, lengths) in enumerate(LENGTHS.items())}
    for batch in batches.values():
        batch["ref_nll"] = forward(reference, batch).nll.detach()
    return World(model, reference, batches | {"forget": batches["forget"] | _relabeled(batches["forget"])})


def one_token_world() -> World:
    """Rows with one labeled token each."""
    world = make_world()
    batch = make_batch([5, 5, 5], prompt=4, seed=3)
    batch["ref_nll"] = forward(world.reference, batch).nll.detach()
    return World(world.model, world.reference, {"forget": batch})


def at_the_start(world: World) -> World:
    """The same batches while the model is still its reference."""
    batches = {
        name: batch | {"ref_nll": forward(world.model, batch).nll.detach()} for name, batch in world.batches.items()
    }
    return World(world.model, world.model, batches)


def padded(batches: Batches, width: int) -> Batches:
    """More padding on every batch."""
    fills = {"labels": -100} | dict.fromkeys([*LABELLINGS, SKIPPED], -100)
    return {
        name: {key: torch.nn.functional.pad(t, (0, width), value=fills.get(key, 0)) for key, t in batch.items()}
        for name, batch in batches.items()
    }


def parts(batches: Batches, sizes: Sequence[int]) -> list[Batches]:
    """Micro-batches of these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [
        {name: {key: t[end - size : end] for key, t in batch.items()} for name, batch in batches.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]


def _relabeled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other labels: on the answer's tokens, on the whole row, or on the answer without its first token."""
    found = {}
    for seed, name in enumerate(LABELLINGS):
        drawn = torch.randint(VOCABULARY, batch["labels"].shape, generator=torch.Generator().manual_seed(90 + seed))
        carries = batch["attention_mask"].bool() if "knowundo" in name else batch["labels"] != -100
        found[name] = drawn.where(carries, -100)
    first = (batch["labels"] != -100).cumsum(1) == 1
    return found | {SKIPPED: batch["labels"].masked_fill(first, -100)}
