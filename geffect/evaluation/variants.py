"""A model as an evaluation sees it: as it is, rounded, mixed with its start, or after learning again."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from geffect.config import EvaluateConfig, FinetuneConfig
from geffect.core.splits import role_of
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError, Interrupted
from geffect.evaluation.calibration import calibrate, mixed
from geffect.evaluation.metrics.memorization import extraction_strength
from geffect.evaluation.rounding import rounded
from geffect.evaluation.suites import Part
from geffect.evaluation.view import View
from geffect.models.cache import cached_directory
from geffect.models.load import Loaded, outline
from geffect.training.setup import decides

Chosen = Sequence[tuple[Part, ExampleSet]]
Load = Callable[[str], Loaded]


@dataclass(frozen=True)
class Probe:
    """A model and what is done to its weights while they are looked at.

    Attributes:
        label: its name in the result.
        loaded: the model.
        weights: what is done to its weights, for the key of a kept result; empty: nothing.
        context: does it, and undoes it.
        told: numbers that describe it.
    """

    label: str
    loaded: Loaded
    weights: str = ""
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    told: dict[str, float] = field(default_factory=dict)


def probes(
    config: EvaluateConfig,
    spec: str,
    label: str,
    chosen: Chosen,
    load: Load,
    view: Callable[[ExampleSet, Loaded], View],
    fit: Callable[[FinetuneConfig], Path],
) -> Iterator[Probe]:
    """A model, then what ``--rounded``, ``--calibrate`` and ``--relearn`` make of it, one at a time.

    Args:
        config: which of them.
        spec: the model.
        label: its name.
        chosen: the parts and their rows.
        load: loads a model by its name.
        view: a set under a model.
        fit: fits a model; it returns the directory.

    Yields:
        What is to be evaluated.

    Raises:
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP.
    """
    loaded = load(spec)
    yield Probe(label, loaded)
    if config.rounded:
        yield Probe(f"{label} 8bit", loaded, "8bit", partial(rounded, loaded.model))
    if config.calibrate is not None:
        yield _calibrated(config, label, loaded, load(config.calibrate), _kept_rows(chosen), view)
    if config.relearn:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                path = fit(_relearning(config, spec, chosen, Path(scratch) / "fit"))
            except Interrupted as stopped:  # its directory goes
                raise Interrupted("stopped while relearning; nothing of that is kept", stopped.signum) from None
            yield Probe(f"{label} relearnt", load(str(path)), told={"relearn_steps": config.relearn})


def check_probes(config: EvaluateConfig, chosen: Chosen) -> None:
    """Raise where a set is missing that a probe looks at.

    Args:
        config: which probes.
        chosen: the parts and their rows.

    Raises:
        GeffectError: calibration has no retain set or no start, or relearning no forget set.
    """
    if config.calibrate is not None:
        _kept_rows(chosen)
        outline(config.calibrate, trust_remote_code=config.trust_remote_code)
    if config.relearn:
        _relearning(config, "", chosen, Path())


def _kept_rows(chosen: Chosen) -> ExampleSet:
    found = {part.name: rows for part, rows in chosen if part.name in ("retain", "heldout")}
    if not found:
        names = ", ".join(part.name for part, _ in chosen)
        raise GeffectError("a set named held, or retain, for --calibrate", names, "add --set heldout=SET")
    return found.get("heldout") or found["retain"]  # heldout: no gradient was drawn from it


def _calibrated(
    config: EvaluateConfig,
    label: str,
    loaded: Loaded,
    start: Loaded,
    rows: ExampleSet,
    view: Callable[[ExampleSet, Loaded], View],
) -> Probe:
    """The model mixed with its start so that the start's extraction strength on the kept set is kept (UWC)."""
    both = [decides(config, each) for each in (loaded, start)]
    loaded = replace(loaded, model=_merged(loaded.model))
    before = dict(_merged(start.model).named_parameters())

    def kept(alpha: float) -> float:
        with mixed(loaded.model, before, alpha):
            scores = [extraction_strength(each) for each in view(rows, loaded).scores()]
        known = [each for each in scores if each == each]
        if not known:
            raise GeffectError(
                f"a row of {rows.name} with two labeled tokens, for --calibrate",
                "none",
                "name a set of longer rows or raise --max-length",
            )
        return sum(known) / len(known)

    def search(directory: Path) -> None:
        (directory / "alpha.json").write_text(json.dumps(calibrate(kept, config.tau)), encoding="utf-8")

    key = json.dumps([both, config.tau, config.max_length, rows.rows])
    if all(both):
        alpha = json.loads((cached_directory("calibration", key, search) / "alpha.json").read_text(encoding="utf-8"))
    else:
        alpha = calibrate(kept, config.tau)
    weights = f"mixed {alpha} {json.dumps(both)}"
    found = replace(loaded, sha256=loaded.sha256 if start.sha256 else None)
    return Probe(f"{label} calibrated", found, weights, partial(mixed, loaded.model, before, alpha), {"alpha": alpha})


def _merged(model: Any) -> Any:
    """The model itself, its adapter merged into it."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _relearning(config: EvaluateConfig, spec: str, chosen: Chosen, out: Path) -> FinetuneConfig:
    train = [part.spec for part, _ in chosen if role_of(part.name) == "forget"]
    if not train:
        names = ", ".join(part.name for part, _ in chosen)
        raise GeffectError("a set named forget for --relearn", names, "add --set forget=SET")
    shared = config.model_dump(
        include={
            "trust_remote_code",
            "data_dir",
            "question_column",
            "answer_column",
            "text_column",
            "max_length",
            "template_date",
            "system_prompt",
            "chat_template",
            "tokenizer",
            "dtype",
            "seed",
        },
        exclude_none=True,
    )
    given = {
        "model": spec or config.model,
        "train": train,
        "steps": config.relearn,
        "out": out,
        "learning_rate": config.relearn_rate,
    }
    return FinetuneConfig.read(**(shared | given))
