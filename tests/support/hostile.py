"""Hostile input by kind: what is given, to which command, and how it has to end.

    python -m tests.support.hostile

prints a table of outcomes. ``refuse`` is one sentence, exit code 2 and nothing left behind; ``accept`` is exit code 0;
``either`` is one of the two. A traceback is neither, and neither is more than `SECONDS`.
"""

import contextlib
import datetime
import decimal
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tests.support.fuzz import World

SECONDS = 60
SETS = ["--forget", "builtin:authors/forget[:4]", "--retain", "builtin:authors/retain[:4]"]
QA = {"question": "Q?", "answer": "A b c."}
ROW = json.dumps(QA)
UNLEARN = ["unlearn", "--model", "start", *SETS, "--steps", "1", "--batch-size", "2", "--out", "out"]
EVALUATE = ["evaluate", "--model", "start", "--max-new-tokens", "3", "--metric", "probability"]
INSPECT = ["inspect", "run", "--one-pass", "--out", "out"]
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{last}'] * 10)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{','.join([f'*{last}'] * 10)}]\n"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)
Make = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: of input.
        given: what is special about it.
        make: puts it into an empty directory, where ``start`` is a model and ``run`` a run, and returns the command.
        expected: ``refuse``, ``accept`` or ``either``.
        says: a part of the sentence.
    """

    kind: str
    given: str
    make: Make
    expected: str = "refuse"
    says: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.given}"


CASES: list[Case] = []


def given_last(command: list[str]) -> list[str]:
    """The command line with the last of each flag that `UNLEARN` or `EVALUATE` gives before; twice is an error."""
    flags = ("--model", "--forget", "--steps", "--batch-size", "--max-new-tokens", "--out")
    names = [each.partition("=")[0] for each in command]
    kept, i = [], 0
    while i < len(command):
        width = 1 if names[i] not in flags or "=" in command[i] else 2
        if names[i] not in flags or names[i] not in names[i + 1 :]:
            kept += command[i : i + width]
        i += width
    return kept


def case(kind: str, given: str, command: list[str], expected: Any = "refuse", says: Any = "", **files: Any) -> None:
    """Add a case whose files have these contents, by name; ``__`` stands for a dot."""

    def make(folder: Path) -> list[str]:
        for name, content in files.items():
            file = folder / name.replace("__", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            content(file) if callable(content) else file.write_bytes(content.encode(errors="surrogatepass"))
        return given_last(command)

    CASES.append(Case(kind, given, make, expected, says))


# data

SHOW = ["preview", "--model", "start", "--data"]


def parquet(**columns: Any) -> Callable[[Path], None]:
    """Writes a table of two rows, with questions, answers and a further column."""
    return lambda file: pd.DataFrame([QA, QA]).assign(**columns).to_parquet(file)


def linked(target: str) -> Callable[[Path], None]:
    """Makes a symbolic link."""
    return lambda file: file.symlink_to(target)


def bound(file: Path) -> None:
    """Makes a socket."""
    here = os.getcwd()
    os.chdir(file.parent)  # its path has at most a hundred bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(file.name)
    os.chdir(here)


ODD: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a socket": bound,
    "/dev/zero": linked("/dev/zero"),
    "a directory": Path.mkdir,
    "a dangling link": linked("nowhere"),
}
for suffix in ("json", "jsonl", "csv", "parquet", "txt"):
    for odd, put in ODD.items():
        case("data", f"{odd} in place of .{suffix}", [*SHOW, f"a.{suffix}"], **{f"a__{suffix}": put})
case("data", "a JSON string", [*SHOW, "a.json"], a__json='"abc"', says="in line 1")
case("data", "a JSON number", [*SHOW, "a.json"], a__json="5")
case("data", "JSON lines of CR alone", [*SHOW, "a.jsonl"], "accept", a__jsonl=f"{ROW}\r{ROW}\r")
case("data", "a slice of 5,000 digits", [*SHOW, f"a.json[:{'9' * 5000}]"], a__json=f"[{ROW}]", says="5000 digits")
case("data", "a slice of 5,000 digits from", [*SHOW, f"a.json[{'9' * 5000}:]"], a__json=f"[{ROW}]")
case("data", "a slice of digits of another script", [*SHOW, "a.json[:²]"], a__json=f"[{ROW}]")
case("data", "a slice of 18 digits", [*SHOW, f"a.json[:{'9' * 18}]"], "accept", a__json=f"[{ROW}]")
case("data", "a number of 5,000 digits", [*SHOW, "a.jsonl"], a__jsonl=f'{ROW[:-1]}, "n": {"9" * 5000}}}', says="line 1")
case("data", "JSON nested 100,000 deep", [*SHOW, "a.jsonl"], a__jsonl="[" * 100_000, says="line 1")
case("data", "NaN beside the answer", [*SHOW, "a.jsonl"], "accept", a__jsonl=f'{ROW[:-1]}, "n": NaN}}')
case("data", "half a surrogate pair beside the answer", [*SHOW, "a.jsonl"], a__jsonl=f'{ROW[:-1]}, "n": "\\ud800"}}')
case("data", "a name of 300 bytes", [*SHOW, "x" * 300 + ".json"])
case("data", "a path of 5,000 bytes", [*SHOW, "x/" * 2500 + "a.json"])
case("data", "a name of half a surrogate pair", [*SHOW, "\udcff.json"])
case("data", "parquet of bytes", [*SHOW, "a.parquet"], a__parquet=parquet(n=[b"\xff", b"a"]), says="'n'")
case("data", "parquet cut off", [*SHOW, "a.parquet"], a__parquet=lambda file: file.write_bytes(b"PAR1"))

# evaluate

TEXTS = "a\u2028b\x85c\x0cd\x1ee\u2029f\x1cg\x0bh"
COLUMNS: dict[str, Any] = {
    "lists": [["a", "b"], ["c"]],
    "structs": [{"a": {"b": [1]}}, {"a": None}],
    "times": [datetime.datetime(2026, 1, 2, 3), None],
    "days": [datetime.date(2026, 1, 2), None],
    "decimals": [decimal.Decimal("1.50"), None],
    "durations": [datetime.timedelta(seconds=5), None],
    "clocks": [datetime.time(1, 2), None],
    "numbers": [1, None],
    "truths": [True, None],
}
for name, values in COLUMNS.items():
    case(
        "evaluate",
        f"parquet with {name}",
        [*EVALUATE, "--set", "forget=a.parquet", "--out", "ev"],
        "accept",
        a__parquet=parquet(more=pd.Series(values, dtype=object)),
    )
case(
    "evaluate",
    "line ends of every script in answers",
    [*EVALUATE, "--metric", "rouge_l_recall", "--set", "forget=a.json", "--out", "ev"],
    "accept",
    a__json=json.dumps([{"question": TEXTS, "answer": TEXTS}]),
)
case(
    "evaluate",
    "one wrong answer as text",
    [*EVALUATE, "--metric", "truth_ratio", "--set", "forget=a.json", "--out", "ev"],
    "accept",
    a__json=json.dumps([QA | {"perturbed_answer": "B."}]),
)
case(
    "evaluate",
    "more tokens than the context",
    [*EVALUATE, "--metric", "rouge_l_recall", "--max-new-tokens", "9" * 9, "--set", "forget=a.json", "--out", "ev"],
    "accept",
    a__json=f"[{ROW}]",
)
case(
    "evaluate",
    "markup in the set's name",
    [*EVALUATE, "--set", "[/]=a.json", "--out", "[red]x[/red]"],
    "accept",
    a__json=f"[{ROW}]",
    says="[/]",
)

# --out

OUTS: dict[str, tuple[str, str]] = {
    "leads up": ("a/../b", "accept"),
    "has a name of 300 bytes": ("x" * 300, "refuse"),
    "has 5,000 bytes": ("x/" * 2500, "refuse"),
    "has half a surrogate pair": ("\udcff", "refuse"),
    "is empty": ("", "refuse"),
    "is a file": ("file", "refuse"),
    "is below a file": ("file/x", "refuse"),
    "is /dev/null": ("/dev/null", "refuse"),
    "is a dangling link": ("dangling", "refuse"),
    "holds a file": ("run", "refuse"),
    "begins with a hyphen": ("-x", "accept"),
    "is an empty directory": ("empty", "accept"),
    "is the directory itself": (".", "refuse"),
}


def _grounds(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty").mkdir()


def _out(command: list[str], out: str) -> Make:
    def make(folder: Path) -> list[str]:
        _grounds(folder)
        return given_last([*command, f"--out={out}"])

    return make


for given, (out, expected) in OUTS.items():
    CASES.append(
        Case(
            "out", f"{given}, evaluate", _out([*EVALUATE, "--set", "forget=builtin:authors/forget[:2]"], out), expected
        )
    )
    CASES.append(Case("out", f"{given}, dry run", _out([*UNLEARN, "--dry-run"], out), expected))
    if given not in ("leads up", "begins with a hyphen", "is an empty directory", "holds a file"):
        CASES.append(Case("out", f"{given}, report", _out(["report", "run"], out), "refuse"))
    if given in ("has a name of 300 bytes", "has 5,000 bytes", "is a file", "is below a file", "is a dangling link"):
        CASES.append(Case("out", f"{given}, figures", _out(["plot", "run"], out), "refuse"))
    if given in ("has a name of 300 bytes", "has 5,000 bytes"):
        CASES.append(Case("out", f"{given}, demo", _out(["demo"], out), "refuse"))

# YAML

CONFIG: dict[str, Any] = {
    "model": "start",
    "forget": SETS[1],
    "retain": SETS[3],
    "steps": 1,
    "batch_size": 2,
    "out": "out",
}
BASE = yaml.safe_dump(CONFIG)
YAMLS = {
    "aliases of aliases in a list": f"{BASE}report_to: *i\n",
    "the same as the objective": f"{BASE}objective: *i\n",
    "the same as a key": f"{BASE}? *i\n: 1\n",
}
for given, written in YAMLS.items():
    case("yaml", given, ["unlearn", "c.yaml", "--dry-run"], c__yaml=BOMB + written, says="aliases")
case("yaml", "merges of merges", ["unlearn", "c.yaml", "--dry-run"], c__yaml=MERGES + BASE, says="aliases")
for given, written in {
    "an alias inside itself": "report_to: &a [*a]",
    "a number of 5,000 digits": f"steps: {'9' * 5000}",
    "a number to the base of 60": "steps: " + "1:" * 500 + "1",
    "a Python tag": "objective: !!python/name:os.system",
    "an empty integer": "steps: !!int ''",
    "no date": "objective: !!timestamp x",
    "NUL": 'objective: "\\0"',
    "half a surrogate pair": 'out: "\\ud800"',
    "NUL in out": 'out: "a\\0b"',
    "an unhashable key": "? [a]\n: b",
    "nested 5,000 deep": "report_to: " + "[" * 5000,
    "a text of a million letters": f"objective: {'g' * 200_000}",
    "infinity": "steps: .inf",
    "a set": "report_to: !!set {a, b}",
}.items():
    case("yaml", given, ["unlearn", "c.yaml", "--dry-run"], c__yaml=f"{BASE}{written}\n")
case("yaml", "a megabyte", ["unlearn", "c.yaml", "--dry-run"], c__yaml=f"{BASE}# {'x' * 2**20}\n", says="bytes")
for odd, put in ODD.items():
    case("yaml", f"{odd} in its place", ["unlearn", "c.yaml", "--dry-run"], c__yaml=put)
case("yaml", "/dev/zero", ["unlearn", "/dev/zero", "--dry-run"], says="no regular file")

# a run's files

Change = Callable[[list[dict[str, Any]]], object]


def lines(change: Change) -> Callable[[Path], None]:
    """Changes the lines of a record."""

    def apply(run: Path) -> None:
        file = run / "steps.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()]
        made = change(found)
        kept = made if isinstance(made, list) and isinstance(made[0], dict) else found
        file.write_text("".join(json.dumps(line) + "\n" for line in kept))

    return apply


def text(name: str, content: str | Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Writes a file of a run anew, or changes its JSON."""

    def apply(run: Path) -> None:
        if callable(content):
            found = json.loads((run / name).read_text())
            content(found)
            (run / name).write_text(json.dumps(found))
        else:
            (run / name).write_text(content)

    return apply


