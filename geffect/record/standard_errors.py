"""Standard errors of a run's inner products, from the spread of its micro-batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geffect.core.layers import depth, layer_groups
from geffect.errors import GeffectError
from geffect.record.reader import as_written, each_line, read_environment
from geffect.record.writer import STEPS


@as_written
def read_standard_errors(path: Path | str, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """Inner products with their standard errors (`geffect.measurement.standard_errors`).

    Args:
        path: the run directory.
        by: ``total``, ``group`` or ``layer``.
        scheme: how layers make groups.

    Returns:
        Columns ``step``, ``by``, ``gradient``, ``other``, ``inner`` (⟨row, other⟩ of the window), ``standard_error``
        (std over its B micro-batches of the linearized products, over √B) and ``halves`` (the mean product of two
        disjoint halves: for a row with itself, ‖g‖² without the variance that ‖ĝ‖² adds).

    Raises:
        GeffectError: no run is there, it recorded none, or ``by`` is unknown.
    """
    path = Path(path)
    if by not in ("total", "group", "layer"):
        raise GeffectError("by among total, group, layer", repr(by), "choose one of these")
    groups = layer_groups(read_environment(path)["parameters"]["num_blocks"], scheme)
    names = {"total": lambda _: "total", "group": groups.__getitem__, "layer": str}[by]
    frames = [_frame(line, by, names) for line in each_line(path) if line.get("standard_errors")]
    if not frames:
        remedy = "run geffect unlearn with --standard-errors"
        raise GeffectError(f"standard errors in {path / STEPS}", "none", remedy)
    return pd.concat(frames, ignore_index=True)


def _frame(line: Mapping[str, Any], by: str, names: Any) -> pd.DataFrame:
    spread = line["standard_errors"]
    labels = [names(layer) for layer in spread["labels"]]
    known = sorted(dict.fromkeys(labels), key=depth)
    onto = [known.index(label) for label in labels]
    products = np.asarray(spread["linearized"], dtype=float)  # [labels, B, pairs]
    halves = np.asarray(spread["halves"], dtype=float)  # [labels, pairs]
    sums, half_sums = np.zeros((len(known), *products.shape[1:])), np.zeros((len(known), halves.shape[1]))
    np.add.at(sums, onto, products)
    np.add.at(half_sums, onto, halves)
    pairs = [(spread["rows"][i], spread["rows"][j]) for i, j in zip(*np.triu_indices(len(spread["rows"])), strict=True)]
    return pd.DataFrame({
        "step": line["step"],
        by: np.repeat(known, len(pairs)),
        "gradient": [a for a, _ in pairs] * len(known),
        "other": [b for _, b in pairs] * len(known),
        "inner": sums.mean(1).ravel(),
        "standard_error": (sums.std(1, ddof=1) / np.sqrt(products.shape[1])).ravel(),
        "halves": half_sums.ravel(),
    })
