"""Runs side by side: one table, three pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geffect.core.gram import cosines, direction_name, g_effect, objective_name, total_cosine
from geffect.core.masks import chance_jaccard
from geffect.core.splits import TARGETS, domain_of
from geffect.errors import GeffectError, visible
from geffect.io.readers import StrPath
from geffect.record.frames import read, read_overlap, read_prediction, read_standard_errors, read_steps
from geffect.record.reader import contents, damage_refused
from geffect.record.schema import RECIPE
from geffect.reports import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def summarize(runs: Sequence[StrPath]) -> pd.DataFrame:
    """What each run forgot, what it kept, and what its updates predicted.

    Args:
        runs: run directories.

    Returns:
        One row a run.
    """
    return pd.DataFrame([{"run": name} | _row(path) for name, path in named(runs).items()])


@damage_refused
def _row(run: StrPath) -> dict[str, Any]:
    gram, steps = read(run), read_steps(run)
    effects = g_effect(gram, direction_name(gram))
    cosine = total_cosine(gram, objective_name(gram), "retain")
    last = _with_roles(steps.iloc[-1])
    kept = "heldout" if "heldout_loss" in last else "retain"
    return {
        **{f"{role} acc.": last.get(f"{role}_accuracy") for role in ("forget", kept)},
        **{f"{role} loss": last.get(f"{role}_loss") for role in ("forget", kept)},
        "cos, start": cosine.iloc[0],
        "cos, end": cosine.iloc[-1],
        "conflict": (effects.groupby("step")["retain"].sum() < 0).mean(),
        "Σe_u": effects["unlearn"].sum(),
        "Σe_r": effects["retain"].sum(),
    }


def _with_roles(scores: "pd.Series[Any]") -> "pd.Series[Any]":
    """Scores by role, too, where there are domains: their mean."""
    for kind in ("accuracy", "loss"):
        for role in TARGETS:
            own = [scores[name] for name in scores.index if str(name).startswith(f"{role}/") and name.endswith(kind)]
            if own:
                scores[f"{role}_{kind}"] = sum(own) / len(own)
    return scores


def at_checkpoints(path: StrPath) -> pd.DataFrame:
    """What an inspection measured at every checkpoint.

    Columns ``step``, the sets' losses, ``unlearn`` and ``retain`` (G-effects, gradient²), their standard errors
    ``± unlearn`` and ``± retain`` where recorded, and ``cosine`` (of the objective's and the retain gradient).
    """
    gram, steps = read(path), read_steps(path).set_index("step")
    found = g_effect(gram).groupby("step")[["unlearn", "retain"]].sum()
    losses = [name for name in ("forget_loss", "retain_loss", "heldout_loss") if name in steps]
    parts = [steps[losses], found]
    if contents(path).batches:
        errors = read_standard_errors(path, "total")
        for effect, row in zip(("unlearn", "retain"), TARGETS, strict=True):
            own = errors[(errors["gradient"] == "objective") & (errors["other"] == row)].set_index("step")
            parts.append(own["standard_error"].rename(f"± {effect}").to_frame())
    parts.append(total_cosine(gram, "objective", "retain").rename("cosine").to_frame())
    return pd.concat(parts, axis=1).rename_axis("step").reset_index()


def plot(runs: Sequence[StrPath], out: Path | None = None, scheme: str = "thirds") -> list[Path]:
    """Draw runs: G-effect by layer group, cosine disparity, trade-off plane; each with the data drawn.

    A single run is drawn by layer, too. Where every run kept a prediction, or recorded overlaps, those are drawn as
    well. Of a localization its overlaps are drawn.

    Args:
        runs: run directories, side by side.
        out: where to write; ``figures`` in the first run by default.
        scheme: how layers make groups.

    Returns:
        The files written.
    """
    paths = named(runs)
    if all((path / RECIPE).exists() for path in paths.values()):
        return [file for name, path in paths.items() for file in overlap_figures(path, out / name if out else None)]
    out = out or next(iter(paths.values())) / "figures"
    grams = {name: read(path, "group", scheme) for name, path in paths.items()}
    effects = pd.concat([descended(gram).assign(run=name) for name, gram in grams.items()])
    disparities = pd.concat([cosines(gram).assign(run=name) for name, gram in grams.items()])
    scores = pd.concat([read_steps(path).assign(run=name) for name, path in paths.items()])
    written = plots.save(plots.g_effect_curves(effects), out / "g_effect", effects)
    if len(paths) == 1:
        by_layer = descended(read(next(iter(paths.values())), "layer"))
        written += plots.save(plots.layer_heat_map(by_layer), out / "layers", by_layer)
    written += plots.save(plots.cosine_curves(disparities), out / "cosine", disparities)
    if {"forget_loss", "heldout_loss"} <= set(scores):
        plane = scores[["run", "step", "forget_loss", "heldout_loss"]].dropna()
        written += plots.save(plots.trade_off(plane), out / "trade_off", plane)
    recorded = [contents(path) for path in paths.values()]
    if all(each.prediction for each in recorded):
        prediction = pd.concat([read_prediction(path).assign(run=name) for name, path in paths.items()])
        written += plots.save(plots.prediction_plane(prediction), out / "prediction", prediction)
        written += plots.save(plots.prediction_sums(prediction), out / "prediction_sums", prediction)
    shares = {share for each in recorded for share in each.shares}
    if len(shares) == 1 and all(each.shares for each in recorded):
        overlaps = pd.concat([read_overlap(path, "group", scheme).assign(run=name) for name, path in paths.items()])
        curves = plots.jaccard_curves(overlaps, "objective", "retain", shares.pop())
        written += plots.save(curves, out / "jaccard", overlaps)
    return written


def descended(gram: pd.DataFrame) -> pd.DataFrame:
    """The G-effects of what was descended, as they are drawn."""
    return g_effect(gram, direction_name(gram))


def whole_overlaps(path: StrPath) -> pd.DataFrame:
    """Jaccard indices over the whole model, against chance.

    Columns ``share``, ``gradient``, ``other``, ``intersection``, ``union``, ``jaccard``, ``chance``.
    """
    counts = read_overlap(path).groupby(["share", "gradient", "other"], sort=False)[["intersection", "union"]].sum()
    frame = counts.reset_index()
    return frame.assign(
        jaccard=frame["intersection"] / frame["union"].where(frame["union"] > 0),
        chance=frame["share"].map(chance_jaccard),
    )


def overlap_figures(path: StrPath, out: Path | None = None, shares: Sequence[float] = ()) -> list[Path]:
    """Draw a localization: the overlaps of its splits over the model and by layer, one pair of figures a share."""
    out, written = out or Path(path) / "figures", []
    whole, layers = whole_overlaps(path), read_overlap(path, "layer")
    for share in shares or whole["share"].unique():
        matrix, rows = whole[whole["share"] == share], layers[layers["share"] == share]
        written += plots.save(overlap_matrix(matrix, share), out / f"overlap-{share:g}", matrix)
        written += plots.save(plots.jaccard_by_layer(rows, share), out / f"overlap_by_layer-{share:g}", rows)
    return written


def overlap_matrix(frame: pd.DataFrame, share: float) -> "Figure":
    """Draw the overlaps of a localization's splits, those of a domain framed."""
    splits = dict.fromkeys([*frame["gradient"], *frame["other"]])
    pairs = {domain: [name for name in splits if domain_of(name) == domain] for domain in map(domain_of, splits)}
    return plots.jaccard_matrix(frame, share, [names for names in pairs.values() if len(names) == 2])


def named(runs: Sequence[StrPath]) -> dict[str, Path]:
    """Runs by their directory's name, or by their whole path where two share a name, each in its visible form.

    Name → directory.
    """
    paths = [Path(run) for run in runs]
    names = [path.resolve().name for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    named = {visible(label, lines=False): path for label, path in zip(labels, paths, strict=True)}
    if len(named) < len(paths):
        raise GeffectError("A run is named twice", remedy="Name each once")
    return named
