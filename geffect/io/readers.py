"""Bounded readers for every file that a user or a download supplies.

A file must be regular (no pipe, device, socket or directory), no larger than its kind ever is, UTF-8, and nested within
bounds, with numbers within bounds and no key twice in an object. Whatever is wrong becomes `Unreadable` with a reason
of one line, which the caller puts into a sentence. ``docs/inputs.md`` lists the bounds.
"""

import contextlib
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from geffect.errors import GeffectError
from geffect.io.system import free_memory

JSON = Any  # a value that JSON can hold: the reader of a file checks its parts
StrPath = str | os.PathLike[str]  # what names a file: a text, a Path, or a run
T = TypeVar("T")
YAML_BYTES = 2**18  # the YAML parser takes four seconds for it
JSON_BYTES = 2**28  # an index or a table of parameters has a few MiB
LINE_BYTES = 2**28  # of a record, or of JSON lines
YAML_NODES = 100_000  # once every alias is written out
YAML_DIGITS = 400  # of a number: more than any float has
PARSED = 10  # bytes of memory a byte of text takes once it is parsed


class Unreadable(ValueError):
    """The reason that a file cannot be read, in one line."""


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Turn whatever reading raises into `Unreadable`, but let a `GeffectError` pass."""
    try:
        yield
    except (Unreadable, GeffectError):
        raise
    except RecursionError as error:
        raise Unreadable("values nested too deeply") from error
    except MemoryError as error:
        raise Unreadable("more than memory holds") from error
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except Exception as error:  # a YAML constructor raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, json.JSONDecodeError) and error.lineno == 1:
            reason = error.msg
        if isinstance(error, yaml.MarkedYAMLError) and error.problem and (mark := error.problem_mark):
            reason = f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
        if isinstance(error, LookupError | AttributeError | TypeError):
            reason = f"a value that does not fit its tag ({reason})"
        raise Unreadable("a number of too many digits" if "integer string conversion" in reason else reason) from error


@contextlib.contextmanager
def open_regular(path: Path, most: int | None = None) -> Iterator[IO[bytes]]:
    """Open a regular file of at most ``most`` bytes; a pipe without a writer does not block."""
    with reasons():
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        stream = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
        if stream is None:
            os.close(handle)
            raise Unreadable("no regular file")
    with stream:
        size = os.fstat(handle).st_size
        if most is not None and size > most:
            raise Unreadable(f"{size} bytes, more than the {most} that it may have")
        yield stream


def check_regular(directory: Path) -> None:
    """Refuse a directory that another library will read where an entry is a pipe, a device or a socket."""
    for each in sorted(directory.iterdir()):
        if each.exists() and not each.is_file() and not each.is_dir():
            raise GeffectError(f"{each} is no regular file", remedy="Move it away")


def read_bytes(path: Path, most: int = JSON_BYTES) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes."""
    with open_regular(path, most) as stream, reasons():
        content = stream.read(most + 1)
    if len(content) > most:  # it has grown, or lies in a file system that tells no sizes
        raise Unreadable(f"more than {most} bytes")
    return content


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a regular UTF-8 file, without a byte-order mark, with line feeds only; as large as memory allows."""
    content = read_bytes(path, free_memory() // PARSED if most is None else most)
    with reasons():
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a regular UTF-8 file with their ends, one at a time; a line ends in LF, CR LF or CR."""
    with open_regular(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as stream, reasons():
        while line := stream.readline(LINE_BYTES + 1):
            _check_line(line)
            yield line


def byte_lines(path: Path) -> Iterator[bytes]:
    """The lines of a regular file with their ends, one at a time; a line ends in LF."""
    with open_regular(path) as stream, reasons():
        while line := stream.readline(LINE_BYTES + 1):
            _check_line(line)
            yield line


def _check_line(line: str | bytes) -> None:
    if len(line) > LINE_BYTES:
        raise Unreadable(f"a line of more than {LINE_BYTES} bytes")


def parse_json(text: str | bytes, *, constants: bool = False) -> JSON:
    """Parse one JSON value; ``constants`` allows NaN and Infinity, which Python writes and JSON does not have."""
    with reasons():
        refuse = None if constants else _refuse_constant
        return json.loads(text, object_pairs_hook=unique_object, parse_constant=refuse)


def _refuse_constant(word: str) -> None:
    raise Unreadable(f"{word}, which is no JSON")


def read_json(path: Path, most: int = JSON_BYTES) -> JSON:
    """The value in a JSON file of at most ``most`` bytes."""
    return parse_json(read_bytes(path, most))


def read_yaml(path: Path) -> JSON:
    """The value in a YAML file of plain tags (`parse_yaml`)."""
    return parse_yaml(read_text(path, YAML_BYTES))


def parse_yaml(text: str) -> JSON:
    """Parse one YAML document of plain tags whose aliases stand for at most `YAML_NODES` values."""
    with reasons():
        loader = UniqueLoader(text)
        try:
            node = loader.get_single_node()
            _count_nodes(node, {})
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()


def _count_nodes(node: Any, counts: dict[int, int]) -> int:
    """The number of values that a node stands for, aliases written out; each node is visited once."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise Unreadable("a value that contains itself")
        return counts[id(node)]
    counts[id(node)] = 0  # under way
    value = getattr(node, "value", None)
    below = (
        [part for pair in value for part in (pair if isinstance(pair, tuple) else (pair,))]
        if isinstance(value, list)
        else []
    )
    if isinstance(value, str) and len(value) > YAML_DIGITS and node.tag.endswith((":int", ":float", ":timestamp")):
        raise Unreadable(f"a number of {len(value)} digits")
    count = 1 + sum(_count_nodes(part, counts) for part in below)
    if count > YAML_NODES:
        raise Unreadable(f"more than {YAML_NODES} values once its aliases are written out")
    counts[id(node)] = count
    return count


def duplicate(names: Iterable[T]) -> T | None:
    """The first name that occurs twice; None where there is none.

    >>> duplicate(["a", "b", "a"]), duplicate(["a", "b"])
    ('a', None)
    """
    return next((name for name, count in Counter(names).items() if count > 1), None)


def unique_object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    """A JSON object from its pairs, as `json.loads` takes it for ``object_pairs_hook``; no key may occur twice.

    >>> unique_object([("a", 1), ("a", 2)])
    Traceback (most recent call last):
    ValueError: the key 'a' twice in one object
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"the key {duplicate(key for key, _ in pairs)!r} twice in one object")
    return content


class UniqueLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping that has a key twice; keys merged by ``<<`` may be overridden."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """As PyYAML's; a key that occurs twice is a ComposerError."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if (twice := duplicate((key.tag, key.value) for key in keys)) is not None:
            mark = [key.start_mark for key in keys if (key.tag, key.value) == twice][1]
            raise yaml.composer.ComposerError(None, None, f"the key {twice[1]!r} twice", mark)
        return node
