"""Draw ``figures/price/``: the price of forgetting that a record predicts, and the rise of the retain loss that came.

    python -m analysis.price_study [RUNS]             the built-in model
    python -m analysis.price_study --real START DATA  SmolLM2 fitted to TOFU in START

The path is that of HAMU (arXiv 2606.02119), which takes the cheapest step of its gain and length, at two gains
(SmolLM2: one). A step sees every forget and every retain example, so that what it predicts and what is measured are of
the same examples. Predicted is the least harm that a step of the applied one's length and gain can do (`geffect.price`,
``cheapest``), and the first-order harm of the step itself; measured is the change of the retain loss between two
evaluations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.core.gram import r_squared
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
READINGS = {"cheapest": "the cheapest step of its gain and length", "harm": "the step itself"}


def main(
    common: dict[str, Any],
    optimizers: dict[str, tuple[str, float]],
    gains: Sequence[float],
    steps: int,
    runs: Path,
    out: Path,
) -> None:
    """Run what is missing, then draw and tabulate."""
    cells = [(name, gain) for name in optimizers for gain in gains]
    paths = ensure([
        common
        | {
            "objective": "ga",
            "rectifier": f"hamu(gain={gain}, radius=1)",
            "optimizer": optimizers[name][0],
            "learning_rate": optimizers[name][1],
            "steps": steps,
            "prediction": common["batch_size"],
            "evaluate": ["forget", "retain"],
            "evaluate_every": 1,
            "stop": "forget_loss(level=3)",
            "out": runs / f"{name}-{gain}",
        }
        for name, gain in cells
    ])
    frame = pd.concat(
        [
            with_measured(path).assign(run=f"{name}, gain {gain}")
            for path, (name, gain) in zip(paths, cells, strict=True)
        ],
        ignore_index=True,
    )
    table = tabulate(frame)
    plots.save(draw(frame), out / "plane", frame)
    table.to_csv(out / "table.csv", index=False, float_format="%.6g")
    (out / "sentences.txt").write_text("\n".join(price_sentences(paths[0])) + "\n", encoding="utf-8")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.4g"))
    print((out / "sentences.txt").read_text(encoding="utf-8"))


def with_measured(path: Path) -> pd.DataFrame:
    """The prices of a run's steps and ``measured``, the change of the retain loss by the step (nats a token)."""
    losses = read_steps(path).set_index("step")["retain_loss"].dropna()
    return price(path).assign(measured=lambda frame: frame["step"].map(-losses.diff(-1)))


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
                "mean efficiency": cell["efficiency"].mean(),
            }
            for reading in READINGS
        ]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Any:
    """Measured against predicted, a panel a run."""
    names = list(dict.fromkeys(frame["run"]))
    with plt.rc_context(plots.STYLE):
        figure, panels = plt.subplots(1, len(names), figsize=(1.75 * len(names), 2.3), layout="constrained")
        for axes, name in zip(panels, names, strict=True):
            rows = frame[frame["run"] == name]
            for reading, color, marker in (("cheapest", "#0072b2", "o"), ("harm", "#d55e00", "x")):
                axes.plot(rows[reading], rows["measured"], marker, color=color, ms=4, label=READINGS[reading])
            low, high = axes.get_xlim()
            axes.plot([low, high], [low, high], color="0.6", lw=0.8, zorder=0)
            axes.set(title=name, xlabel="predicted")
        panels[0].set_ylabel("measured rise of the retain\nloss (nats/token a step)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
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
