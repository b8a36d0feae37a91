"""What a page says beside its numbers: the facts of a run, how runs differ at their start, and the examples' texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geffect.data.load import QASet, load_set
from geffect.errors import GeffectError, shorten
from geffect.record.frames import read_origin
from geffect.record.reader import damage_refused, evaluations, is_finished, read_config
from geffect.reports.plots.examples import SHOWN

FACT, TEXT = 120, 600  # characters shown of a setting, and of an example
COLUMNS = {"question": "question_column", "answer": "answer_column", "text": "text_column"}


@damage_refused
def facts(path: Path) -> list[str]:
    """Model, objective, rectifier, steps, learning rate and optimizer, date and version of geffect, where known."""
    config, origin = read_config(path), read_origin(path)
    objective, rectifier, rate = (config.get(name) for name in ("objective", "rectifier", "learning_rate"))
    parts = [
        ("", config.get("model") or config.get("checkpoints")),
        ("objective ", objective),
        ("rectifier ", rectifier if objective else None),
        ("steps ", config.get("steps") and (origin.steps or config["steps"])),
        ("learning rate ", f"{rate:g}" if isinstance(rate, float) else rate),
        ("optimizer ", origin.optimizer or config.get("optimizer")),
        ("", origin.started[:10]),
        ("geffect ", origin.version),
    ]
    return [f"{name}{shorten(_text(value), FACT)}" for name, value in parts if value]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def cautions(runs: Mapping[str, Path]) -> list[str]:
    """In what runs differ that a comparison takes to be equal: models, starting weights, sets."""
    origins = {name: read_origin(path) for name, path in runs.items()}
    models = {name: read_config(path).get("model") for name, path in runs.items()}
    starts = {name: origin.weights[:12] or "unknown" for name, origin in origins.items()}
    found = _differ("models", models) or _differ("starting weights", starts)
    for part in dict.fromkeys(part for origin in origins.values() for part in origin.sets):
        hashes = {name: origin.sets.get(part, ("", "none"))[1][:12] for name, origin in origins.items()}
        found += _differ(f"{part} sets", hashes)
    return found


def unfinished(runs: Mapping[str, Path]) -> list[str]:
    """Which runs were stopped, or still go on."""
    return [
        f"{name} is unfinished: this is its state at its last recorded step."
        for name, path in runs.items()
        if not is_finished(path)
    ]


def _differ(what: str, values: Mapping[str, Any]) -> list[str]:
    if len(set(map(str, values.values()))) < 2:
        return []
    each = ", ".join(f"{name}: {shorten(value, FACT)}" for name, value in values.items())
    return [f"The runs have different {what} ({each}), so that they differ in more than their methods."]


@damage_refused
def with_texts(path: Path, worst: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Add the column ``text`` of examples to a frame with ``set`` and ``example``; and why some have none, else empty.

    The sets are read again, files and built-in ones only; a text is shown where the set's hash is the recorded one.
    """
    config, recorded = read_config(path), read_origin(path).sets
    counts = {name: len(each.tokens) for line in evaluations(path)[:1] for name, each in line.examples.items()}
    texts, reasons = {}, []
    for name in worst["set"].unique():
        try:
            texts[name] = _texts(config, recorded.get(name, ("", "")), counts.get(name, 0))
        except (GeffectError, OSError) as error:
            texts[name] = []
            reasons.append(f"Of {name}, no texts are shown: {error}")
    column = [
        texts[name][place] if texts[name] else "–" for name, place in zip(worst["set"], worst["example"], strict=True)
    ]
    return worst.assign(text=column), " ".join(reasons)


def _texts(config: Mapping[str, Any], recorded: tuple[str, str], count: int) -> list[str]:
    """The texts of a set, shortened, in the order of its examples."""
    (spec, expected), folder = recorded, config.get("data_dir")
    if spec.startswith("hub:") or not spec:
        raise GeffectError("a report reads no set from a network" if spec else "the record names no set")
    columns = {name: str(config.get(key, name)) for name, key in COLUMNS.items()}
    found = load_set(spec, Path(folder) if folder else None, **columns)
    if not isinstance(found, QASet):
        raise GeffectError(f"the examples of {spec} are chunks of one stream")
    if len(found) != count or found.sha256 != expected:
        raise GeffectError(f"{spec} is not what the run evaluated, example by example", remedy="Restore its file")
    return [shorten(f"{each['question']} → {each['answer']}".translate(SHOWN), TEXT) for each in found]
