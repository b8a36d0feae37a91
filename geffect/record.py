"""The run directory: written once, line by line, and read back as tidy frames."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from geffect.errors import GeffectError
from geffect.gram import Gram
from geffect.groups import Layout, layer_groups

STEPS, ENVIRONMENT, CONFIG, METRICS, DONE = "steps.jsonl", "environment.json", "config.yaml", "metrics.json", "DONE"
DIGITS = 9  # significant digits of an inner product: more than float32 products hold


class RunDirectory:
    """A run being written. Nothing that exists is ever overwritten.

    Args:
        path: the directory; it must not exist, or be empty.

    Raises:
        GeffectError: it exists, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_existing(path)

    def create(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Make the directory with its configuration and environment."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        self._json(ENVIRONMENT, environment)

    @property
    def begun(self) -> bool:
        """Whether the directory has its configuration."""
        return (self.path / CONFIG).exists()

    def abandon(self) -> None:
        """Remove what a start that failed left behind, where nothing has been written into it."""
        for folder in (self.path / "checkpoints", self.path):
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one step's line to ``steps.jsonl`` and see it on disk; NaN and infinities become null."""
        text = json.dumps(_plain(dict(line)), allow_nan=False)
        with (self.path / STEPS).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, then ``DONE``, last of all."""
        self._json(METRICS, metrics)
        (self.path / DONE).touch()

    def _json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(_plain(dict(content)), indent=1, allow_nan=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


def refuse_existing(path: Path) -> None:
    """Raise where a run's directory is taken, or where none can be made.

    Args:
        path: the directory asked for.

    Raises:
        GeffectError: it exists and is not an empty directory, or what it would lie in cannot be written to.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise GeffectError(
            f"a new directory for --out {path}", "something there already", "choose another name or move it away"
        )
    full = path.absolute()
    ground = next(each for each in (full, *full.parents) if each.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise GeffectError(f"a directory to write --out {path} in", str(ground), "choose another place")


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """The parameter table of a run's environment: names, layers, sizes, number of blocks."""
    names = list(layout.layers)
    return {
        "num_blocks": layout.num_blocks,
        "names": names,
        "layers": [layout.layers[name] for name in names],
        "numel": [layout.numel[name] for name in names],
    }


def read(path: Path | str, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """The inner products of a run's rows.

    Args:
        path: the run directory.
        by: sum parameters up to ``group``, ``layer``, or not at all (``parameter``).
        scheme: how layers make groups (`geffect.groups.block_groups`).

    Returns:
        Columns ``step``, ``by``, ``row``, ``other``, ``inner``; each unordered pair of rows once.

    Raises:
        GeffectError: no run is there, or ``by`` is unknown.
    """
    path = Path(path)
    table = read_environment(path)["parameters"]
    labels = _labels(table, by, scheme)
    names = list(dict.fromkeys(labels))
    onto = [names.index(label) for label in labels]
    frames = [_frame(line, onto, names, by) for line in read_lines(path) if "gram" in line]
    if not frames:
        raise GeffectError(f"at least one measured step in {path}", "none", "name a run of geffect unlearn")
    return pd.concat(frames, ignore_index=True)


def _labels(table: Mapping[str, Any], by: str, scheme: str) -> list[str]:
    groups = layer_groups(table["num_blocks"], scheme)
    columns = {
        "parameter": table["names"],
        "layer": table["layers"],
        "group": [groups[each] for each in table["layers"]],
    }
    if by not in columns:
        raise GeffectError(f"by among {', '.join(columns)}", repr(by), "choose one of these")
    labels: list[str] = columns[by]
    return labels


def _frame(line: Mapping[str, Any], onto: list[int], names: list[str], by: str) -> pd.DataFrame:
    rows = line["gram"]["rows"]
    pairs = [(rows[i], rows[j]) for i, j in zip(*np.triu_indices(len(rows)), strict=True)]
    sums = np.zeros((len(names), len(pairs)))
    np.add.at(sums, onto, np.asarray(line["gram"]["values"], dtype=float))  # not a matrix product, whose 0 · NaN is NaN
    return pd.DataFrame({
        "step": line["step"],
        by: np.repeat(names, len(pairs)),
        "row": [a for a, _ in pairs] * len(names),
        "other": [b for _, b in pairs] * len(names),
        "inner": sums.ravel(),
    })


def read_steps(path: Path | str) -> pd.DataFrame:
    """A run's scalars: one row a step, evaluations as ``forget_risk``, ``held_accuracy`` and so on.

    Args:
        path: the run directory.

    Returns:
        A frame with ``step`` and whatever was recorded; NaN where a step did not record it.
    """
    lines = []
    for line in read_lines(Path(path)):
        scores = {
            f"{name}_{kind}": value for name, both in line.get("evaluation", {}).items() for kind, value in both.items()
        }
        lines.append({k: v for k, v in line.items() if k not in {"gram", "evaluation"}} | scores)
    return pd.DataFrame(lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of ``steps.jsonl``; a torn last line is dropped.

    Args:
        path: the run directory.

    Returns:
        The lines in order.

    Raises:
        GeffectError: there is no record, or a line other than the last cannot be read.
    """
    file = path / STEPS
    if not file.is_file():
        raise GeffectError(
            f"a run with {STEPS} in {path}", "none", "name a directory written by geffect unlearn or fit"
        )
    texts = file.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(texts[:-1], start=1):  # what follows the last newline was torn
        try:
            lines.append(_json_object(text))
        except ValueError as error:
            raise GeffectError(f"one JSON object a line in {file}", f"{error} in line {number}",
                               "restore the file from a copy") from error  # fmt: skip
    return lines


def read_environment(path: Path) -> dict[str, Any]:
    """A run's ``environment.json``.

    Args:
        path: the run directory.

    Returns:
        Its content.

    Raises:
        GeffectError: there is none, or it cannot be read.
    """
    try:
        content = _json_object((path / ENVIRONMENT).read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(
            f"a run with {ENVIRONMENT} in {path}", reason, "name a directory written by geffect"
        ) from error
    return content


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from error
    if not isinstance(content, dict):
        raise ValueError(type(content).__name__)
    return content


def _plain(value: Any) -> Any:
    """JSON's own types; a Gram as its upper triangles."""
    if isinstance(value, Gram):
        upper = np.triu_indices(len(value.rows))
        triangles = [g.numpy()[upper].tolist() for g in value.values.values()]
        return {"rows": list(value.rows), "values": [[_rounded(x) for x in each] for each in triangles]}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
