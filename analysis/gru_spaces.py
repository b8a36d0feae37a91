"""Draw ``figures/gru_spaces/``: GRU on the gradient, on the optimizer's update, and on both, under AdamW.

    python -m analysis.gru_spaces [RUNS]             the built-in model, three seeds
    python -m analysis.gru_spaces --real START DATA  SmolLM2 fitted to TOFU in START, one seed

The paper rectifies the gradient; the other two spaces are this toolkit's. Compared are the share of steps on which the
*measured* loss of the heldout set rises, and heldout accuracy at equal forget loss.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss

SPACES = {"none": "none", "gradient": "gru", "update": "gru(space=update)", "both": "gru(space=both)"}
OBJECTIVES = {"GA": "ga", "NPO": "npo"}
REAL_OBJECTIVES = {"GA": "ga", "NPO 0.01": "npo(beta=0.01)"}  # with β = 0.1 it comes to rest above an accuracy of 0.3
TINY = AUTHORS | {"heldout": "builtin:authors/heldout[:64]", "learning_rate": 3e-4, "steps": 25}
REAL = {
    "forget": "tofu:forget01",
    "retain": "tofu:retain99[:56]",
    "heldout": "tofu:retain99[56:120]",
    "batch_size": 8,
    "learning_rate": 5e-5,
    "steps": 40,
    "until_accuracy": 0.3,
    "evaluate": ["forget", "heldout"],
}


def main(
    settings: dict[str, Any],
    objectives: dict[str, str],
    seeds: tuple[int, ...],
    losses: tuple[float, ...],
    runs: Path,
    out: Path,
) -> None:
    """Run what is missing, then draw and tabulate."""
    cells = [(name, space, seed) for name in objectives for space in SPACES for seed in seeds]
    paths = ensure([
        settings
        | {
            "objective": objectives[name],
            "rectifier": SPACES[space],
            "seed": seed,
            "evaluate_every": 1,
            "diagnose_every": 5,
            "out": runs / f"{name.replace(' ', '')}-{space}-{seed}",
        }
        for name, space, seed in cells
    ])
    draw(paths, cells, losses, out)


def draw(paths: list[Path], cells: Sequence[tuple[str, str, int]], losses: tuple[float, ...], out: Path) -> None:
    """Tabulate and draw finished runs.

    Args:
        paths: of the runs.
        cells: objective, rectifier and seed of each.
        losses: as of `tabulate`.
        out: where to write.
    """
    columns = ["step", "forget_loss", "forget_accuracy", "heldout_loss", "heldout_accuracy"]
    frame = pd.concat([
        read_steps(path)[columns].assign(objective=name, rectifier=space, seed=seed)
        for path, (name, space, seed) in zip(paths, cells, strict=True)
    ])
    plots.save(plots.trade_off_grid(frame), out / "by_loss", frame)
    table = tabulate(frame, losses)
    table.to_csv(out / "table.csv", index=False, float_format="%.4f")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.3f"))


def tabulate(frame: pd.DataFrame, losses: tuple[float, ...]) -> pd.DataFrame:
    """A row a run: share of steps on which the heldout loss rises, and heldout accuracy at given forget losses.

    Args:
        frame: the evaluations of all runs, one a step.
        losses: forget losses (nats a token).

    Returns:
        The table; NaN where a run never got there.
    """
    rows = []
    for (objective, space, seed), run in frame.groupby(["objective", "rectifier", "seed"], sort=False):
        path = run.sort_values("step")
        last = path.iloc[-1]
        rows.append(
            {
                "objective": objective,
                "space": space,
                "seed": seed,
                "steps": int(last["step"]),
                "heldout loss rises": float((path["heldout_loss"].diff().dropna() > 0).mean()),
                "forget acc.": last["forget_accuracy"],
                "heldout acc.": last["heldout_accuracy"],
            }
            | {f"heldout acc. at {loss:g}": at_forget_loss(path, "heldout_accuracy", loss) for loss in losses}
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/gru_spaces"))
    parser.add_argument("--real", nargs=2, metavar=("START", "DATA"), help="the study of SmolLM2")
    chosen = parser.parse_args()
    if chosen.real:
        start, data = chosen.real
        real = REAL | {"model": start, "data_dir": data}
        main(
            real, REAL_OBJECTIVES, (0,), (2.0, 4.0, 8.0), Path("runs/gru_spaces_real"), Path("figures/gru_spaces_real")
        )
    else:
        main(TINY, OBJECTIVES, (0, 1, 2), (2.0, 4.0), chosen.runs, Path("figures/gru_spaces"))
