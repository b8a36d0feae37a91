"""Final scores side by side, of ``geffect evaluate`` and of open-unlearning's evaluations, by this toolkit's names."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.io.readers import Unreadable, parse_json, read_bytes
from geffect.record.reader import damage_refused, read_metrics
from geffect.record.schema import METRICS

Scores = dict[str, float]  # SET/METRIC, or the name of a number of several sets → value
KINDS = ("SUMMARY", "EVAL")  # of open-unlearning's files, TOFU_SUMMARY.json and TOFU_EVAL.json
# what open-unlearning computes as this toolkit does; every other number keeps its own name (docs/open_unlearning.md)
NAMES = {
    "forget_Q_A_Prob": "forget/probability",
    "forget_Q_A_ROUGE": "forget/rouge_l_recall",
    "extraction_strength": "forget/extraction_strength_floored",
    "exact_memorization": "forget/exact_memorization",
    "retain_Q_A_Prob": "retain/probability",
    "retain_Q_A_ROUGE": "retain/rouge_l_recall",
    "ra_Q_A_Prob_normalised": "real_authors/probability_normalized",
    "ra_Q_A_ROUGE": "real_authors/rouge_l_recall",
    "wf_Q_A_Prob_normalised": "world_facts/probability_normalized",
    "wf_Q_A_ROUGE": "world_facts/rouge_l_recall",
    "forget_quality": "forget_quality",
    "privleak": "privleak",
    "mia_loss": "auc_loss",
    "mia_zlib": "auc_zlib",
    "mia_min_k": "auc_min_k",
    "mia_min_k_plus_plus": "auc_min_k_plus_plus",
    "mia_reference": "auc_reference",
    "model_utility": "model_utility (open-unlearning)",  # of another truth ratio
}


def is_evaluation(path: Path) -> bool:
    """Whether a path is an evaluation, of ``geffect evaluate`` or open-unlearning, and no run."""
    return path.suffix == ".json" or bool(_theirs(path)) or "models" in _metrics(path)


def final_scores(paths: Mapping[str, Path]) -> dict[str, Scores]:
    """The scores of each evaluation, by the name it is given; one of several models has a name for each.

    Args:
        paths: name → a directory of ``geffect evaluate``; or of open-unlearning a ``…_SUMMARY.json`` or
            ``…_EVAL.json``, or a folder with one, itself or in ``evals``.

    Raises:
        GeffectError: a path is no evaluation, or has no number.
    """
    scores: dict[str, Scores] = {}
    for name, path in paths.items():
        if models := _metrics(path).get("models"):
            own = _ours(path, models)
            scores |= {name if len(own) == 1 else f"{name}: {model}": each for model, each in own.items()}
        else:
            scores[name] = _read(path)
    return scores


def _metrics(path: Path) -> dict[str, Any]:
    return read_metrics(path) if (path / METRICS).is_file() else {}


def _theirs(path: Path) -> list[Path]:
    """The files of open-unlearning's evaluation in a folder: the summaries, or else all that was computed."""
    for folder in (path / "evals", path):
        for kind in KINDS:
            if files := sorted(folder.glob(f"*_{kind}.json")):
                return files
    return []


@damage_refused
def _ours(path: Path, models: Mapping[str, Any]) -> dict[str, Scores]:
    """Model → its means and the numbers of several sets."""
    found = {}
    for model, content in models.items():
        means = {
            f"{s}/{metric}": each["mean"] for s, kinds in content["sets"].items() for metric, each in kinds.items()
        }
        numbers = {name: value for name, value in content["totals"].items() if not isinstance(value, dict)}
        found[model] = {name: _number(value) for name, value in {**means, **numbers}.items()}
    return found


def _read(path: Path) -> Scores:
    """The numbers of an evaluation of open-unlearning; NaN where one was not computed."""
    files = [path] if path.suffix == ".json" else _theirs(path)
    if not files:
        message = f"{path} has no final scores: it is no evaluation"
        raise GeffectError(message, remedy=f"Evaluate it: geffect evaluate --model {path} --suite tofu --out NAME")
    if len(files) > 1:
        raise GeffectError(f"{path} has several evaluations", remedy=f"Name one, such as {files[0]}")
    try:
        content = parse_json(read_bytes(files[0]), constants=True)
        entries = content.items() if isinstance(content, dict) else ()
        values: Scores = {NAMES.get(str(name), str(name)): _number(_aggregate(each)) for name, each in entries}
    except (Unreadable, OverflowError) as error:
        raise GeffectError(f"{files[0]} cannot be read: {error}", remedy="Restore the file") from error
    if all(math.isnan(each) for each in values.values()):
        message = f"{files[0]} has no number of an evaluation of open-unlearning"
        raise GeffectError(message, remedy="Name its TOFU_SUMMARY.json or TOFU_EVAL.json")
    return values


def _aggregate(entry: Any) -> Any:
    return entry.get("agg_value") if isinstance(entry, dict) else entry


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
