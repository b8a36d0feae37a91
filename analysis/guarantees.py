"""Write ``figures/guarantees/`` and ``docs/results/guarantees.md``: what the rectifiers' guarantees are worth.

    python -m analysis.guarantees  (two minutes of processor time)

Every rectifier states to first order what a step does not do to a loss. The statement is about the gradient that is
descended, or about the optimizer's update. Here both are measured in float64, on the built-in model, under SGD, AdamW
and Muon, of all weights and of an adapter.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from geffect.core.architectures import Tokenizer
from geffect.core.distributed import num_processes, rank
from geffect.core.forward import add_positions, forward
from geffect.core.gradients import NamedTensors
from geffect.core.layers import trainable_parameters
from geffect.core.masks import GradientMask, pack
from geffect.data.encode import EncodedExample, collate, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.measurement.measurement import Batch, Measurement
from geffect.measurement.metric import adam_metric
from geffect.measurement.step import Step
from geffect.measurement.update import moved, snapshot
from geffect.models.load import add_lora
from geffect.objectives.base import window_counts
from geffect.objectives.registry import make_objective
from geffect.rectifiers.base import Rectifier
from geffect.rectifiers.registry import RULES, make_rectifier

OUT = Path(__file__).resolve().parents[1]
FROZEN = "frozen entries"
GUARANTEES: dict[str, dict[str, int]] = {  # rule → gradient g → s: of every direction d that it makes, s·⟨g, d⟩ ≥ 0
    "gru": {"retain_average": 1},
    "gru(metric=adam)": {"retain_average": 1},
    "gru(space=update)": {"retain_average": 1},
    "gru(space=update, metric=adam)": {"retain_average": 1},
    "gem(memory=3)": {"retain_0": 1, "retain_1": 1, "retain_2": 1},
    "gem(memory=3, space=update)": {"retain_0": 1, "retain_1": 1, "retain_2": 1},
    "gu(memory=3)": {"retain_0": 1, "retain_1": 1, "retain_2": 1},
    "pcgrad": {"retain": 1},
    "blur": {"objective": 1},
    "ngdiff": {"retain": 1, "forget": -1},
    "hamu": {"forget": -1},
    "orthograd(examples=3)": {name: 0 for name in ("example_0", "example_1", "example_2", "retain")},
    "sago": {"retain": 1},
    "disruption": {"retain": 1, "objective": 1},
    "consistent": {"objective": 1},
    "torchjd": {"objective": 1, "retain": 1},
    "grail": {FROZEN: 0},
    "memflex": {FROZEN: 0},
}
OPTIMIZERS, KINDS = ("sgd", "adamw", "muon"), ("full", "lora")
BATCH, MICRO_BATCHES = 2, 2


@dataclass(frozen=True)
class Start:
    """A model, of which every run has a copy; the encoded forget and retain examples; the id that pads."""

    model: Any
    sets: Mapping[str, Sequence[EncodedExample]]
    pad_id: int

    @classmethod
    def of(cls, model: Any, tokenizer: Tokenizer) -> "Start":
        """With the built-in authors."""
        sets = {role: encode_set(tokenizer, load_set(f"builtin:authors/{role}")) for role in ("forget", "retain")}
        return cls(model.double(), sets, pad_id_of(tokenizer))


class Optimizers:
    """Muon for matrices and AdamW for the rest, or one optimizer for all."""

    def __init__(self, name: str, parameters: Sequence[nn.Parameter]) -> None:
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        made: dict[str, Any] = {
            "sgd": lambda: [torch.optim.SGD(parameters, lr=0.05)],
            "adamw": lambda: [torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0)],
            "muon": lambda: [
                torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.0),
                *([torch.optim.AdamW(others, lr=3e-4, weight_decay=0.0)] if others else []),
            ],
        }
        self.all: list[torch.optim.Optimizer] = made[name]()

    def step(self) -> None:
        """Step each."""
        for each in self.all:
            each.step()


def windows(start: Start, steps: int, domains: Sequence[str]) -> Iterator[list[dict[str, Batch]]]:
    """Each step's micro-batches of forget and retain examples, the next ones every time."""
    names = [f"{role}/{domain}" if domain else role for domain in domains for role in start.sets]
    places = {name: itertools.count(17 * i) for i, name in enumerate(names)}
    for _ in range(steps):
        window = []
        for _ in range(MICRO_BATCHES):
            chosen = {name: start.sets[name.partition("/")[0]] for name in names}
            rows = {name: [each[next(places[name]) % len(each)] for _ in range(BATCH)] for name, each in chosen.items()}
            window.append({name: add_positions(collate(each, start.pad_id)) for name, each in rows.items()})
        yield window


