"""Draw ``figures/gru_paper/``: what the cosine of two gradients costs, and what GRU buys (arXiv 2503.09117).

    python -m analysis.gru_paper [RUNS]

GA, NPO and WGA on the built-in authors, with and without GRU on the gradient as published, one seed, every step
measured and evaluated. ``analysis.trade_off`` has more objectives and seeds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs import AUTHORS, command_line, ensure, keep_configs

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = {"GA": "ga", "NPO": "npo", "WGA": "wga"}
RECTIFIERS = {"none": "none", "GRU": "gru"}
LEVELS = (1.0, 3.0)  # forget losses (nats a token) at which heldout sets are compared
TINY = AUTHORS | {
    "learning_rate": 3e-4,
    "steps": 25,
    "diagnose_every": 1,
    "evaluate_every": 1,
    "evaluate": ["forget", "heldout"],
}
Cell = tuple[str, str]


def main(runs: Path = Path("runs/gru_paper"), out: Path = Path("figures/gru_paper")) -> None:
    """Run what is missing, then draw and tabulate."""
    paths = dict(zip(cells(), ensure(settings(runs)), strict=True))
    frame = draw(paths, out)
    table = tabulate(frame)
    table.to_csv(out / "table.csv", index=False, float_format="%.4f")
    keep_configs(list(paths.values()), out)
    print(table.to_string(index=False, float_format="%.3f"))


def cells() -> list[Cell]:
    """(objective, rectifier) of every run."""
    return [(name, rectifier) for name in OBJECTIVES for rectifier in RECTIFIERS]


def settings(runs: Path, base: dict[str, Any] = TINY) -> list[dict[str, Any]]:
    """Of every run, in the order of `cells`."""
    return [
        base | {"objective": OBJECTIVES[name], "rectifier": RECTIFIERS[rectifier], "out": runs / f"{name}-{rectifier}"}
        for name, rectifier in cells()
    ]


def draw(paths: dict[Cell, Path], out: Path) -> "pd.DataFrame":
    """All pictures, each with the data drawn.

    Args:
        paths: what each run is, and where.
        out: where to write.

    Returns:
        A row a step of every run, as of `steps`.
    """
    import pandas as pd

    from geffect.reports import plots

    frame = pd.concat([steps(path).assign(run=name, rectifier=rectifier) for (name, rectifier), path in paths.items()])
    for y in ("heldout_rise", "heldout_accuracy"):
        plots.save(plots.retain_by_cosine(frame, y), out / f"{y}_by_cosine", frame)
    curves = frame[frame["rectifier"] != "none"].dropna(subset=["cosine"])
    plots.save(plots.cosine_curves(curves), out / "cosine", curves)
    plane = frame.rename(columns={"run": "objective"}).assign(seed=0)
    plots.save(plots.trade_off_grid(plane), out / "trade_off", plane)
    return frame


def steps(path: Path) -> "pd.DataFrame":
    """What every step of a run descends, and what that does to the heldout set.

    Args:
        path: the run.

    Returns:
        Columns ``step``, ``forget_loss``, ``forget_accuracy``, ``heldout_loss``, ``heldout_accuracy``, ``cosine`` and
        ``rectified`` (with the step's retain gradient, of the objective's gradient and of what the rectifier made of
        it), all at θ^(t), and ``heldout_rise``: by how much step t then raises the heldout loss; NaN at the end.
    """
    from geffect.core.effects import cosines
    from geffect.record.frames import read, read_steps

    columns = ["step", "forget_loss", "forget_accuracy", "heldout_loss", "heldout_accuracy"]
    found = read_steps(path)[columns].sort_values("step")
    found = found.assign(heldout_rise=found["heldout_loss"].diff().shift(-1))
    return found.merge(cosines(read(path)), on="step", how="left")


def tabulate(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A row a run: conflicts before and after rectification, and the heldout set at equal forgetting.

    Args:
        frame: as of `steps`, with ``run`` and ``rectifier``.

    Returns:
        Shares of steps with a negative cosine, the Spearman correlation of the cosine descended with the rise of the
        heldout loss, the share of steps on which it rose, and heldout accuracy and loss at forget losses (NaN: not
        reached).
    """
    import pandas as pd

    from geffect.reports.compare import at_forget_loss

    rows = []
    for (run, rectifier), path in frame.groupby(["run", "rectifier"], sort=False):
        taken = path.dropna(subset=["cosine"])
        descended = taken["rectified"].fillna(taken["cosine"])
        rows.append(
            {
                "objective": run,
                "rectifier": rectifier,
                "mean cosine": taken["cosine"].mean(),
                "mean cosine, descended": descended.mean(),
                "conflict": (taken["cosine"] < 0).mean(),
                "conflict, descended": (descended < 0).mean(),
                "heldout loss rises": (taken["heldout_rise"] > 0).mean(),
                "Spearman, cosine descended and rise": descended.rank().corr(taken["heldout_rise"].rank()),
            }
            | {
                f"{name} at forget loss {level:g}": at_forget_loss(path, column, level)
                for level in LEVELS
                for name, column in (("heldout acc.", "heldout_accuracy"), ("heldout loss", "heldout_loss"))
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(command_line(__doc__, Path("runs/gru_paper")).parse_args().runs)
