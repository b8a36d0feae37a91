"""Runs of a study: started where they are missing, reused where they are finished, in one process.

A process a run would spend most of its time importing; so the verbs are called as functions, with the configuration
the command line would read.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from geffect.api import evaluate, fit, localise, unlearn
from geffect.config import EvaluateConfig, FitConfig, LocaliseConfig, UnlearnConfig
from geffect.errors import GeffectError

LOGGER = logging.getLogger("geffect.analysis")
DONE, CONFIG = "DONE", "config.yaml"
AUTHORS = {
    "model": "builtin:tiny",
    "forget": "builtin:authors/forget",
    "retain": "builtin:authors/retain",
    "held": "builtin:authors/held",
    "batch_size": 8,
}


VERBS: dict[str, tuple[Any, Any]] = {
    "unlearn": (UnlearnConfig, unlearn),
    "localise": (LocaliseConfig, localise),
    "fit": (FitConfig, fit),
    "evaluate": (EvaluateConfig, evaluate),
}


def ensure(settings: list[dict[str, Any]], verb: str = "unlearn") -> list[Path]:
    """Run what is missing.

    Args:
        settings: of ``geffect VERB``, one mapping a run.
        verb: ``unlearn``, ``localise``, ``fit`` or ``evaluate``.

    Returns:
        The run directories, in order.
    """
    logging.basicConfig(format="geffect: %(message)s", level=logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    logging.getLogger("geffect.training").setLevel(logging.ERROR)
    schema, run = VERBS[verb]
    return [_ensure(schema.read(**each), run) for each in tqdm(settings, unit="run", disable=None)]


def _ensure(config: Any, run: Callable[[Any], Path]) -> Path:
    if (config.out / DONE).exists():
        _check_same(config)
        LOGGER.info("reused: %s", config.out)
        return Path(config.out)
    if config.out.exists():
        aside = next(
            p for i in range(1000) if not (p := config.out.with_name(f"{config.out.name}.stopped-{i}")).exists()
        )
        config.out.rename(aside)
        LOGGER.info("unfinished, moved to %s", aside)
    made: Path = run(config)
    return made


def _check_same(config: Any) -> None:
    """A finished run under this name must be the one asked for."""
    asked = config.model_dump(mode="json", exclude_none=True)
    found = yaml.safe_load((config.out / CONFIG).read_text(encoding="utf-8"))
    differing = [key for key, value in asked.items() if found.get(key) != value]
    if differing:
        key = differing[0]
        raise GeffectError(f"{key}: {asked[key]} in {config.out}", str(found.get(key)), "move that run away")


def keep_configs(runs: list[Path], out: Path) -> None:
    """Beside a figure, the configurations of its runs in one file, without this machine's paths."""
    configs = {}
    for run in runs:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        config.get("reference", {}).pop("path", None)
        for key in ("data_dir", "out", "masks"):
            config.pop(key, None)
        configs[run.name] = config
    out.mkdir(parents=True, exist_ok=True)
    (out / "configs.yaml").write_text(yaml.safe_dump(configs, sort_keys=False), encoding="utf-8")