def half(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Every other entry of every tensor."""
    return {name: (torch.arange(p.numel()) % 2 == 0).view_as(p) for name, p in parameters.items()}


def measure(
    text: str, optimizer: str, kind: str, start: Start, steps: int, objective: str = "ga"
) -> list[dict[str, Any]]:
    """A row a step: how far the rectified gradient and the applied update break what a rule states.

    A violation is max −s·cos(g, d) over the gradients g of its guarantee, 0 where it holds; |cos| where s is 0, and of
    frozen entries their share of the length.
    """
    model = deepcopy(start.model)
    model = add_lora(model, rank=4, seed=0) if kind == "lora" else model
    parameters = trainable_parameters(model.double())
    stepper = Optimizers(optimizer, list(parameters.values()))
    rule = RULES[text.partition("(")[0]]
    rectifier = make_rectifier(text) if issubclass(rule, Rectifier) else Rectifier()
    frozen = None if issubclass(rule, Rectifier) else {n: pack(each) for n, each in half(parameters).items()}
    run = Measurement(
        parameters,
        lambda batch, needs, *, dropout: forward(model.eval(), batch, needs),
        make_objective(objective),
        rectifier,
        keep=True,
        frozen=None if frozen is None else GradientMask(parameters, frozen, frozen),
        preconditioner=adam_metric(parameters, lambda: stepper.all[0]),
    )
    rows = []
    for place, window in enumerate(windows(start, steps, ("a", "b") if rectifier.by_domain else ("",))):
        own = window[rank() :: num_processes()]
        step = Step(run, {name: each.over_processes() for name, each in window_counts(own).items()}, measure=True)
        step.ascend(own)
        for i, batches in enumerate(own):
            step.micro_batch(batches, last=i == len(own) - 1)
        step.finish()
        names = {*GUARANTEES[text], "objective", "retain"} - {FROZEN}
        gradients = {name: dict(step.gradient(name)) for name in names}
        rectified = {name: each.clone() for name, each in step.gradient("rectified").items()}
        metric = {name: run.preconditioner(name) for name in parameters} if rectifier.metric == "adam" else {}  # type: ignore[misc]
        before = snapshot(parameters)
        stepper.step()
        step.after(dict.fromkeys(parameters, 0.0))
        applied = {name: moved(before[name], p) for name, p in parameters.items()}
        rows.append({
            "step": place,
            "gradient": violation(text, gradients, rectified, metric),
            "applied": violation(text, gradients, applied, {}),
            "length": length(applied),
            "retain": -cosine(gradients["retain"], applied, {}),
        })
    return rows


def violation(
    text: str, gradients: Mapping[str, NamedTensors], direction: NamedTensors, metric: Mapping[str, Tensor | None]
) -> float:
    """How far a direction breaks what a rule states; 0: not."""
    worst = 0.0
    for name, sign in GUARANTEES[text].items():
        if name == FROZEN:
            still = {n: t * half({n: nn.Parameter(t)})[n] for n, t in direction.items()}
            worst = max(worst, length(still) / length(direction))
        else:
            c = cosine(gradients[name], direction, metric)
            worst = max(worst, abs(c) if sign == 0 else -sign * c)
    return worst


def cosine(ours: NamedTensors, theirs: NamedTensors, metric: Mapping[str, Tensor | None]) -> float:
    """The cosine of two gradients; with a metric M, of their inner product with M⁻¹."""
    roots = {name: None if m is None else m.sqrt() for name, m in metric.items()}
    a, b = ({n: t if (r := roots.get(n)) is None else t / r for n, t in each.items()} for each in (ours, theirs))
    product = sum((float((a[n] * b[n]).sum()) for n in a if n in b), 0.0)
    lengths = length(a) * length(b)
    return product / lengths if lengths else 0.0


def length(gradient: NamedTensors) -> float:
    """‖gradient‖₂."""
    return math.sqrt(sum(float(each.double().square().sum()) for each in gradient.values()))


def table(start: Start, steps: int, texts: Sequence[str] = tuple(GUARANTEES)) -> pd.DataFrame:
    """A row a rule, optimizer and kind of weights: the worst violations, and what became of the retain loss.

    ``applied_steps`` is the share of steps whose applied update breaks the guarantee by more than 1e-6, ``retain`` the
    mean of cos(g_r, Δθ) with this step's retain gradient g_r: above 0 the step raises the retain loss.
    """
    rows = []
    for text, optimizer, kind in itertools.product(texts, OPTIMIZERS, KINDS):
        shared = {"rule": text, "optimizer": optimizer, "weights": kind, "refused": ""}
        try:
            frame = pd.DataFrame(measure(text, optimizer, kind, start, steps))
        except GeffectError as error:
            rows.append(shared | {"refused": str(error)})
            continue
        worst = {name: frame[name].max() for name in ("gradient", "applied")}
        share = float((frame["applied"] > 1e-6).mean())
        rows.append(shared | worst | {"applied_steps": share, "retain": frame["retain"].mean()})
    return pd.DataFrame(rows)


def page(frame: pd.DataFrame, steps: int) -> str:
    """The page of the documentation, of the table."""
    lines = [*HEAD.format(steps=steps).splitlines(), ""]
    for kind, title in (("full", "All weights"), ("lora", "An adapter of rank 4")):
        lines += [f"## {title}", "", "| rule | gradient | SGD | AdamW | Muon | retain: SGD | AdamW | Muon |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for rule, rows in frame[frame["weights"] == kind].groupby("rule", sort=False):
            by = {row["optimizer"]: row for row in rows.to_dict("records")}
            cells = [_applied(by[each]) for each in OPTIMIZERS]
            cells += ["" if by[each]["refused"] else f"{by[each]['retain']:+.3f}" for each in OPTIMIZERS]
            lines.append(f"| `{rule}` | {_number(rows['gradient'].max())} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _applied(row: Mapping[Any, Any]) -> str:
    return "refused" if row["refused"] else f"{_number(row['applied'])} ({row['applied_steps']:.0%})"


def _number(value: float) -> str:
    return "0" if value < 1e-10 else f"{value:.0e}" if value < 1e-3 else f"{value:.3f}"


HEAD = """# What the rectifiers' guarantees are worth

*Written by `python -m analysis.guarantees` from `figures/guarantees/guarantees.csv`.*

Every rectifier says to first order what a step does not do: GRU, that it does not conflict with the average of the
retain gradients, GEM, with none of the last ones, BLUR, that the objective falls. The statement is exact about the
gradient that is descended (or, in the space of updates, about the update). An optimizer with momentum, or that scales
entries, makes another direction of it. This page tells how much is left, measured on the built-in model: gradient
ascent (`ga`), {steps} steps of two micro-batches of two examples, float64; SGD at 0.05, AdamW at 3e-4, Muon at 1e-3
(matrices; AdamW for the rest).

*gradient*: the worst violation by the rectified gradient, −cos with what is protected, over steps and optimizers; 0
stands for less than 1e-10. Rules in `space=update` state nothing about it. *SGD, AdamW, Muon*: the worst violation by
the applied update, and the share of steps that have one above 1e-6. *retain*: the mean of cos(g_r, Δθ) with the
retain gradient g_r of the same step; above 0 the step raises the retain loss. `grail` and `memflex` freeze every
other entry here, and a violation is the length of what moved."""


def main(steps: int, out: Path) -> None:
    """Measure, and write the table and the page."""
    from geffect.api import load_model

    loaded = load_model("builtin:tiny")
    texts = [text for text in GUARANTEES if text != "torchjd" or find_spec("quadprog")]  # TorchJD and its extra
    frame = table(Start.of(loaded.model, loaded.tokenizer), steps, texts)
    (out / "figures" / "guarantees").mkdir(parents=True, exist_ok=True)
    (out / "docs" / "results").mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "figures" / "guarantees" / "guarantees.csv", index=False, float_format="%.4g")
    (out / "docs" / "results" / "guarantees.md").write_text(page(frame, steps), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run")
    parser.add_argument("--out", type=Path, default=OUT, help="where figures/ and docs/ lie")
    asked = parser.parse_args()
    main(asked.steps, asked.out)
