"""Draw ``figures/prediction/``: how much of the losses' change a first-order reading explains, under AdamW and SGD.

    python -m analysis.prediction_study [RUNS]             the built-in model
    python -m analysis.prediction_study --real START DATA  SmolLM2 fitted to TOFU in START

Gradient ascent, 25 steps; both losses on fixed examples. Two readings: −lr·⟨∇R, gradient⟩, which is what the
G-effect's definition predicts, and −⟨∇R, applied⟩ with what the optimizer made of it.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.core.effects import r_squared
from geffect.record.frames import read_prediction
from geffect.reports import plots

OPTIMIZERS = {"AdamW 1e-5": ("adamw_torch", 1e-5), "SGD 1e-3": ("sgd", 1e-3)}
TINY = AUTHORS | {"prediction": 32}
REAL = {
    "forget": "tofu:forget01",
    "retain": "tofu:retain99[:56]",
    "heldout": "tofu:retain99[56:120]",
    "batch_size": 8,
    "prediction": 8,
    "evaluate": ["forget"],
}


def main(settings: dict[str, Any], runs: Path, out: Path) -> None:
    """Run what is missing, then draw and tabulate."""
    paths = ensure([
        settings
        | {
            "objective": "ga",
            "optimizer": optimizer,
            "learning_rate": rate,
            "steps": 25,
            "evaluate_every": 25,
            "out": runs / name.replace(" ", "-"),
        }
        for name, (optimizer, rate) in OPTIMIZERS.items()
    ])
    frame = pd.concat([read_prediction(path).assign(run=name) for path, name in zip(paths, OPTIMIZERS, strict=True)])
    plots.save(plots.prediction_plane(frame), out / "plane", frame)
    plots.save(plots.prediction_sums(frame), out / "sums", frame)
    table = tabulate(frame)
    table.to_csv(out / "table.csv", index=False, float_format="%.6g")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.4g"))


def tabulate(frame: pd.DataFrame) -> pd.DataFrame:
    """R² of the unfitted per-step prediction and the sums over the run, a run, loss and reading a row.

    Args:
        frame: predictions of runs.

    Returns:
        The table.
    """
    rows = []
    for (run, loss, reading), cell in frame.groupby(["run", "target", "reading"], sort=False):
        measured = cell["measured"]
        rows.append({
            "run": run,
            "target": loss,
            "reading": reading,
            "R²": r_squared(list(cell["predicted"]), list(measured)),
            "correlation²": cell["predicted"].corr(measured) ** 2,
            "predicted in all": cell["predicted"].sum(),
            "R(θ_T) − R(θ_0)": cell["after"].iloc[-1] - cell["before"].iloc[0],
        })
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/prediction"))
    parser.add_argument("--real", nargs=2, metavar=("START", "DATA"), help="the study of SmolLM2")
    chosen = parser.parse_args()
    if chosen.real:
        start, data = chosen.real
        main(REAL | {"model": start, "data_dir": data}, Path("runs/prediction_real"), Path("figures/prediction_real"))
    else:
        main(TINY, chosen.runs, Path("figures/prediction"))
