"""Rows from json, jsonl, csv, parquet and txt files, with errors that name the line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.unique import duplicate, loads_json


def read_rows(path: Path) -> list[Any]:
    """Read a table, or a list of texts.

    A ``.json`` file is a list or, as TOFU's are, one object a line; ``.jsonl`` is the latter. A ``.txt`` file is one
    text.

    Args:
        path: the file.

    Returns:
        One object a row as it stands in the file: a dictionary by column, or a text.

    Raises:
        GeffectError: the file is absent, unreadable or empty.
    """
    try:
        if not path.is_file():
            raise GeffectError(f"a file at {path}", "none", "correct the path")
        rows = READERS[path.suffix.lower()](path)
    except GeffectError:
        raise
    except (OSError, ValueError, ImportError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"a readable {path.suffix} file at {path}", reason, "repair or re-export it") from error
    if not rows:
        raise GeffectError(f"at least one row in {path}", "an empty file", "name another file")
    return rows


def _json(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8-sig")
    return loads_json(text) if text.lstrip().startswith("[") else _lines(path, text)


def _jsonl(path: Path) -> list[Any]:
    return _lines(path, path.read_text(encoding="utf-8-sig"))


def _lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(loads_json(line))
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise GeffectError(f"one JSON object a line in {path}", f"{reason} in line {number}",
                                   "repair that line") from error  # fmt: skip
    return rows


def _csv(path: Path) -> list[Any]:
    import pandas as pd

    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    _refuse_twins(header.iloc[0])
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus fields for an index, and shifts the rest
        raise ValueError("rows with more fields than the header has columns")
    return frame.to_dict(orient="records")


def _parquet(path: Path) -> list[Any]:
    import pandas as pd
    from pyarrow.parquet import read_schema

    _refuse_twin_fields(read_schema(path))
    return pd.read_parquet(path).to_dict(orient="records")


def _refuse_twins(columns: Iterable[str]) -> None:
    """pandas would rename one of two columns, or leave it out; blank names stand for no column."""
    if (twice := duplicate(name for name in columns if name)) is not None:
        raise ValueError(f"the column {twice!r} twice")


def _refuse_twin_fields(fields: Iterable[Any]) -> None:
    """The same of a Parquet schema's columns, and of the fields of a structure or a list within one."""
    found = list(fields)
    _refuse_twins(field.name for field in found)
    for field in found:
        _refuse_twin_fields(field.type.field(i) for i in range(field.type.num_fields))


def _txt(path: Path) -> list[Any]:
    return [path.read_text(encoding="utf-8-sig")]


READERS = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