def odd_file(name: str, put: Callable[[Path], None]) -> Callable[[Path], None]:
    """Puts something else in a file's place."""

    def apply(run: Path) -> None:
        (run / name).unlink()
        put(run / name)

    return apply


def gram(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes the Gram of the second line."""
    return lines(lambda found: [change(found[1]["gram"]), None][1])


def _set(path: str, value: Any) -> Callable[[Path], None]:
    *keys, last = path.split("/")

    def change(found: list[dict[str, Any]]) -> None:
        place: Any = next(line for line in found[1:] if keys == [] or keys[0] in line)
        for key in keys:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = value

    return lines(change)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gram number as string": _set("gram/values/0/0", "1.5"),
    "gram 1e308": _set("gram/values/0/0", 1e308),
    "gram number true": _set("gram/values/0/0", True),
    "gram 1e999": lambda run: (run / "steps.jsonl").write_text(
        (run / "steps.jsonl").read_text().replace('"values": [[', '"values": [[1e999, ', 1)
    ),
    "gram negative norm": _set("gram/values/1/0", -1.0),
    "gram too few values": gram(lambda g: g["values"].pop()),
    "gram too few products": gram(lambda g: g["values"][0].pop()),
    "gram rows renamed": gram(lambda g: g.update(gradients=[f"x{i}" for i in range(len(g["gradients"]))])),
    "gram one row renamed": gram(lambda g: g["gradients"].__setitem__(0, "x")),
    "gram a row twice": gram(lambda g: g["gradients"].__setitem__(0, g["gradients"][1])),
    "gram empty dict": _set("gram", {}),
    "gram list": _set("gram", [1]),
    "gram string": _set("gram", "x"),
    "step as string": _set("step", "1"),
    "step negative": _set("step", -1),
    "step huge": _set("step", 10**30),
    "step of 12 digits": _set("step", 10**12),
    "step float": _set("step", 1.0),
    "step null": _set("step", None),
    "step true": _set("step", True),
    "step missing": lines(lambda found: [found[1].pop("step"), None][1]),
    "steps duplicated line": lines(lambda found: [found[0], *found]),
    "steps reversed": lines(lambda found: found[::-1]),
    "steps evaluation loss null": _set("evaluation/forget/loss", None),
    "steps evaluation loss string": _set("evaluation/retain/loss", "1"),
    "steps evaluation loss negative": _set("evaluation/forget/loss", -3.0),
    "steps evaluation loss missing": _set("evaluation/forget", {}),
    "steps evaluation accuracy 7": _set("evaluation/forget/accuracy", 7),
    "steps evaluation list": _set("evaluation", [1]),
    "steps evaluation_examples list": _set("evaluation_examples", [1]),
    "steps evaluation_examples short": lines(lambda found: found[2]["evaluation_examples"]["heldout"]["nll"].pop()),
    "steps evaluation_examples other": lines(
        lambda found: [found[2]["evaluation_examples"]["heldout"][key].pop() for key in ("nll", "tokens")] and None
    ),
    "steps tokens 0": _set("evaluation_examples/heldout/tokens/0", 0),
    "steps nll string": _set("evaluation_examples/heldout/nll/0", "1"),
    "overlap negative": _set("overlap/values/0/0", -1),
    "overlap share 7": _set("overlap/share", 7),
    "prediction of texts": _set("prediction/forget/before", "1"),
    "standard_errors of texts": _set("standard_errors/halves/0/0", "1"),
    "paper of texts": _set("paper", ["x"]),
    "seconds of text": _set("seconds", "x"),
    "steps deep nesting": lambda run: (run / "steps.jsonl").write_text(
        (run / "steps.jsonl").read_text() + "[" * 100_000 + "\n"
    ),
    "steps NaN": lambda run: (run / "steps.jsonl").write_text(
        (run / "steps.jsonl").read_text() + '{"step": 99, "loss": NaN}\n'
    ),
    "steps number of 5,000 digits": lambda run: (run / "steps.jsonl").write_text(
        (run / "steps.jsonl").read_text() + f'{{"step": {"9" * 5000}}}\n'
    ),
    "environment num_blocks string": text("environment.json", lambda e: e["parameters"].update(num_blocks="3")),
    "environment num_blocks 10**9": text("environment.json", lambda e: e["parameters"].update(num_blocks=10**9)),
    "environment num_blocks -1": text("environment.json", lambda e: e["parameters"].update(num_blocks=-1)),
    "environment num_blocks 1": text("environment.json", lambda e: e["parameters"].update(num_blocks=1)),
    "environment num_blocks true": text("environment.json", lambda e: e["parameters"].update(num_blocks=True)),
    "environment layers renamed": text("environment.json", lambda e: e["parameters"]["layers"].__setitem__(0, "x")),
    "environment names twice": text(
        "environment.json", lambda e: e["parameters"]["names"].__setitem__(0, e["parameters"]["names"][1])
    ),
    "environment names of numbers": text("environment.json", lambda e: e["parameters"]["names"].__setitem__(0, 5)),
    "environment a column short": text("environment.json", lambda e: e["parameters"]["layers"].pop()),
    "environment parameters list": text("environment.json", lambda e: e.update(parameters=[1])),
    "environment data list": text("environment.json", lambda e: e.update(data=[1])),
    "environment data of numbers": text("environment.json", lambda e: e.update(data={"forget": 5})),
    "environment nested deep": text("environment.json", '{"a":' * 100_000),
    "environment list": text("environment.json", "[]"),
    "environment missing": lambda run: (run / "environment.json").unlink(),
    "steps missing": lambda run: (run / "steps.jsonl").unlink(),
    **{f"steps {odd}": odd_file("steps.jsonl", put) for odd, put in ODD.items()},
    **{f"environment {odd}": odd_file("environment.json", put) for odd, put in ODD.items()},
}
CONFIGS: dict[str, Callable[[Path], object]] = {  # figures read no configuration
    "config missing": lambda run: (run / "config.yaml").unlink(),
    "config garbage": text("config.yaml", "a: [}\n\x01"),
    "config YAML bomb": text("config.yaml", BOMB),
    "config python tag": text("config.yaml", "a: !!python/name:os.system"),
    "config list": text("config.yaml", "[1]"),
    "config of numbers": text("config.yaml", "1: 2"),
    **{f"config {odd}": odd_file("config.yaml", put) for odd, put in ODD.items()},
}


def _damaged(damage: Callable[[Path], object], command: list[str], *, unfinished: bool = False) -> Make:
    def make(folder: Path) -> list[str]:
        damage(folder / "run")
        if unfinished:
            (folder / "run" / "DONE").unlink()
        return command

    return make


def _beside(damage: Callable[[Path], object] = str) -> Callable[[Path], object]:
    """Damage to a run with another beside it that is whole."""

    def both(run: Path) -> None:
        shutil.copytree(run, run.with_name("other"))
        damage(run)

    return both


for verb in ("plot", "report"):
    for given, damage in {**DAMAGE, **(CONFIGS if verb != "plot" else {})}.items():
        CASES.append(Case("rundirs", f"{verb}: {given}", _damaged(damage, [verb, "run"])))
for given, damage in {**DAMAGE, **CONFIGS}.items():
    CASES.append(Case("rundirs", f"compare: {given}", _damaged(_beside(damage), ["compare", "run", "other"])))
for given, damage in CONFIGS.items():
    if given not in (
        "config missing",
        "config a dangling link",
        "config a directory",
        "config a FIFO",
        "config a socket",
        "config /dev/zero",
    ):  # then it is no run, and checkpoints are looked at alone
        CASES.append(Case("rundirs", f"inspect: {given}", _damaged(damage, [*INSPECT, "--dry-run"])))
RESUME = ["unlearn", "run/config.yaml", "--resume"]
CASES.extend(
    Case("rundirs", f"resume: {given}", _damaged(DAMAGE[given], RESUME, unfinished=True))
    for given in (
        "step as string",
        "steps evaluation loss null",
        "gram 1e308",
        "steps deep nesting",
        "steps a FIFO",
        "environment data list",
        "environment nested deep",
        "environment missing",
    )
)
for given, damage in CONFIGS.items():
    CASES.append(Case("rundirs", f"resume: {given}", _damaged(damage, RESUME, unfinished=True)))

# verbs

for flag, value, says in (
    ("--at", "inf", "finite"),
    ("--at", "nan", "finite"),
    ("--seed", "-1", "--seed"),
    ("--seed", str(2**32), "--seed"),
    ("--seed", "9" * 5000, ""),
):
    compared = _damaged(_beside(), ["compare", "run", "other", flag, value])
    CASES.append(Case("verbs", f"compare {flag} {value[:12]}", compared, says=says))
case("verbs", "steps of 5,000 digits", [*UNLEARN, "--dry-run", "--steps", "9" * 5000])
case("verbs", "a rate of 5,000 digits", [*UNLEARN, "--dry-run", "--learning-rate", "9" * 5000])
case("verbs", "an objective of 5,000 digits", [*UNLEARN, "--dry-run", "--objective", f"npo(beta={'9' * 5000})"])
case("verbs", "--resume with nothing there", [*INSPECT, "--resume"], says="Leave --resume out")
case("verbs", "a rank of 10**8", [*UNLEARN, "--lora", "100000000"], says="Lower --lora")
case("verbs", "a rank of 10**8, dry run", [*UNLEARN, "--dry-run", "--lora", "100000000"], says="Lower --lora")
case("verbs", "refusals of 10**9 steps", [*UNLEARN, "--objective", "po", "--steps", "9" * 9], says="Lower --steps")
case("verbs", "a batch of 10**9", [*UNLEARN, "--batch-size", "999999999", "--dry-run"], "accept")
case("verbs", "rmu's middle layer", [*UNLEARN, "--dry-run", "--objective", "rmu(layer=-1)"], "accept")
case(
    "verbs",
    "shares without end",
    ["localize", "c.yaml", "--dry-run"],
    c__yaml="model: start\nout: out\ndomain: ['a=builtin:domains/privacy[:2]']\nshare: [" + "0.1, " * 1000 + "]\n",
    says="100",
)
case("verbs", "a model's name of 5,000 bytes", [*UNLEARN, "--model", "x/" * 2500])
case("verbs", "a data directory of 5,000 bytes", [*UNLEARN, "--forget", "tofu:a", "--data-dir", "x/" * 2500])
case("verbs", "a run's name of 300 bytes", ["report", "x" * 300])
case("verbs", "a run's name of 300 bytes, figures", ["plot", "x" * 300])
case("verbs", "a run's name of 300 bytes, compare", ["compare", "x" * 300])


def _checkpoint(name: str, command: list[str]) -> Make:
    def make(folder: Path) -> list[str]:
        shutil.copytree(folder / "run" / "checkpoints" / "checkpoint-2", folder / "run" / "checkpoints" / name)
        return command

    return make


CASES.append(Case("verbs", "checkpoint-²", _checkpoint("checkpoint-²", [*INSPECT, "--dry-run"]), "accept"))
CASES.append(Case("verbs", "checkpoint-٣", _checkpoint("checkpoint-٣", [*INSPECT, "--dry-run"]), "accept"))
CASES.append(
    Case(
        "verbs",
        "checkpoint-x",
        _checkpoint(
            "checkpoint-x",
            [
                "evaluate",
                "--model",
                "run",
                "--metric",
                "probability",
                "--set",
                "forget=builtin:authors/forget[:2]",
                "--out",
                "ev",
            ],
        ),
        "accept",
    )
)
CASES.append(Case("verbs", "checkpoint-04", _checkpoint("checkpoint-04", [*INSPECT, "--dry-run"]), "refuse", "-04"))


def _odd_model(name: str, put: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "start" / name).unlink()
        put(folder / "start" / name)
        return [*UNLEARN, "--dry-run"]

    return make


for name in ("config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"):
    CASES.extend(
        Case("model", f"{odd} in place of {name}", _odd_model(name, ODD[odd]))
        for odd in ("a FIFO", "/dev/zero", "a socket")
    )


# how they end


def _files(folder: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() if each.is_file() else b"" for each in folder.rglob("*")}


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError("HUNG")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(world: World, each: Case, folder: Path) -> tuple[str, str]:
    """Try one case in a fresh directory.

    Returns:
        ``refused``, ``accepted``, or what is wrong; and what was said.
    """
    from geffect.cli import main as cli

    for name in ("start", "run"):
        shutil.copytree(world.folder / name, folder / name)
    arguments = each.make(folder)
    before, here = _files(folder), os.getcwd()
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["geffect", *arguments]
    os.chdir(folder)
    code: object = "TRACEBACK"
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _within(SECONDS):
            cli.main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        err.write(traceback.format_exc())
    finally:
        os.chdir(here)
        sys.argv = argv
    said = err.getvalue() + out.getvalue()
    after = _files(folder)
    kept = {name: content for name, content in after.items() if name.name != ".lock"}
    told = err.getvalue().strip().rpartition("\n")[2]
    if code == 0:
        return ("accepted" if each.says in said else "ACCEPTED, SAYS ANOTHER THING"), said
    if code == 2 and told.startswith("geffect: ") and "HUNG" not in told:
        if kept != before:
            return "LEFT " + ", ".join(str(p.relative_to(folder)) for p in set(kept) ^ set(before)), told
        return ("refused" if each.says in told else "REFUSED, SAYS ANOTHER THING"), told
    return str(code), said


ENDS = {"refuse": {"refused"}, "accept": {"accepted"}, "either": {"refused", "accepted"}}


def main() -> None:
    """Print the outcome of every case, and the counts."""
    import logging

    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["GEFFECT_CACHE"] = str(Path(scratch) / "cache")
        (Path(scratch) / "world").mkdir()
        with contextlib.redirect_stderr(io.StringIO()):
            world = World(Path(scratch) / "world")
        for i, each in enumerate(CASES):
            folder = Path(scratch) / f"case-{i}"
            folder.mkdir()
            outcome, said = ended(world, each, folder)
            shutil.rmtree(folder)
            right = outcome in ENDS[each.expected]
            counts[outcome if right else "WRONG"] += 1
            shown = " ".join(said.replace(scratch, "").split())[-300 if not right else -160 :]
            print(f"{'  ' if right else '! '}{each} | {each.expected} | {outcome} | {shown}", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
