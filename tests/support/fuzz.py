"""Garbled input of every kind: each ends well or in one line, and no file is lost.

    python -m tests.support.fuzz [--count 200] [--seed 0] [KIND ...]

What is garbled: a configuration, a set's file, a record's file, a checkpoint's file. A mutation is one of those below;
a tenth of the inputs are drawn from nothing instead.
"""

import contextlib
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import yaml

from geffect import api
from geffect.config import LocalizeConfig, UnlearnConfig
from geffect.data.encode import encode_set
from geffect.data.load import load_set
from geffect.data.synthetic import generate_authors
from geffect.errors import GeffectError
from geffect.record.frames import read, read_overlap, read_prediction, read_published, read_standard_errors, read_steps
from geffect.reports.compare import compare, differences, summarize, whole_overlaps
from geffect.reports.findings import read_findings
from geffect.reports.outcome import worst_examples
from geffect.reports.run import Run, plot
from geffect.training.setup import read_gradient_mask

RUN: dict[str, Any] = {
    "objective": "npo",
    "rectifier": "gru",
    "steps": 4,
    "batch_size": 2,
    "grad_accum_steps": 2,
    "save_every": 2,
    "forget": "builtin:authors/forget[:6]",
    "retain": "builtin:authors/retain[:6]",
    "heldout": "builtin:authors/heldout[:3]",
    "evaluate_every": 2,
    "overlap": 0.1,
    "prediction": 2,
    "standard_errors": True,
    "mode": "paper",
}
VALUES = [
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    ".nan",
    "''",
    "[]",
    "{}",
    "[1, 2]",
    "{a: b}",
    "!!python/object:os.system x",
    "&a [*a]",
    "9" * 400,
    "\\ud800",
    "../../etc/passwd",
    "~",
    "\u0000",
    "NaN",
    "Infinity",
    '"\\x00"',
]
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    -1e308,
    10**30,
    "",
    "1",
    "x" * 300,
    "[/]",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    1.5,
    "\ud800",
    float("inf"),
    float("nan"),
]
KINDS = ("configuration", "set", "record", "checkpoint", "localization", "value")


class World:
    """A start, a finished run, a localization and files of examples, from which every trial takes a copy.

    Args:
        folder: where they are, and where they are made unless they are there.
        trials: where the copies go; processes may share the folder, each with its own trials.
    """

    def __init__(self, folder: Path, trials: Path | None = None) -> None:
        from geffect.models.builtin import make_tiny
        from tests.conftest import SHAPE

        self.folder, self.trials = folder, trials or folder / "trial"
        model, self.tokenizer = make_tiny(**SHAPE)
        self.config = UnlearnConfig.read(model=str(folder / "start"), out=folder / "run", **RUN)
        if not (folder / "sets" / "rows.parquet").exists():  # the last of all files
            self._make(model)

    def _make(self, model: Any) -> None:
        from geffect.models.load import quiet_transformers

        folder = self.folder
        with quiet_transformers():
            model.save_pretrained(folder / "start")
            self.tokenizer.save_pretrained(folder / "start")
        api.unlearn(self.config)
        domain = ["a=builtin:domains/privacy[:2]"]
        api.localize(
            LocalizeConfig.read(model=str(folder / "start"), domain=domain, share=[0.1], out=folder / "localized")
        )
        rows = [{k: row[k] for k in ("question", "answer")} for row in generate_authors("forget")[:5]]
        (folder / "sets").mkdir()
        (folder / "sets" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        (folder / "sets" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        (folder / "sets" / "texts.txt").write_text("\n\n".join(row["answer"] for row in rows), encoding="utf-8")
        pd.DataFrame(rows).to_csv(folder / "sets" / "rows.csv", index=False)
        pd.DataFrame(rows).to_parquet(folder / "sets" / "rows.parquet")

    def copy(self, name: str) -> Path:
        """A fresh copy of one of its folders."""
        shutil.rmtree(self.trials, ignore_errors=True)
        shutil.copytree(self.folder / name, self.trials / name)
        return self.trials / name


def garbled(content: bytes, draw: random.Random) -> bytes:
    """One to three mutations of a file's bytes, or bytes drawn from nothing."""
    if draw.random() < 0.1:
        return draw.randbytes(draw.choice([0, 1, 20, 300]))
    for _ in range(draw.choice([1, 1, 2, 3])):
        content = draw.choice(MUTATIONS)(content, draw)
    return content


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice([1, 2, 8, 50, 1000]))


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    i = draw.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << draw.randrange(8)]) + content[i + 1 :]


