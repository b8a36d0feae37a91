"""Tables and sweeps of `analysis.grail_paper`, read from finished runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from geffect.record.frames import read_steps

KNOWN = 90.0  # percent: below it a start does not know a set, and its row is not printed


class Cell(NamedTuple):
    """One run of a table.

    Attributes:
        name: its row.
        seed: of the run.
        path: the run directory.
        before: of several runs one after another, the first.
    """

    name: str
    seed: int
    path: Path
    before: Path | None = None


def metrics(path: Path) -> dict[str, Any]:
    """A run's ``metrics.json``."""
    content: dict[str, Any] = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    return content


def known(path: Path) -> bool:
    """Whether the start knew every validation set that is scored."""
    start = metrics(path)["success"]["start"]
    return all(scores[role]["accuracy"] >= KNOWN for scores in start.values() for role in ("forget", "retain"))


def scores(cell: Cell, when: str = "end") -> dict[str, Any]:
    """One run's row: US, RS, HS, perplexity and ROUGE-L of every domain."""
    row: dict[str, Any] = {"method": cell.name if when == "end" else "start", "seed": cell.seed}
    found = metrics(cell.path)["success"][when]
    for domain, each in sorted(found.items(), reverse=True):
        row |= {f"{name}, {domain}": each[name] for name in ("US", "RS", "HS")}
        for role, short in (("forget", "U"), ("retain", "R")):
            row |= {
                f"PPL {short}, {domain}": each[role]["perplexity"],
                f"ROUGE-L {short}, {domain}": each[role]["rouge_l"],
            }
    row["HS, mean"] = sum(each["HS"] for each in found.values()) / len(found)
    return row


def tabulate(cells: Sequence[Cell], *, start: bool = False) -> pd.DataFrame:
    """A row a run, those whose start did not know a set left out."""
    rows = [scores(cell) for cell in cells if known(cell.before or cell.path)]
    first = [scores(cells[0], "start")] if start else []
    return pd.DataFrame([*first, *rows])


def table(
    cells: Sequence[Cell], out: Path, *, start: bool = False, relative_to: str = "", costs: bool = False
) -> pd.DataFrame:
    """Write every run's row, and the mean, least and largest over seeds; print the latter in short.

    Args:
        cells: the runs.
        out: path without ending.
        start: a first row for the start.
        relative_to: a row whose relative difference (%) is added.
        costs: add minutes and peak memory.

    Returns:
        One row a method.
    """
    frame = tabulate(cells, start=start)
    if costs:
        paths = {cell.name: cell.path for cell in cells}
        frame["minutes"] = [_minutes(paths[n]) if n in paths else float("nan") for n in frame["method"]]
        frame["GB"] = [metrics(paths[n])["peak_memory_gb"] if n in paths else float("nan") for n in frame["method"]]
    numbers = [name for name in frame.columns if name not in ("method", "seed")]
    grouped = frame.groupby("method", sort=False)
    wide = grouped[numbers].mean()
    wide.insert(0, "seeds", grouped["seed"].agg(lambda each: " ".join(map(str, each))))
    for kind in ("min", "max"):
        wide = wide.join(grouped[numbers].agg(kind).add_suffix(f", {kind}"))
    if relative_to:
        base = wide.loc[relative_to, numbers]
        wide = wide.join(((wide[numbers] - base) / base * 100).add_suffix(f", % of {relative_to}"))
    out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out.with_suffix(".runs.csv"), index=False, float_format="%.4f")
    wide.to_csv(out.with_suffix(".csv"), float_format="%.4f")
    shown = [name for name in numbers if name.startswith(("US", "RS", "HS", "minutes", "GB"))]
    print(f"\n{out.name}\n{wide[shown].to_string(float_format='%.1f')}")
    return wide.reset_index()


def sweep(swept: Sequence[tuple[str, float, Cell]]) -> pd.DataFrame:
    """The rows of Figure 4: a mask, its share, a domain, US and RS, a seed each."""
    return pd.DataFrame([
        {
            "which": which,
            "share": share,
            "domain": domain,
            "unlearn_success": each["US"],
            "retention_success": each["RS"],
            "seed": cell.seed,
        }
        for which, share, cell in swept
        for domain, each in metrics(cell.path)["success"]["end"].items()
    ])


def _minutes(path: Path) -> float:
    return float(read_steps(path)["seconds"].sum() / 60)
