"""Measure what measuring costs: a table of ratios beside this toolkit's budgets and the published protocols.

    python -m analysis.benchmarks --json FILE [--model tiny] [--model smollm2] [--only steps] [--repeats 5]

Numbers are ratios of variants that take turns in one process, so that they say the same on a busy machine; on one
thread (``OMP_NUM_THREADS=1``) they are of CPU seconds.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from analysis.benchmarks.table import Finding, read_findings, table
from geffect.errors import GeffectError

MODELS = {"tiny": "builtin:tiny", "smollm2": "smollm2"}
OF_MODELS = ("steps", "peers", "memory", "tokens", "localize", "evaluation", "monitoring")
ALONE, LONG = ("front", "records", "growth"), ("demo", "suite")
TRAINED = ("watching-lora", "watching-full")  # of models, too, and long
LOCALIZED = 5  # batches a set of a localization
FIGURES = Path("figures/benchmarks")
Benchmark = Callable[[], tuple[list[Finding], dict[str, list[float]]]]


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write here; what it holds of others is kept")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"{', '.join(MODELS)} or any model; both by default")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"of {', '.join((*OF_MODELS, *TRAINED, *ALONE, *LONG))}")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="of every variant")] = 5,
    examples: Annotated[int, typer.Option(min=1, help="of each batch; rows, of watching")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="of each training of watching")] = 20,
    tokens: Annotated[int, typer.Option(min=2, help="of each row of watching")] = 128,
    data_dir: Annotated[Path | None, typer.Option(help="holds tofu/*.json; else the built-in authors")] = None,
    figures: Annotated[Path, typer.Option(help="where the picture of growth goes")] = FIGURES,
) -> None:
    """Time variants in turn and print ratios beside their budgets.

    Watched trainings, the demonstration and the test suite take long: they run where --only names them.

    Raises:
        Exit: with code 2, once a mistake has been told.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        found = json.loads(json_file.read_text(encoding="utf-8")) if json_file and json_file.exists() else {}
        for name, run in chosen(
            only or [*OF_MODELS, *ALONE], model or list(MODELS), repeats, examples, data_dir, figures, (steps, tokens)
        ):
            own, seconds = run()
            found[name] = environment() | {"findings": [each.line() for each in own], "seconds": seconds}
            if json_file:
                json_file.parent.mkdir(parents=True, exist_ok=True)
                json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except GeffectError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise typer.Exit(2) from None
    here = environment()
    console = Console()
    findings = read_findings(found)
    console.print(table(findings))
    for each in findings:
        if each.note:
            console.print(f"{each.key}, {each.model}: {each.note}", style="dim")
    console.print(f"{here['threads']} thread(s), {here['clock']}; medians, lowest and highest of repeats in brackets.")
    console.print(
        "The budgets are SmolLM2's, 8 + 8 examples; of a tiny model's step more is fixed costs. Published: GA's."
    )


def chosen(
    only: list[str],
    models: list[str],
    repeats: int,
    examples: int,
    data_dir: Path | None,
    figures: Path,
    shape: tuple[int, int],
) -> Iterator[tuple[str, Benchmark]]:
    """What is to be run, one after another.

    Args:
        only: names of benchmarks.
        models: names in `MODELS`, or any spec.
        repeats: of every variant.
        examples: of each batch.
        data_dir: see `analysis.benchmarks.setting.make_setting`.
        figures: where pictures go.
        shape: steps of a watched training, and tokens of its rows.

    Yields:
        Its name, and a function that runs it.

    Raises:
        GeffectError: a name is unknown.
    """
    from analysis.benchmarks import (
        evaluating,
        front,
        growth,
        localizing,
        memory,
        monitoring,
        peers,
        records,
        steps,
        tokens,
    )
    from analysis.benchmarks.setting import make_setting

    known = (*OF_MODELS, *TRAINED, *ALONE, *LONG)
    for name in only:
        if name not in known:
            raise GeffectError(f"There is no {name!r} for --only", remedy=f"Choose one of {', '.join(known)}")
    for spec in (MODELS.get(each, each) for each in models):
        held = (
            make_setting(spec, examples, data_dir) if {"steps", "peers", "tokens", "monitoring"} & set(only) else None
        )
        of_model: dict[str, Benchmark] = {
            "memory": partial(memory.benchmark, spec, examples, min(repeats, 3), data_dir),
            "localize": partial(localizing.benchmark, spec, LOCALIZED * examples, repeats),
            "evaluation": partial(evaluating.benchmark, spec, repeats),
        }
        if held:
            of_model |= {
                "steps": partial(steps.benchmark, held, repeats),
                "peers": partial(peers.benchmark, held, repeats),
                "tokens": partial(tokens.benchmark, held, repeats),
                "monitoring": partial(monitoring.benchmark, held, repeats),
            }
        if set(TRAINED) & set(only):
            from analysis.benchmarks import watching  # here: a Trainer and what it imports

            asked = watching.Shape(shape[0], examples, shape[1])
            for name in TRAINED:
                training = name.removeprefix("watching-")
                of_model[name] = partial(watching.benchmark, training, spec, repeats, asked)
        yield from ((f"{name}, {spec}", of_model[name]) for name in (*OF_MODELS, *TRAINED) if name in only)
    alone: dict[str, Benchmark] = {
        "front": partial(front.benchmark, repeats),
        "records": partial(records.benchmark, min(repeats, 3)),
        "growth": partial(growth.benchmark, repeats, figures),
        "demo": front.demonstration,
        "suite": front.suite,
    }
    yield from ((name, alone[name]) for name in (*ALONE, *LONG) if name in only)


def environment() -> dict[str, Any]:
    """Versions and machine, threads, clock, and how busy the machine is."""
    import torch

    from analysis.benchmarks.timing import clock
    from geffect.record.writer import describe

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    own = {"threads": torch.get_num_threads(), "clock": clock()[0], "load": load}
    return describe() | own | {"at": datetime.now(UTC).isoformat(timespec="minutes")}


if __name__ == "__main__":
    typer.run(main)