def _drop(content: bytes, draw: random.Random) -> bytes:
    a, b = _span(content, draw)
    return content[:a] + content[b:]


def _double(content: bytes, draw: random.Random) -> bytes:
    a, b = _span(content, draw)
    return content[:b] + content[a:]


def _insert(content: bytes, draw: random.Random) -> bytes:
    a, _ = _span(content, draw)
    return content[:a] + draw.randbytes(draw.choice([1, 3, 40])) + content[a:]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _value(content: bytes, draw: random.Random) -> bytes:
    """Another value behind a colon or comma."""
    places = [i for i, byte in enumerate(content[:20000]) if byte in b":,"]
    if not places:
        return content
    a = draw.choice(places) + 1
    ends = [i for i in (content.find(each, a) for each in (b"\n", b",", b"}", b"]")) if i >= 0]
    return content[:a] + b" " + draw.choice(VALUES).encode() + content[min(ends, default=len(content)) :]


def _shuffle(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    draw.shuffle(lines)
    return b"\n".join(lines)


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    _flip,
    _drop,
    _double,
    _insert,
    _cut,
    _value,
    _value,
    _shuffle,
]


def configuration(world: World, draw: random.Random) -> Callable[[], object]:
    """Plan a garbled configuration."""
    folder = world.copy("sets")
    content = yaml.safe_dump(world.config.model_dump(mode="json", exclude_none=True) | {"out": str(folder / "out")})
    (folder / "config.yaml").write_bytes(garbled(content.encode(), draw))
    return lambda: api.plan(UnlearnConfig.read(folder / "config.yaml"))


def data(world: World, draw: random.Random) -> Callable[[], object]:
    """Read and encode a garbled file of rows."""
    file = draw.choice(sorted(world.copy("sets").iterdir()))
    file.write_bytes(garbled(file.read_bytes(), draw))
    return lambda: encode_set(world.tokenizer, load_set(str(file)), 64)


def record(world: World, draw: random.Random) -> Callable[[], object]:
    """Read a garbled record in every way."""
    run = world.copy("run")
    file = run / draw.choice(["steps.jsonl", "steps.jsonl", "environment.json", "config.yaml"])
    file.write_bytes(garbled(file.read_bytes(), draw))
    by = draw.choice(["group", "layer", "parameter"])
    readers: list[Callable[[], object]] = [
        lambda: read(run, by),
        lambda: read_steps(run),
        lambda: read_prediction(run),
        lambda: read_overlap(run, by),
        lambda: read_published(run, by),
        lambda: read_standard_errors(run),
        lambda: summarize([run]),
        lambda: UnlearnConfig.read(run / "config.yaml"),
    ]
    if draw.random() < 0.05:
        readers.append(lambda: plot([run], run / "figures"))
    return draw.choice(readers)


def checkpoint(world: World, draw: random.Random) -> Callable[[], object]:
    """Load, or go on from, a run with a garbled checkpoint, record or marker."""
    run = world.copy("run")
    last = run / "checkpoints" / "checkpoint-4"
    (run / "DONE").unlink()
    resumed = draw.random() < 0.5
    if resumed:
        shutil.rmtree(last)
        last = run / "checkpoints" / "checkpoint-2"
    others = [run / "steps.jsonl", run / "environment.json", run / "config.yaml"] if resumed else []
    file = draw.choice([*sorted(last.iterdir()), *others])
    if draw.random() < 0.15:
        file.unlink()
    else:
        file.write_bytes(garbled(file.read_bytes(), draw))
    config = world.config.model_copy(update={"out": run})
    if not resumed:
        return lambda: api.load_model(str(run))
    content = yaml.safe_load((world.folder / "run" / "config.yaml").read_text(encoding="utf-8"))
    if file.name != "config.yaml":
        (run / "config.yaml").write_text(yaml.safe_dump(content | {"out": str(run)}, sort_keys=False), encoding="utf-8")
    return lambda: api.unlearn(config, resume=True)


