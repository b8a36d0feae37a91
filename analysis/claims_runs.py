"""What `analysis.claims` runs: every run of one seed by name, made where a claim asks for it, and read as frames."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import filter as matching
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import frontier
from analysis.claims import LEVEL, UPPER
from analysis.grail_settings import COMMON, DOMAINS, METHODS, REAL, REGION, method
from analysis.grail_tables import metrics
from analysis.prediction_study import OPTIMIZERS
from analysis.runs import AUTHORS, DONE, ensure, inspected, remove_checkpoints
from geffect.core.effects import cosines
from geffect.models.builtin import BUILT_IN
from geffect.record.frames import read, read_points, read_prediction, read_steps
from geffect.reports.compare import at_checkpoints, descended, whole_overlaps

Settings = dict[str, Any]
WEIGHTS = ("0.3", "1", "3")
SECONDS = {"start": 76, "curve": 12, "checkpoints": 30, "prediction": 21, "localized": 10, "domains": 11}
SHARES = (0.05, 0.1, 0.2, 0.5)
START, FITTED = "start", "start of domains"


class Planned(NamedTuple):
    """A run.

    Attributes:
        kind: ``start``, ``curve``, ``checkpoints``, ``prediction``, ``localized`` or ``domains``.
        settings: of its verb; ``@NAME`` stands for another run's directory.
    """

    kind: str
    settings: Settings


@dataclass(frozen=True)
class Model:
    """What the two models differ in.

    Attributes:
        starts: settings of ``geffect finetune`` by the start's name.
        authors: of curves and checkpoints.
        domains: of unlearning two domains.
        at: steps of checkpoints.
        layers: hidden states of RMU.
        rates: learning rates on the domains.
        probes: examples of each set whose losses are predicted.
        seconds: of one run of each kind, on one core.
    """

    starts: Mapping[str, Settings]
    authors: Settings
    domains: Settings
    at: tuple[int, ...]
    layers: tuple[int, int, int]
    rates: Mapping[str, float]
    probes: int
    seconds: Mapping[str, float]


def tiny(_start: str = "", _data: str = "") -> Model:
    """The built-in models, both starts fitted anew from the untrained ones."""
    starts = {}
    for name, model in ((START, "builtin:tiny"), (FITTED, "builtin:tiny-domains")):
        sets, recipe, _ = BUILT_IN[model]
        starts[name] = recipe | {"model": f"{model}-untrained", "train": list(sets)}
    authors = AUTHORS | {"model": f"@{START}", "learning_rate": 3e-4, "steps": 60}
    domains = COMMON | {"model": f"@{FITTED}", "domain": [f"{name}={source}" for name, source in DOMAINS.items()]}
    rates = {"low": 1e-4, "middle": 3e-4, "high": 1e-3}
    return Model(starts, authors, domains, tuple(range(4, 25, 4)), (1, 3, 6), rates, 32, SECONDS)


def smollm2(start: str, data: str) -> Model:
    """SmolLM2 fitted to TOFU in ``start`` (where it may hold ``{seed}``), and with an adapter fitted to two domains.

    Seconds: of a curve by its first two steps, of domains by the runs of docs/results/grail.md, of others by passes.
    """
    fitted, domains = REAL(data, Path())
    sets = {"forget": "tofu:forget01[:12]", "retain": "tofu:retain99[40:56]", "heldout": "tofu:retain99[:12]"}
    authors = frontier.REAL | sets | {"model": start, "data_dir": data, "steps": 30}
    domains |= {"model": f"@{FITTED}", "batch_size": 2, "steps": 20}
    rates = {"low": 1e-3, "middle": 2e-3, "high": 4e-3}
    seconds = {"start": 900, "curve": 200, "checkpoints": 200, "prediction": 400, "localized": 200, "domains": 160}
    return Model({FITTED: fitted}, authors, domains, (3, 6, 9, 12), (5, 15, 30), rates, 8, seconds)


MODELS: dict[str, Callable[[str, str], Model]] = {"tiny": tiny, "smollm2": smollm2}


def planned(model: Model, seed: int, steps: int = 0) -> dict[str, Planned]:
    """Every run of a seed by name; ``steps`` (0: all) bounds each, its start included, to try the study out."""
    found = {name: Planned("start", settings) for name, settings in model.starts.items()}
    found |= dict([*_curves(model), *_checkpoints(model, steps), *_predictions(model), *_domains(model, seed)])
    for name, (kind, settings) in found.items():
        own: Settings = {"seed": seed, "model": settings["model"].replace("{seed}", str(seed))}
        if steps and kind != "localized":
            own["steps"] = min(steps, settings.get("steps", steps))
        found[name] = Planned(kind, settings | own)
    return found


def _curves(model: Model) -> Iterator[tuple[str, Planned]]:
    def curve(objective: str, **changes: Any) -> Planned:
        often = {"evaluate": ["forget", "heldout"], "evaluate_every": 1, "diagnose_every": model.authors["steps"]}
        stop = {"stop": f"forget_loss(level={LEVEL + 0.2:g})"}
        return Planned("curve", model.authors | often | stop | {"objective": objective} | changes)

    for name in ("GA", "NPO", "WGA", "SimNPO", "TNPO", "WTNPO"):
        sets = {"evaluate": ["forget", "retain", "heldout"]} if name == "GA" else {}
        yield name, curve(name.lower(), **sets, **({"diagnose_every": 1} if name in ("GA", "NPO", "WGA") else {}))
        if name in ("GA", "NPO", "WGA", "SimNPO"):
            yield f"{name}, GRU", curve(name.lower(), **sets, rectifier="gru")
    for weight in WEIGHTS:
        for term in ("GD", "KL", "RR"):
            yield f"GA + {weight} {term}", curve(f"ga + {weight}*{term.lower()}", evaluate_every=2)
        yield f"GA + {weight} GD, GRU", curve(f"ga + {weight}*gd", evaluate_every=2, rectifier="gru")
    low, middle, high = model.layers
    grid = {"": (middle, 20), " low layer": (low, 20), " high layer": (high, 20), " small c": (middle, 5)}
    end = {
        "evaluate": ["forget"],
        "steps": model.at[-1],
        "evaluate_every": model.at[-1],
        "diagnose_every": model.at[-1],
    }
    for name, (layer, c) in (grid | {" large c": (middle, 80)}).items():
        yield f"RMU{name}", Planned("curve", model.authors | end | {"objective": f"rmu(layer={layer}, c={c})"})


def _checkpoints(model: Model, steps: int) -> Iterator[tuple[str, Planned]]:
    at = tuple(range(1, steps + 1)) if steps else model.at
    once = {"steps": at[-1], "save_every": at[0], "diagnose_every": at[-1], "evaluate_every": at[-1]}
    for name in ("GA", "WGA", "NPO", "PO"):
        run = model.authors | once | {"objective": name.lower(), "evaluate": ["forget"]}
        yield f"{name} checkpoints", Planned("checkpoints", run)


def _predictions(model: Model) -> Iterator[tuple[str, Planned]]:
    for name, (optimizer, rate) in OPTIMIZERS.items():
        how = {"optimizer": optimizer, "learning_rate": rate, "prediction": model.probes, "objective": "ga"}
        length = {"steps": 25, "evaluate_every": 25, "evaluate": ["forget"]}
        yield f"GA by {name.split()[0]}", Planned("prediction", model.authors | how | length)


def _domains(model: Model, seed: int) -> Iterator[tuple[str, Planned]]:
    base = model.domains | {"diagnose_every": model.domains["steps"], "evaluate_every": model.domains["steps"]}

    def rated(name: str, settings: Settings, *rates: str) -> Iterator[tuple[str, Planned]]:
        masks = {"masks": "@localized"} if settings["rectifier"] != "none" else {}
        for rate in rates or model.rates:
            yield f"{name}, {rate}", Planned("domains", base | masks | settings | {"learning_rate": model.rates[rate]})

    yield "localized", _localized(base, base["model"], base["domain"])
    for name, settings in METHODS.items():
        yield from rated(f"1: {name}", settings)
    upper = {
        "6: without OP-UR": method("grail(sets=op_rr)"),
        "6: without OP-RR": method("grail(sets=op_ur)"),
        **{
            f"f4: {k}={share}": method(f"grail({k}={share})")
            for k in ("k_unlearn", "k_retain")
            for share in (0.05, 0.5)
        },
        "random GRAIL": method(f"random(grail, seed={seed})"),
        "random MemFlex": method(f"random({REGION}, seed={seed}, scope=model)"),
    }
    for name, settings in upper.items():
        yield from rated(name, settings, *UPPER)
    yield from _sequences(base, model.rates["middle"])


def _localized(base: Settings, model: str, domain: list[str]) -> Planned:
    kept = {name: base[name] for name in ("validation", "data_dir") if name in base}
    kept["validation"] = [each for each in kept.get("validation", []) if _name(each) in map(_name, domain)]
    return Planned("localized", kept | {"model": model, "domain": domain, "share": list(SHARES)})


def _sequences(base: Settings, rate: float) -> Iterator[tuple[str, Planned]]:
    """MemFlex on one domain after the other, localized anew before each; both are validated."""
    sources = {_name(each): each for each in base["domain"]}
    validation = {_name(each): each for each in base.get("validation", [])}
    for first, second in (("privacy", "copyright"), ("copyright", "privacy")):
        before = base["model"]
        for name, own, other in ((f"only {first}", first, second), (f"{first} then {second}", second, first)):
            yield f"4: localized, {name}", _localized(base, before, [sources[own]])
            scored = [validation.get(other, sources[other]), *([validation[own]] if own in validation else [])]
            how = method(REGION) | {"learning_rate": rate, "masks": f"@4: localized, {name}"}
            sets = {"domain": [sources[own]], "validation": scored, "model": before}
            yield f"4: {name}", Planned("domains", base | how | sets)
            before = f"@4: {name}"


def _name(domain: str) -> str:
    return domain.partition("=")[0]


class Seed:
    """The runs of one seed below a directory.

    Args:
        plan: its runs by name.
        folder: where they lie.
    """

    def __init__(self, plan: Mapping[str, Planned], folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.started_from = {
            value for each in plan.values() for value in each.settings.values() if isinstance(value, str)
        }
        self.made, self._frames = dict[str, Path](), dict[str, dict[str, pd.DataFrame]]()

    def matching(self, patterns: list[str]) -> list[str]:
        """Names of the runs that a claim reads."""
        return [name for pattern in patterns for name in matching(self.plan, pattern)]

    def closure(self, names: list[str]) -> list[str]:
        """These runs and all that they start from."""
        found: dict[str, None] = {}
        for name in names:
            before = [str(each)[1:] for each in self.plan[name].settings.values() if str(each).startswith("@")]
            found |= dict.fromkeys([*self.closure(before), name])
        return list(found)

    def frames(self, patterns: list[str]) -> dict[str, pd.DataFrame]:
        """What a claim reads, made where it is missing."""
        found: dict[str, pd.DataFrame] = {}
        for name in self.matching(patterns):
            if name not in self._frames:
                self._frames[name] = read_frames(name, self.plan[name].kind, self.make(name))
            found |= self._frames[name]
        return found

    def directories(self) -> list[Path]:
        """Of all runs made or read, the training before an inspection included."""
        return list(dict.fromkeys(path for name, made in self.made.items() for path in (self.place(name), made)))

    def finished(self, name: str) -> bool:
        """Whether a run is there."""
        return (_record(self.plan[name].kind, self.place(name)) / DONE).exists()

    def place(self, name: str) -> Path:
        """Where a run lies (its inspection: beside it)."""
        return self.folder / re.sub(r"[^\w.]+", "-", name)

    def make(self, name: str) -> Path:
        """One run's directory; of checkpoints, their inspection's."""
        if name not in self.made:
            kind, settings = self.plan[name]
            settings = {
                key: str(self.make(value[1:])) if isinstance(value, str) and value.startswith("@") else value
                for key, value in settings.items()
            } | {"out": self.place(name)}
            self.made[name] = _make(name, kind, settings)
            if f"@{name}" not in self.started_from:
                remove_checkpoints(self.place(name))
        return self.made[name]


def _record(kind: str, out: Path) -> Path:
    return out.with_name(f"{out.name}-inspected") if kind == "checkpoints" else out


def _make(name: str, kind: str, settings: Settings) -> Path:
    if kind == "checkpoints":
        at = range(settings["save_every"], settings["steps"] + 1, settings["save_every"])
        points = {"points": ["npo"]} if name.startswith("NPO") else {}
        return inspected(settings, at, one_pass=True, **points)
    verb = {"start": "finetune", "localized": "localize"}.get(kind, "unlearn")
    return ensure([settings], verb)[0]


def read_frames(name: str, kind: str, path: Path) -> dict[str, pd.DataFrame]:
    """A run's frames by name, as the rules of `analysis.claims` take them."""
    if kind == "checkpoints":
        scores = at_checkpoints(path)[["step", "forget_loss", "cosine"]]
        points = {f"{name}: points": read_points(path)} if name.startswith("NPO") else {}
        return {name: descended(read(path)).merge(scores, on="step")} | points
    if kind == "curve":
        steps = read_steps(path).dropna(subset=["forget_loss"])
        return {name: steps.merge(cosines(read(path)), on="step", how="left")}
    if kind == "domains":
        return {name: pd.DataFrame(list(metrics(path)["success"]["end"].values()))[["US", "RS", "HS"]]}
    return {name: {"prediction": read_prediction, "localized": whole_overlaps}[kind](path)}
