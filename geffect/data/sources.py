"""Rows from files, from the directories of benchmarks below ``--data-dir``, and from the Hugging Face hub."""

import codecs
import datetime
import decimal
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from geffect.errors import GeffectError, missing_path, nearest
from geffect.io.hub import offline_if_unreachable
from geffect.io.readers import PARSED, Unreadable, duplicate, open_regular, parse_json, read_text, reasons, text_lines
from geffect.io.system import free_memory

Row = dict[str, Any] | str  # as it stands in a file: by column, or a text
Columns = Mapping[str, str]  # field → column

QUESTIONS: Columns = {"question": "question", "answer": "answer"}
KNOWUNDO: Columns = {"question": "text", "answer": "labels"}
VERBATIM: Columns = {"question": "prompt", "answer": "gt"}
TEXTS: Columns = {"text": "text"}
BATCH = 256  # rows of a Parquet file read at a time
HEAD = 2**16  # bytes searched for the bracket that opens a list
TOO_MANY = "more rows than memory holds; name a slice such as [:1000]"


def read_rows(path: Path, most: int | None = None) -> list[Row]:
    """The rows of a file as they stand there, each a dictionary by column or a text; the first ``most`` (None: all).

    A ``.json`` file is a list or, as TOFU's are, one object a line; ``.jsonl`` is the latter. A ``.txt`` file is one
    text. Lines, CSV and Parquet files are read no further than needed. Raise where memory cannot hold the rows.
    """
    try:
        check_file(path)
        with reasons():
            rows = READERS[path.suffix.lower()](path, most)
    except GeffectError:
        raise
    except (Unreadable, OSError) as error:
        reason = str(error).partition("\n")[0]
        message = f"The {path.suffix} file at {path} cannot be read: {reason}"
        raise GeffectError(message, remedy="Repair or re-export it") from error
    if not rows:
        raise GeffectError(f"The file at {path} has no rows", remedy="Name another file")
    return rows


def check_file(path: Path) -> None:
    """Raise where there is no file."""
    if not path.is_file():
        raise GeffectError(f"There is no file at {path}", remedy=missing_path(path, "Correct the path"))


def _json(path: Path, most: int | None) -> list[Any]:
    with open_regular(path) as stream:
        head = stream.read(HEAD).removeprefix(codecs.BOM_UTF8).lstrip()
    if not head.startswith(b"["):
        return _jsonl(path, most, texts=False)
    rows: list[Row] = parse_json(read_text(path), constants=True)
    return rows[:most]


def _jsonl(path: Path, most: int | None, *, texts: bool = True) -> list[Any]:
    rows: list[Row] = []
    room = free_memory() // PARSED
    for number, line in enumerate(text_lines(path), start=1):
        if most is not None and len(rows) >= most:
            break
        room -= len(line)
        if room < 0:
            raise Unreadable(TOO_MANY)
        if line.strip():
            rows.append(_object(path, number, line, texts=texts))
    return rows


def _object(path: Path, number: int, line: str, *, texts: bool) -> Row:
    try:
        row: Row = parse_json(line, constants=True)
        if isinstance(row, str) and not texts:
            raise Unreadable("a text")
    except Unreadable as error:
        message = f"{path} has no JSON object in line {number}: {error}"
        raise GeffectError(message, remedy="Repair that line") from error
    return row


