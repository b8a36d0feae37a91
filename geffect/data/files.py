"""Rows from json, jsonl, csv, parquet and txt files, with errors that name the line."""

import codecs
import datetime
import decimal
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.io.limits import free_memory
from geffect.io.readers import PARSED, Unreadable, opened, parse_json, read_text, reasons, text_lines
from geffect.io.unique import duplicate

BATCH = 256  # rows of a Parquet file read at a time
HEAD = 2**16  # bytes looked at for the bracket that opens a list


def read_rows(path: Path, most: int | None = None) -> list[Any]:
    """Read a table, or a list of texts.

    A ``.json`` file is a list or, as TOFU's are, one object a line; ``.jsonl`` is the latter. A ``.txt`` file is one
    text. Of a Parquet or CSV file and of lines no more is read than the rows that are asked for.

    Args:
        path: the file.
        most: rows read, the first ones; all by default.

    Returns:
        One object a row as it stands in the file: a dictionary by column, or a text.

    Raises:
        GeffectError: the file is absent, unreadable or empty, or memory does not hold its rows.
    """
    try:
        if not path.is_file():
            raise GeffectError(f"a file at {path}", "none", "correct the path")
        with reasons():
            rows = READERS[path.suffix.lower()](path, most)
    except GeffectError:
        raise
    except (Unreadable, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"a readable {path.suffix} file at {path}", reason, "repair or re-export it") from error
    if not rows:
        raise GeffectError(f"at least one row in {path}", "an empty file", "name another file")
    return rows


def _json(path: Path, most: int | None) -> list[Any]:
    with opened(path) as stream:
        head = stream.read(HEAD).removeprefix(codecs.BOM_UTF8).lstrip()
    if not head.startswith(b"["):
        return _jsonl(path, most, texts=False)
    rows: list[Any] = parse_json(read_text(path), constants=True)
    return rows[:most]


def _jsonl(path: Path, most: int | None, *, texts: bool = True) -> list[Any]:
    rows: list[Any] = []
    room = free_memory() // PARSED
    for number, line in enumerate(text_lines(path), start=1):
        if most is not None and len(rows) >= most:
            break
        room -= len(line)
        if room < 0:
            raise Unreadable("more rows than memory holds; name a slice such as [:1000]")
        if line.strip():
            rows.append(_object(path, number, line, texts=texts))
    return rows


def _object(path: Path, number: int, line: str, *, texts: bool) -> Any:
    try:
        row = parse_json(line, constants=True)
        if isinstance(row, str) and not texts:
            raise Unreadable("a text")
    except Unreadable as error:
        raise GeffectError(
            f"one JSON object a line in {path}", f"{error} in line {number}", "repair that line"
        ) from error
    return row


def _csv(path: Path, most: int | None) -> list[Any]:
    import pandas as pd

    with opened(path, None if most is not None else free_memory() // PARSED) as stream:
        header = pd.read_csv(stream, header=None, nrows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        _refuse_twins(header.iloc[0])
        stream.seek(0)
        frame = pd.read_csv(stream, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=most)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus fields for an index, and shifts the rest
        raise Unreadable("rows with more fields than the header has columns")
    return frame.to_dict(orient="records")


def _parquet(path: Path, most: int | None) -> list[Any]:
    return list(islice(_parquet_rows(path, BATCH if most is None else min(most, BATCH)), most))


def _parquet_rows(path: Path, together: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, so many read together, as JSON could write them."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise Unreadable("no pyarrow, which pip install 'geffect[parquet]' brings") from error
    room = free_memory() // PARSED
    with opened(path) as stream, pq.ParquetFile(stream, buffer_size=2**20) as file:
        _refuse_twin_fields(file.schema_arrow)
        for batch in file.iter_batches(together):
            room -= batch.nbytes
            if room < 0:
                raise Unreadable("more rows than memory holds; name a slice such as [:1000]")
            yield from map(plain, batch.to_pylist())


def _refuse_twins(columns: Iterable[str]) -> None:
    """pandas would rename one of two columns, or leave it out; blank names stand for no column."""
    if (twice := duplicate(name for name in columns if name)) is not None:
        raise Unreadable(f"the column {twice!r} twice")


def _refuse_twin_fields(fields: Iterable[Any]) -> None:
    """The same of a Parquet schema's columns, and of the fields of a structure or a list within one."""
    found = list(fields)
    _refuse_twins(field.name for field in found)
    for field in found:
        _refuse_twin_fields(field.type.field(i) for i in range(field.type.num_fields))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON could write it: times as ISO 8601, decimals digit by digit.

    Args:
        row: by column.

    Returns:
        The same of text, numbers, lists and objects alone.

    Raises:
        Unreadable: a value has no text, as bytes have none.
    """
    return {name: _plain(name, value) for name, value in row.items()}


def _plain(column: str, value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(column, each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(column, each) for key, each in value.items()}
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise Unreadable(f"{type(value).__name__} in column {column!r}, which is no text")


def _txt(path: Path, most: int | None) -> list[Any]:
    return [read_text(path)]


READERS = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
