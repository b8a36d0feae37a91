"""What an inspection recorded of single tokens and single rows, as frames."""

from pathlib import Path

import pandas as pd

from geffect.core.layers import depth
from geffect.record.reader import as_written, each_line
from geffect.record.writer import POINTS, TOKENS


@as_written
def read_tokens(path: Path | str) -> pd.DataFrame:
    """The effect of the objective's direction on every token of the rows it serves worst (``--tokens``).

    Args:
        path: the record.

    Returns:
        A row a token: ``step``, ``set``, ``example``, ``position``, ``token``, ``labeled``, ``direction``, ``effect`` =
        ⟨∇ℓ, direction⟩ (below 0: a step along it makes the token less likely), and a column a layer group.

    Raises:
        GeffectError: there is no such record, or it holds none.
    """
    frames = []
    for line in each_line(Path(path), TOKENS):
        columns = {"token": line["tokens"], "labeled": line["labeled"], "effect": line["effect"]} | line["groups"]
        keys = {name: line[name] for name in ("step", "set", "example")}
        frame = pd.DataFrame(columns).assign(**keys, direction=line["direction"], position=range(len(line["tokens"])))
        first = [*keys, "position", "token", "labeled", "direction", "effect"]
        frames.append(frame[[*first, *sorted(line["groups"], key=depth)]])
    return pd.concat(frames, ignore_index=True)


@as_written
def read_points(path: Path | str) -> pd.DataFrame:
    """Every forget row's own effects on both risks, and objectives' weights on it (``--points``).

    Args:
        path: the record.

    Returns:
        A row a forget row and step: ``step``, ``example``, ``unlearn`` and ``retain`` = ⟨∇R, ∇log p(s)⟩, ``nll`` and
        ``reference_nll`` (nats of the whole row; NaN without a start), ``num_tokens``, and a column a weight.

    Raises:
        GeffectError: there is no such record, or it holds none.
    """
    lines = [
        {k: v for k, v in line.items() if k != "weights"} | line["weights"] for line in each_line(Path(path), POINTS)
    ]
    return pd.DataFrame(lines).astype({"reference_nll": float})
