"""Draw ``figures/protection/``: what it costs to learn a task while another set's loss must not rise.

    python -m analysis.protect_study [OUT]

The built-in model knows the authors, and is fine-tuned by AdamW on people of another kind. Its steps are plain;
protected (``protect=``: GRU on the gradient, or on gradient and update); or the authors are mixed in: w times the loss
of a batch of them is added to the training's, with four weights. Protecting and mixing see the same batches of authors
at the same cost, a second forward and backward pass a step. Each method has three seeds, of the order of examples.

Compared is, at equal training loss, the rise of the loss of the authors that are drawn from and of others, the heldout
ones, of whom no step has seen an example. The levels of training loss are thirds of the way that plain steps go; the
values between two evaluations are interpolated.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import geffect
from geffect.core.forward import forward
from geffect.data.encode import EncodedExample
from geffect.models.scoring import compute_likelihood
from geffect.objectives.base import Counts, mean_nll
from geffect.reports import plots

OUT = Path("figures/protection")
SETS = {
    "training": "builtin:domains/privacy/retention/train",
    "protected": "builtin:authors/retain",
    "heldout": "builtin:authors/heldout",
}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gru": {"rectifier": "gru"},
    "gru, both spaces": {"rectifier": "gru(space=both)"},
    **{f"mixed in, w = {w:g}": {"weight": w} for w in (0.1, 0.3, 1.0, 3.0)},
}
SEEDS, STEPS, EVERY, BATCH, RATE = (0, 1, 2), 120, 5, 8, 3e-4
LEVELS = (1 / 3, 2 / 3, 0.9)  # of the way from the start's training loss to the lowest that plain steps reach


def batches(examples: list[EncodedExample], pad_id: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of all examples, in a new order each time round."""
    random = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=random).tolist()
        for i in range(0, len(order) - BATCH + 1, BATCH):
            yield geffect.collate([examples[j] for j in order[i : i + BATCH]], pad_id)


def train(method: str, seed: int) -> pd.DataFrame:
    """One training: a row an evaluation, with every set's loss in nats a token."""
    loaded = geffect.load_model("builtin:tiny")
    model, pad_id = loaded.model, loaded.tokenizer.pad_token_id
    sets = {name: geffect.encode_set(loaded.tokenizer, geffect.load_set(spec)) for name, spec in SETS.items()}
    settings = METHODS[method]
    rule = {"protect": ["protected"], "rectifier": settings["rectifier"]} if "rectifier" in settings else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    trained, beside = (batches(sets[name], pad_id, seed) for name in ("training", "protected"))
    rows = []
    with geffect.monitor(
        model, {"protected": sets["protected"]}, optimizer=optimizer, every=STEPS, examples=8, **rule
    ) as monitor:
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                losses = {name: compute_likelihood(model, each, pad_id, 32).loss for name, each in sets.items()}
                rows.append({"method": method, "seed": seed, "step": step, **losses})
            if step == STEPS:
                break
            model.train()
            loss = nll(model, next(trained))
            if "weight" in settings:
                loss = loss + settings["weight"] * nll(model, next(beside))
            loss.backward()
            monitor.rectify()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return pd.DataFrame(rows)


def nll(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The token-mean NLL of a batch."""
    return mean_nll(forward(model, batch), Counts.of([batch]))


def at_levels(frame: pd.DataFrame) -> pd.DataFrame:
    """Rise of each loss where the training loss first falls to each level; NaN where it never does."""
    start = frame[frame["step"] == 0].iloc[0]
    lowest = frame[frame["method"] == "plain"].groupby("seed")["training"].min().max()
    rows = []
    for (method, seed), own in frame.groupby(["method", "seed"], sort=False):
        for share in LEVELS:
            level = start["training"] - share * (start["training"] - lowest)
            found = {name: _where(own, level, name) - start[name] for name in ("protected", "heldout")}
            rows.append({"method": method, "seed": seed, "level": level, "step": _where(own, level, "step"), **found})
    return pd.DataFrame(rows)


def _where(own: pd.DataFrame, level: float, name: str) -> float:
    """A column's value where the training loss first falls to a level, linear between two evaluations."""
    losses, values = own["training"].to_numpy(), own[name].to_numpy()
    below = np.flatnonzero(losses <= level)
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return float(values[0])
    part = (losses[i - 1] - level) / (losses[i - 1] - losses[i])
    return float(values[i - 1] + part * (values[i] - values[i - 1]))


def draw(frame: pd.DataFrame) -> Any:
    """Rise of the two losses against the training loss: a line a method, the seeds' mean."""
    colors = plt.colormaps["viridis"](np.linspace(0.15, 0.75, 4))
    styles: dict[str, dict[str, Any]] = {
        "plain": {"color": "black", "linestyle": "-"},
        "gru": {"color": "#d55e00", "linestyle": "--"},
        "gru, both spaces": {"color": "#d55e00", "linestyle": "-"},
    }
    mixed = [name for name in METHODS if name not in styles]
    styles |= {name: {"color": color, "linestyle": ":"} for name, color in zip(mixed, colors, strict=True)}
    with plt.rc_context(plots.STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
        for axes, name in zip(panels, ("protected", "heldout"), strict=True):
            for method, own in frame.groupby("method", sort=False):
                by_step = own.groupby("step")[["training", name]]
                mean = by_step.mean()
                rise = mean[name] - mean[name].iloc[0]
                axes.plot(mean["training"], rise, label=method, **styles[str(method)])
            axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
            axes.invert_xaxis()
            axes.set(title=f"{name} authors", xlabel="training loss (nats a token)")
        panels[0].set_ylabel("rise of their loss (nats a token)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def tabulate(levels: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their smallest and largest value, a method and level a row."""
    rows = []
    for (method, level), own in levels.groupby(["method", "level"], sort=False):
        row = {"method": method, "training loss": level, "step": own["step"].mean(), "seeds": own["step"].notna().sum()}
        for name in ("protected", "heldout"):
            values = own[name].dropna()
            row |= {f"{name} rise": values.mean(), f"{name} low": values.min(), f"{name} high": values.max()}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["training loss", "heldout rise"], ascending=[False, True])


def main(out: Path) -> None:
    """Train all, draw and tabulate."""
    torch.set_num_threads(1)
    frame = pd.concat([train(method, seed) for method in METHODS for seed in SEEDS], ignore_index=True)
    plots.save(draw(frame), out / "protection", frame)
    table = tabulate(at_levels(frame))
    table.to_csv(out / "table.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    main(parser.parse_args().out)
