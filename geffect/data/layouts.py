"""Where the files of TOFU, KnowUnDo, MUSE and WMDP lie below ``--data-dir``, and what their columns are called.

A name is looked up among the files that are there, so none leads out of the directory. Files the hub has cut into
shards (``forget-00000-of-00002.parquet``, …) are one set, in the order of their numbers.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from geffect.data.columns import KNOWUNDO, QUESTIONS, TEXTS, VERBATIM, Columns
from geffect.errors import GeffectError

Sets = Mapping[str, list[Path]]
SHARD = re.compile(r"-\d{5}-of-(\d{5})$")


class Layout(NamedTuple):
    """How one benchmark is laid out.

    Attributes:
        example: of a file, ``NAME`` standing for the set's name.
        patterns: of its files, below its own directory.
        sets: by name, from that directory and the files.
        choices: what its columns may be called.
    """

    example: str
    patterns: Sequence[str]
    sets: Callable[[Path, list[Path]], Sets]
    choices: Sequence[Columns]


def locate(benchmark: str, name: str, data_dir: Path | None) -> list[Path]:
    """Find the files of a set.

    Args:
        benchmark: a key of `LAYOUTS`.
        name: of the set, such as ``forget01`` or ``news/raw/forget``.
        data_dir: the directory that holds a directory ``benchmark``.

    Returns:
        The files, in order.

    Raises:
        GeffectError: there is no such set, a shard is missing, or it lies there twice.
    """
    layout = LAYOUTS[benchmark]
    if data_dir is None:
        example = f"{benchmark}/{layout.example.replace('NAME', name)}"
        raise GeffectError(f"--data-dir with {example} below it for {benchmark}:{name}", "no --data-dir", "add it")
    folder = Path(os.path.expanduser(data_dir)) / benchmark
    sets = _sets(folder, layout)
    if name not in sets:
        suffixes = dict.fromkeys(PurePath(pattern).suffix for pattern in layout.patterns)
        have = ", ".join(sorted(sets)) or f"no {' or '.join(suffixes)} file"
        raise GeffectError(f"a set among those in {folder}: {have}", repr(f"{benchmark}:{name}"), "name one of these")
    _refuse_parts(f"{benchmark}:{name}", sets[name])
    return sets[name]


def _sets(folder: Path, layout: Layout) -> Sets:
    return layout.sets(folder, sorted({file for pattern in layout.patterns for file in folder.glob(pattern)}))


def _refuse_parts(name: str, files: list[Path]) -> None:
    """A set is whole, and there once."""
    stems = defaultdict(list)
    for file in files:
        stems[SHARD.sub("", file.stem)].append(file.stem)
    whole = len({file.parent for file in files}) == 1
    for base, found in stems.items():
        shard = SHARD.search(found[0])
        every = [f"{base}-{i:05}-of-{shard[1]}" for i in range(int(shard[1]))] if shard else [base]
        whole = whole and found == every
    if not whole:
        have = ", ".join(f"{file.parent.name}/{file.name}" for file in files)
        raise GeffectError(f"one file of {name}, or each of its shards once", have, "restore or remove the others")


def _by_path(folder: Path, files: list[Path]) -> Sets:
    sets = defaultdict(list)
    for file in files:
        sets[SHARD.sub("", file.relative_to(folder).with_suffix("").as_posix())].append(file)
    return sets


def _by_folder(folder: Path, files: list[Path]) -> Sets:
    """The files of a folder are one set, named as the folder."""
    sets: defaultdict[str, list[Path]] = defaultdict(list)
    for name, found in _by_path(folder, files).items():
        sets[name.partition("/")[0]] += found
    return sets


def _by_part(folder: Path, files: list[Path]) -> Sets:
    """``unlearn_train.json`` is ``unlearn/train`` and ``unlearn``; with ``unlearn_val.json`` it is ``unlearn/all``."""
    sets: dict[str, list[Path]] = {}
    for name, found in _by_path(folder, files).items():
        stem, _, part = name.rpartition("_")
        sets[f"{stem}/{part}"] = found
        if part == "train":
            sets[stem] = found
        elif f"{stem}/train" in sets:  # in the alphabet, train comes before val
            sets[f"{stem}/all"] = sets[stem] + found
    return sets


LAYOUTS: dict[str, Layout] = {
    "tofu": Layout("NAME.json", ("*.json",), _by_path, (QUESTIONS,)),
    "knowundo": Layout("DOMAIN/PART_train.json", ("*/*_train.json", "*/*_val.json"), _by_part, (KNOWUNDO,)),
    "muse": Layout(
        "NAME.json", ("**/*.json", "**/*.jsonl", "**/*.parquet", "**/*.txt"), _by_path, (QUESTIONS, VERBATIM, TEXTS)
    ),
    "wmdp": Layout("NAME.jsonl", ("*.jsonl", "*.json", "*.parquet", "*/*.jsonl", "*/*.parquet"), _by_folder, (TEXTS,)),
}