def localization(world: World, draw: random.Random) -> Callable[[], object]:
    """Freeze by a garbled localization, or look at it."""
    path = world.copy("localized")
    names = ["localization.json", "steps.jsonl", "environment.json", "masks/share-0.1.safetensors"]
    file = path / draw.choice(names)
    file.write_bytes(garbled(file.read_bytes(), draw))
    text = draw.choice(["grail(k_retain=0.1)", "memflex(mu=0.9, sigma=0.1, thresholds=quantile)"])
    config = world.config.replace(masks=path, rectifier=text)
    loaded = api.load_model(world.config.model)
    return draw.choice([lambda: read_gradient_mask(config, loaded), lambda: whole_overlaps(path), lambda: read(path)])


def value(world: World, draw: random.Random) -> Callable[[], object]:
    """Read a record in which one value, wherever it stands, is another, is gone or stands twice."""
    run = world.copy("run")
    file = run / draw.choice(["steps.jsonl", "steps.jsonl", "environment.json"])
    texts = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text("utf-8")]
    i = draw.randrange(len(texts))
    content = json.loads(texts[i])
    _change(content, draw)
    texts[i] = json.dumps(content)
    file.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    readers: list[Callable[[], object]] = [
        lambda: read(run, "layer"),
        lambda: read_steps(run),
        lambda: read_prediction(run),
        lambda: read_overlap(run),
        lambda: read_published(run),
        lambda: read_standard_errors(run),
        lambda: summarize([run]),
        lambda: read_findings(run),
        lambda: compare({"run": run}),
        lambda: differences({"run": run}),
        lambda: worst_examples(run),
        lambda: Run(run).summary(),
    ]
    return draw.choice(readers)


def _change(content: Any, draw: random.Random) -> None:
    while True:
        key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if not content[key] or not isinstance(content[key], dict | list) or draw.random() < 0.2:
            break
        content = content[key]
    change = draw.random()
    if change < 0.15:
        del content[key]
    elif change < 0.25 and isinstance(content, list):
        content.insert(key, content[key])
    else:
        content[key] = draw.choice(ODD)


MAKERS = dict(zip(KINDS, (configuration, data, record, checkpoint, localization, value), strict=True))


def trial(world: World, kind: str, seed: int) -> tuple[str, str]:
    """One garbled input; ``well``, ``one line``, ``TRACEBACK`` or ``LOST``, and what was said."""
    run = MAKERS[kind](world, random.Random(f"{kind} {seed}"))
    before = _files(world.trials)
    with _silence():
        try:
            run()
            outcome, said = "well", ""
        except GeffectError as error:
            outcome, said = ("one line" if "\n" not in str(error) else "TRACEBACK"), str(error)
        except Exception:
            outcome, said = "TRACEBACK", traceback.format_exc()
    after = _files(world.trials)
    lost = [p for p, content in before.items() if p not in after or (outcome != "well" and after[p] != content)]
    return ("LOST", f"{lost[0]}: {said}") if lost and outcome == "one line" else (outcome, said)


def _files(folder: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def main(kinds: Annotated[list[str] | None, typer.Argument()] = None, count: int = 200, seed: int = 0) -> None:
    """Print the counts of each kind, and the first of every bad end."""
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        with _silence():
            world = World(Path(folder))
        for kind in kinds or KINDS:
            counts: Counter[str] = Counter()
            for i in range(seed, seed + count):
                outcome, said = trial(world, kind, i)
                counts[outcome] += 1
                if outcome in ("TRACEBACK", "LOST"):
                    bad += 1
                    print(f"{kind} {i}: {outcome}\n{said[-1500:]}", flush=True)
            print(kind, dict(counts), flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)
