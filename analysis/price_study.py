"""Draw ``figures/price/``: the price of forgetting that a record predicts, and the rise of the retain loss that came.

    python -m analysis.price_study [RUNS]             the built-in model
    python -m analysis.price_study --real START DATA  SmolLM2 fitted to TOFU in START

The path is that of HAMU (arXiv 2606.02119), which takes the cheapest step of its gain and length, at two gains
(SmolLM2: one); under AdamW, at the larger gain, that of HAMU in Adam's metric, too. A step sees every forget and every
retain example, so that what it predicts and what is measured are of the same examples. Predicted is the least harm that
a step of the applied one's length and gain can do (`geffect.price`, ``cheapest``), under AdamW in Adam's metric, too,
and the first-order harm of the step itself; measured is the change of the retain loss between two evaluations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.core.effects import r_squared
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.price import price, price_sentences

GAINS, REAL_GAINS = (0.6, 0.95), (0.95,)
TINY = AUTHORS | {"forget": "builtin:authors/forget[:32]", "retain": "builtin:authors/retain[:32]", "batch_size": 32}
TINY_OPTIMIZERS = {"SGD": ("sgd", 2e-2), "AdamW": ("adamw_torch", 1e-4)}
REAL: dict[str, Any] = {
    "forget": "tofu:forget01[:12]",
    "retain": "tofu:retain99[40:52]",
    "heldout": "tofu:retain99[:12]",
    "batch_size": 12,
}
REAL_OPTIMIZERS = {"SGD": ("sgd", 3e-3), "AdamW": ("adamw_torch", 1e-5)}
READINGS = {
    "cheapest": "the cheapest step of its gain and length",
    "cheapest_adam": "… of its gain and Adam-length",
    "harm": "the step itself",
}
MARKS = {"cheapest": ("#0072b2", "o"), "cheapest_adam": ("#009e73", "+"), "harm": ("#d55e00", "x")}
MOMENTS = "AdamW"


def main(
    common: dict[str, Any],
    optimizers: dict[str, tuple[str, float]],
    gains: Sequence[float],
    steps: int,
    runs: Path,
    out: Path,
) -> None:
    """Run what is missing, then draw and tabulate."""
    cells = [(name, gain, "euclidean") for name in optimizers for gain in gains]
    cells += [(name, gains[-1], "adam") for name in optimizers if name == MOMENTS]
    paths = ensure([
        common
        | {
            "objective": "ga",
            "rectifier": f"hamu(gain={gain}, {'metric=adam' if metric == 'adam' else 'radius=1'})",
            "optimizer": optimizers[name][0],
            "learning_rate": optimizers[name][1],
            "steps": steps,
            "prediction": common["batch_size"],
            "adam_metric": name == MOMENTS,
            "evaluate": ["forget", "retain"],
            "evaluate_every": 1,
            "stop": "forget_loss(level=3)",
            "out": runs / f"{name}-{gain}{'-adam' * (metric == 'adam')}",
        }
        for name, gain, metric in cells
    ])
    frame = pd.concat(
        [
            with_measured(path, adam=name == MOMENTS).assign(
                run=f"{name}, gain {gain}" + ", Adam's metric" * (metric == "adam")
            )
            for path, (name, gain, metric) in zip(paths, cells, strict=True)
        ],
        ignore_index=True,
    )
    table = tabulate(frame)
    plots.save(draw(frame), out / "plane", frame)
    table.to_csv(out / "table.csv", index=False, float_format="%.6g")
    sentences = "\n".join(dict.fromkeys(text for path in (paths[0], paths[-1]) for text in price_sentences(path)))
    (out / "sentences.txt").write_text(sentences + "\n", encoding="utf-8")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.4g"))
    print((out / "sentences.txt").read_text(encoding="utf-8"))


def with_measured(path: Path, *, adam: bool) -> pd.DataFrame:
    """The prices of a run's steps and ``measured``, the change of the retain loss by the step (nats a token).

    With ``adam`` the least price and the efficiency in Adam's metric, too: ``cheapest_adam``, ``efficiency_adam``.
    """
    losses = read_steps(path).set_index("step")["retain_loss"].dropna()
    frame = price(path).assign(measured=lambda frame: frame["step"].map(-losses.diff(-1)))
    if not adam:
        return frame
    return frame.merge(
        price(path, metric="adam")[["step", "cheapest", "efficiency"]], on="step", suffixes=("", "_adam")
    )


def tabulate(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a run and reading: R² of the unfitted prediction by step, both sums, and the steps' mean efficiency."""
    rows = []
    for run, cell in frame.groupby("run", sort=False):
        rows += [
            {
                "run": run,
                "predicted": reading,
                "steps": len(cell),
                "R²": r_squared(list(cell[reading]), list(cell["measured"])),
                "predicted in all": cell[reading].sum(),
                "measured in all": cell["measured"].sum(),
                "forgotten to first order": cell["gain"].sum(),
                "mean efficiency": cell["efficiency_adam" if reading == "cheapest_adam" else "efficiency"].mean(),
            }
            for reading in READINGS
            if reading in cell and cell[reading].notna().any()
        ]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Any:
    """Measured against predicted, a panel a run."""
    names = list(dict.fromkeys(frame["run"]))
    with plt.rc_context(plots.STYLE):
        columns = min(3, len(names))
        rows_of = -(-len(names) // columns)
        size = (plots.TWO_COLUMN if columns > 2 else 4.6, 2.1 * rows_of + 0.3)
        figure, grid = plt.subplots(rows_of, columns, figsize=size, layout="constrained", squeeze=False)
        panels = grid.flat[: len(names)]
        for axes in grid.flat[len(names) :]:
            axes.axis("off")
        for axes, name in zip(panels, names, strict=True):
            rows = frame[frame["run"] == name]
            for reading, (color, marker) in MARKS.items():
                if reading not in rows or rows[reading].isna().all():
                    continue
                axes.plot(rows[reading], rows["measured"], marker, color=color, ms=4, label=READINGS[reading])
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color="0.6", lw=0.8, zorder=0)
            axes.set(title=name.replace(", Adam", ",\nAdam"), xlabel="predicted (nats a token a step)")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(3))
        for axes in grid[:, 0]:
            axes.set_ylabel("measured rise of the retain\nloss (nats a token a step)")
        handles, labels = panels[-1].get_legend_handles_labels()
        if grid.size > len(names):
            grid.flat[-1].legend(handles, labels, loc="center")
        else:
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/price"))
    parser.add_argument("--real", nargs=2, metavar=("START", "DATA"), help="the study of SmolLM2")
    chosen = parser.parse_args()
    if chosen.real:
        start, data = chosen.real
        out = Path("figures/price_real")
        main(REAL | {"model": start, "data_dir": data}, REAL_OPTIMIZERS, REAL_GAINS, 12, chosen.runs / "real", out)
    else:
        main(TINY, TINY_OPTIMIZERS, GAINS, 60, chosen.runs, Path("figures/price"))
