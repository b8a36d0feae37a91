"""The budgets of this toolkit, what was found, and the table of both."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from analysis.benchmarks.timing import StandardErrors

NOT_RUN = "not run"
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Budget:
    """What something may cost.

    Attributes:
        what: in words.
        limit: the highest median allowed (the lowest, of a speed-up); None where there is none.
        unit: ``×``, ``s``, ``GB`` or ``gradients``.
        at_least: the limit is a lower one.
    """

    what: str
    limit: float | None
    unit: str = "×"
    at_least: bool = False

    @property
    def told(self) -> str:
        """The limit in words."""
        if self.limit is None:
            return "–"
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"

    def met(self, found: StandardErrors) -> bool | None:
        """Whether a median stays within; None without a limit."""
        if self.limit is None:
            return None
        return found.median >= self.limit if self.at_least else found.median <= self.limit


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        key: of its budget, in `BUDGETS`.
        model: what it was measured on.
        ours: what was found, in the budget's unit.
        published: the same by the published protocol.
        note: what a reader should know of it.
    """

    key: str
    model: str
    ours: StandardErrors
    published: StandardErrors | None = None
    note: str = ""

    def line(self) -> dict[str, Any]:
        """For JSON, its budget included."""
        budget = BUDGETS[self.key]
        return asdict(self) | {"budget": asdict(budget), "met": budget.met(self.ours)}


def read_findings(benchmarks: Mapping[str, Any]) -> list[Finding]:
    """The findings of a JSON file.

    Args:
        benchmarks: its content, name → benchmark.

    Returns:
        Their findings.
    """
    lines = [line for each in benchmarks.values() for line in each["findings"]]
    return [
        Finding(
            line["key"],
            line["model"],
            StandardErrors(**line["ours"]),
            StandardErrors(**line["published"]) if line["published"] else None,
            line["note"],
        )
        for line in lines
    ]


TRAININGS = {"lora": "TRL's SFTTrainer with LoRA and packing", "full": "full fine-tuning by transformers.Trainer"}
WATCHERS = {
    "1": "one target of 8 examples",
    "2": "two targets of 8 examples",
    "4": "four targets of 8 examples",
    "wandb": "wandb.watch(log='gradients')",
    "bergson": "bergson's callback, which looks at every step",
}
PLAIN = "against plain forward + backward of the same two batches"
BUDGETS = {
    "bare": Budget("a GA step without any diagnostics, against plain forward + backward of its forget batch", None),
    "ga": Budget(f"a GA step with the gradients objective, forget, retain, {PLAIN}", 1.05),
    "gru": Budget(f"a GA + GRU step without diagnostics, {PLAIN}", None),
    "gru diagnostics": Budget("a GA + GRU step, diagnostics on against off", 1.05),
    "wga": Budget(f"a WGA step with all gradients, {PLAIN} (floor 1.33 ×)", 1.40),
    "npo": Budget(f"an NPO step with all gradients, {PLAIN} (floor 1.33 ×)", 1.40),
    "tnpo": Budget(f"a TNPO step with all gradients, {PLAIN} (floor 1.33 ×)", 1.40),
    "every": Budget("a pure GA run diagnosed on every step, against one that is not: the retain pass too", None),
    "tenth": Budget("a pure GA run diagnosed on every tenth step, against one that is not", None),
    "memory": Budget(
        "peak memory of a GA step with its gradients, against the plain one, above the loaded model", 1.10
    ),
    "memory gradient": Budget(
        "peak memory of a further independent gradient (NPO's forget gradient)", 1.1, "gradients"
    ),
    "tokens": Budget("token effects of a batch over the whole model, against one forward pass", 3),
    "tokens by group": Budget("token effects of a batch in all five groups, against one forward pass", 11),
    "tokens speed": Budget(
        "token effects: times faster than a backward pass a token, examples alone", 100, at_least=True
    ),
    "tokens speed long": Budget("the same of answers of 255 tokens", 100, at_least=True),
    "peer pcgrad": Budget(f"a GA + GRU step with all its gradients, beside TorchJD's PCGrad; both {PLAIN}", None),
    "peer upgrad": Budget(f"the same beside TorchJD's UPGrad; both {PLAIN}", None),
    "peer npo": Budget(f"an NPO + GD step with all its gradients, beside open-unlearning's; both {PLAIN}", None),
    "peer vmap": Budget(
        "effects of every forget example, beside gradients by torch.func.vmap; both against one forward pass", None
    ),
    "peer opacus": Budget("the same beside opacus; both against one forward pass", None),
    "localize": Budget("localization of four sets (masks, Jaccard, mean gradients), against its passes alone", None),
    "localize masks": Budget("localization of four sets, masks alone, against its passes alone", 1.10),
    "evaluation": Budget("loss and accuracy of 160 examples, against one forward pass at labeled positions", 1.2),
    "monitor": Budget("what a monitor adds to a step, two targets, against plain passes over these targets", 1.10),
    "monitor run": Budget("a training monitored every tenth step, two targets as large as its batch", None),
    **{
        f"watch {key} {name}": Budget(f"{training} watched each tenth step by {watcher}, against plain", None)
        for key, training in TRAININGS.items()
        for name, watcher in WATCHERS.items()
    },
    **{
        f"watch memory {key} {name}": Budget(f"peak memory of {training} watched by {watcher}, above the model", None)
        for key, training in TRAININGS.items()
        for name, watcher in WATCHERS.items()
    },
    "help": Budget("geffect --help (published: importing Trainer and peft alone)", 0.3, "s"),
    "typo": Budget("a mistyped name, until it is refused", 0.5, "s"),
    "record": Budget("reading a record of 5,000 SmolLM2 steps by group", 30, "s"),
    "record memory": Budget("peak memory of that", 1, "GB"),
    "compare": Budget("comparing eight runs, a run, against one alone", 1.1),
    "growth, tokens": Budget("a GA step grows with tokens an example, to the power", None, ""),
    "growth, layers": Budget("a GA step grows with layers, to the power", None, ""),
    "growth, examples": Budget("a GA step grows with examples, to the power", None, ""),
    "growth, steps": Budget("reading a record grows with its steps, to the power", None, ""),
    "growth, checkpoints": Budget("inspecting grows with checkpoints, to the power", None, ""),
    "demo first": Budget("geffect demo, the tiny model fitted first", 240, "s"),
    "demo": Budget("geffect demo, the tiny model cached", 120, "s"),
    "suite": Budget("make test", 600, "s"),
}


def table(findings: Iterable[Finding]) -> Table:
    """All budgets, with what was found.

    Args:
        findings: in any order; a budget without one is said not to have been run.

    Returns:
        The table.
    """
    made = Table("what", "model", "ours", "budget", "published protocol", "met?", show_lines=True)
    found = list(findings)
    for key, budget in BUDGETS.items():
        own = [each for each in found if each.key == key]
        for each in own:
            met = {None: "–", True: "yes", False: "no"}[budget.met(each.ours)]
            other = NOT_INSTALLED if each.note.endswith(NOT_INSTALLED) else "–"
            published = _told(each.published, budget.unit) if each.published else other
            made.add_row(budget.what, each.model, _told(each.ours, budget.unit), budget.told, published, met)
        if not own:
            made.add_row(budget.what, "–", NOT_RUN, budget.told, "–", "–")
    return made


def _told(found: StandardErrors, unit: str) -> str:
    told = f"{_three(found.median)} {unit}".strip()
    return told if found.repeats == 1 else f"{told} ({_three(found.low)}–{_three(found.high)})"


def _three(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
