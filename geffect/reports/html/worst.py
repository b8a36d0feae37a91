"""The rows that a run serves worst, by how far their likelihood moved."""

from pathlib import Path

import pandas as pd

from geffect.core.splits import role_of
from geffect.record.reader import evaluations

COLUMNS = ["set", "example", "nats a token, start", "nats a token, end", "rise"]
COUNT = 3


def worst_rows(path: Path, count: int = COUNT) -> pd.DataFrame:
    """Of every evaluated set the rows that moved the wrong way most, or the right way least.

    Args:
        path: a run directory.
        count: rows of a set.

    Returns:
        `COLUMNS`: of a forget set the rows whose −log p rose least, of any other those whose rose most; no lines where
        fewer than two evaluations kept their rows.
    """
    scored = [line.examples for line in evaluations(path) if line.examples and not line.diverged]
    if len(scored) < 2:
        return pd.DataFrame(columns=COLUMNS)
    found = []
    for name, first in scored[0].items():
        frame = pd.DataFrame({"start": first.nll, "end": scored[-1][name].nll}).div(first.tokens, axis=0)
        frame["rise"] = frame["end"] - frame["start"]
        chosen = frame.sort_values("rise", ascending=role_of(name).startswith("forget")).head(count)  # or forget_val
        found.append(chosen.rename_axis("example").reset_index().assign(set=name))
    return pd.concat(found)[["set", "example", "start", "end", "rise"]].set_axis(COLUMNS, axis=1)
