"""Runs of a study: started where they are missing, reused where they are finished, in one process.

A process a run would spend most of its time importing; so the verbs are called as functions, with the configuration
the command line would read.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from geffect.errors import GeffectError

LOGGER = logging.getLogger("geffect.analysis")
DONE, CONFIG = "DONE", "config.yaml"
AUTHORS = {
    "model": "builtin:tiny",
    "forget": "builtin:authors/forget",
    "retain": "builtin:authors/retain",
    "heldout": "builtin:authors/heldout",
    "batch_size": 8,
}


def command_line(doc: str | None, runs: Path) -> argparse.ArgumentParser:
    """The parser of a study's script: its docstring is the help, and RUNS its one positional argument."""
    parser = argparse.ArgumentParser(
        prog=f"python -m analysis.{Path(sys.argv[0]).stem}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", metavar="RUNS", nargs="?", type=Path, default=runs, help=f"directory of the runs (default: {runs})"
    )
    return parser


SCHEMAS = {
    "unlearn": "UnlearnConfig",
    "inspect": "InspectConfig",
    "localize": "LocalizeConfig",
    "finetune": "FinetuneConfig",
    "evaluate": "EvaluateConfig",
}


def ensure(settings: list[dict[str, Any]], verb: str = "unlearn") -> list[Path]:
    """Run what is missing.

    Args:
        settings: of ``geffect VERB``, one mapping a run.
        verb: ``unlearn``, ``inspect``, ``localize``, ``finetune`` or ``evaluate``.

    Returns:
        The run directories, in order.
    """
    logging.basicConfig(format="geffect: %(message)s", level=logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    for name in ("trainer", "unlearn", "finetune"):  # not what a run's set-up and end warn of
        logging.getLogger(f"geffect.training.{name}").setLevel(logging.ERROR)
    schema = getattr(import_module("geffect.config"), SCHEMAS[verb])
    run = getattr(import_module("geffect.api"), verb)  # here, so that a figure script imports no torch
    return [_ensure(schema.read(**each), run, verb) for each in tqdm(settings, unit="run", disable=None)]


def inspected(run: dict[str, Any], at: Collection[int], **inspection: Any) -> Path:
    """One objective at checkpoints of its own run, over whole sets; the run's weights are removed afterwards.

    Args:
        run: settings of ``geffect unlearn``, with ``save_every``.
        at: the steps whose checkpoints are measured.
        inspection: settings of ``geffect inspect`` beside those it takes from the run.

    Returns:
        The record, ``OUT-inspected`` beside the run.
    """
    out = Path(run["out"])
    record = out.with_name(f"{out.name}-inspected")
    if not (record / DONE).exists():
        ensure([run])
        remove_checkpoints(out, at)
    names = ("forget", "retain", "heldout", "data_dir", "objective", "batch_size")
    shared = {name: run[name] for name in names if name in run}
    settings = shared | {"checkpoints": [str(out)], "start": str(run["model"]), "out": record} | inspection
    ensure([settings], "inspect")
    remove_checkpoints(out)
    return record


def remove_checkpoints(run: Path, but: Collection[int] = ()) -> None:
    """Free the disk of a run's weights, but for those of some steps; what was recorded stays."""
    kept = {f"checkpoint-{step}" for step in but}
    for folder in (run / "checkpoints").glob("checkpoint-*"):
        if folder.name not in kept:
            shutil.rmtree(folder)


def _ensure(config: Any, run: Callable[..., Any], verb: str) -> Path:
    """Make one run; an unfinished one is resumed where that is possible, else moved aside."""
    out = Path(config.out)
    if (out / DONE).exists():
        _check_same(config)
        LOGGER.info("reused: %s", out)
    elif _resumable(out, verb):
        _check_same(config)
        LOGGER.info("resuming %s", out)
        run(config, resume=True)
    else:
        if out.exists():
            aside = next(p for i in range(1000) if not (p := out.with_name(f"{out.name}.stopped-{i}")).exists())
            out.rename(aside)
            LOGGER.info("unfinished, moved to %s", aside)
        run(config)
    return out


def _resumable(out: Path, verb: str) -> bool:
    """An inspection resumes after any line, an unlearning from its last checkpoint."""
    has_checkpoint = any((out / "checkpoints").glob("checkpoint-*"))
    return (out / CONFIG).exists() and (verb == "inspect" or (verb == "unlearn" and has_checkpoint))


def _check_same(config: Any) -> None:
    """A run under this name must be the one asked for; a setting that its version did not have is at its default."""
    asked = config.model_dump(mode="json", exclude_none=True)
    defaults = type(config).model_construct().model_dump(mode="json")
    found = defaults | yaml.safe_load((config.out / CONFIG).read_text(encoding="utf-8"))
    differing = [key for key, value in asked.items() if found.get(key) != value]
    if differing:
        key = differing[0]
        raise GeffectError(f"{key} is {found.get(key)} in {config.out}, not {asked[key]}", remedy="Move that run away")


def keep_configs(runs: list[Path], out: Path) -> None:
    """Beside a figure, the configurations of its runs in one file, without this machine's paths."""
    configs = {}
    for run in runs:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        config.get("reference", {}).pop("path", None)
        for key in ("data_dir", "out", "masks", "checkpoints"):
            config.pop(key, None)
        configs[run.name] = {key: _nameless(value) for key, value in config.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "configs.yaml").write_text(yaml.safe_dump(configs, sort_keys=False), encoding="utf-8")


def _nameless(value: Any) -> Any:
    """An absolute path's last part; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