def _csv(path: Path, most: int | None) -> list[Any]:
    import pandas as pd

    with open_regular(path, None if most is not None else free_memory() // PARSED) as stream:
        header = pd.read_csv(stream, header=None, nrows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        _refuse_twins(header.iloc[0])
        stream.seek(0)
        frame = pd.read_csv(stream, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=most)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus fields as an index and shifts the rest
        raise Unreadable("rows with more fields than the header has columns")
    return frame.to_dict(orient="records")


def _parquet(path: Path, most: int | None) -> list[Any]:
    return list(islice(_parquet_rows(path, BATCH if most is None else min(most, BATCH)), most))


def _parquet_rows(path: Path, together: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file as JSON could write them; ``together`` are read at a time."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise Unreadable("pyarrow is not installed; run pip install 'geffect[parquet]'") from error
    room = free_memory() // PARSED
    with open_regular(path) as stream, pq.ParquetFile(stream, buffer_size=2**20) as file:
        _refuse_twin_fields(file.schema_arrow)
        for batch in file.iter_batches(together):
            room -= batch.nbytes
            if room < 0:
                raise Unreadable(TOO_MANY)
            yield from map(_plain_row, batch.to_pylist())


def _refuse_twins(columns: Iterable[str]) -> None:
    """Raise for two columns of one name, which pandas would rename or drop; blank names stand for no column."""
    if (twice := duplicate(name for name in columns if name)) is not None:
        raise Unreadable(f"the column {twice!r} twice")


def _refuse_twin_fields(fields: Iterable[Any]) -> None:
    """Raise for two columns of one name in a Parquet schema, or two fields of one name in a structure or list."""
    fields = list(fields)
    _refuse_twins(field.name for field in fields)
    for field in fields:
        _refuse_twin_fields(field.type.field(i) for i in range(field.type.num_fields))


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON could write it: times as ISO 8601, decimals digit by digit; raise for bytes, say."""
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

Sets = Mapping[str, list[Path]]  # name → files
SHARD = re.compile(r"-\d{5}-of-(\d{5})$")


class Layout(NamedTuple):
    """How the files of one benchmark are named.

    Attributes:
        example: a file, ``NAME`` standing for the set's name.
        patterns: of the files, below the benchmark's directory.
        sets: the files of each set by name, from that directory and all its files.
        choices: what the columns may be called.
    """

    example: str
    patterns: Sequence[str]
    sets: Callable[[Path, list[Path]], Sets]
    choices: Sequence[Columns]


def locate(benchmark: str, name: str, data_dir: Path | None) -> list[Path]:
    """The files of a benchmark's set such as ``forget01``, in order; raise where it is absent or a shard is missing."""
    layout = LAYOUTS[benchmark]
    if data_dir is None:
        example = f"{benchmark}/{layout.example.replace('NAME', name)}"
        message = f"{benchmark}:{name} needs --data-dir, a directory with {example} below it"
        raise GeffectError(message, remedy="Add --data-dir")
    folder = Path(os.path.expanduser(data_dir)) / benchmark
    sets = layout.sets(folder, sorted({file for pattern in layout.patterns for file in folder.glob(pattern)}))
    if name not in sets:
        suffixes = dict.fromkeys(PurePath(pattern).suffix for pattern in layout.patterns)
        have = ", ".join(sorted(sets)) or f"no {' or '.join(suffixes)} file"
        message = f"There is no set {benchmark}:{name} among those in {folder}: {have}"
        raise GeffectError(message, remedy=nearest(name, sets, f"{benchmark}:") + "Name one of these")
    _check_shards(f"{benchmark}:{name}", sets[name])
    return sets[name]


def _check_shards(name: str, files: list[Path]) -> None:
    """Raise unless a set is one file, or every shard of it once, in one directory."""
    stems = defaultdict(list)
    for file in files:
        stems[SHARD.sub("", file.stem)].append(file.stem)
    is_complete = len({file.parent for file in files}) == 1
    for base, shards in stems.items():
        shard = SHARD.search(shards[0])
        expected = [f"{base}-{i:05}-of-{shard[1]}" for i in range(int(shard[1]))] if shard else [base]
        is_complete = is_complete and shards == expected
    if not is_complete:
        have = ", ".join(f"{file.parent.name}/{file.name}" for file in files)
        message = f"{name} is not one file, or each of its shards once: {have}"
        raise GeffectError(message, remedy="Restore or remove the others")


def _by_path(folder: Path, files: list[Path]) -> Sets:
    sets = defaultdict(list)
    for file in files:
        sets[SHARD.sub("", file.relative_to(folder).with_suffix("").as_posix())].append(file)
    return sets


def _by_folder(folder: Path, files: list[Path]) -> Sets:
    """Set → files, where the files of a directory are one set."""
    sets: defaultdict[str, list[Path]] = defaultdict(list)
    for name, paths in _by_path(folder, files).items():
        sets[name.partition("/")[0]] += paths
    return sets


def _by_part(folder: Path, files: list[Path]) -> Sets:
    """``unlearn_train.json`` is ``unlearn/train`` and ``unlearn``; with ``unlearn_val.json`` it is ``unlearn/all``."""
    sets: dict[str, list[Path]] = {}
    for name, paths in _by_path(folder, files).items():
        stem, _, part = name.rpartition("_")
        sets[f"{stem}/{part}"] = paths
        if part == "train":
            sets[stem] = paths
        elif f"{stem}/train" in sets:  # train sorts before val
            sets[f"{stem}/all"] = sets[stem] + paths
    return sets


LAYOUTS: dict[str, Layout] = {
    "tofu": Layout("NAME.json", ("*.json",), _by_path, (QUESTIONS,)),
    "knowundo": Layout("DOMAIN/PART_train.json", ("*/*_train.json", "*/*_val.json"), _by_part, (KNOWUNDO,)),
    "muse": Layout(
        "NAME.json", ("**/*.json", "**/*.jsonl", "**/*.parquet", "**/*.txt"), _by_path, (QUESTIONS, VERBATIM, TEXTS)
    ),
    "wmdp": Layout(
        "NAME.jsonl", ("*.jsonl", "*.json", "*.parquet", "*/*.jsonl", "*/*.parquet"), _by_folder, (TEXTS, QUESTIONS)
    ),
}


HUB_FORM = "Write hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT for the default configuration"
HUB_PART = re.compile(r"(?!\.+$)[\w.+-]+")  # no part leads to a directory elsewhere


def hub_rows(name: str) -> list[Row]:
    """The rows of ``ORG/NAME/CONFIG/SPLIT`` or ``ORG/NAME/SPLIT``, by column; no code that comes with a set is run.

    As always with ``datasets``, a directory ``ORG/NAME`` below the current one takes precedence over the hub. KnowUnDo
    is one row there, whose columns ``train`` and ``val`` are lists of rows: its train part is taken.
    """
    parts = name.split("/")
    if len(parts) not in {3, 4} or not all(map(HUB_PART.fullmatch, parts)):
        raise GeffectError(f"hub:{name} does not name a split of a hub's set", remedy=HUB_FORM)
    try:
        from datasets import load_dataset
    except ImportError as error:
        message = f"hub:{name} needs the datasets library, which cannot be imported: {error}"
        raise GeffectError(message, remedy="Run: pip install 'geffect[hub]'") from error
    config = parts[2] if len(parts) == 4 else None
    place = "/".join(parts[:2])
    try:
        with offline_if_unreachable(place):
            table = load_dataset(place, name=config, split=parts[-1])
        rows: list[Any] = [_plain_row(row) for row in table.to_list()]
    except Exception as error:  # each builder, reader and network layer below has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "Check the name, its configuration, its split and the network"
        raise GeffectError(f"hub:{name} cannot be loaded: {reason}", remedy=remedy) from error
    is_knowundo = len(rows) == 1 and set(rows[0]) == {"train", "val"} and isinstance(rows[0]["train"], list)
    return rows[0]["train"] if is_knowundo else rows
