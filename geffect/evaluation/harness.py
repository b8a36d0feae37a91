"""General ability by the tasks of EleutherAI's lm-evaluation-harness, which is an extra."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from geffect.errors import GeffectError
from geffect.models.scoring import in_evaluation_mode

INSTALL = "pip install 'lm-eval>=0.4.9'"

Scores = dict[str, dict[str, float]]


def check_tasks(names: Sequence[str], folder: Path | None) -> None:
    """Raise where a task cannot be found."""
    if importlib.util.find_spec("lm_eval") is None:
        raise GeffectError(
            f"--task {names[0]} needs lm-evaluation-harness, which is not installed", remedy=f"Run {INSTALL}"
        )
    _manager(names, folder)


def harness(
    model: nn.Module,
    tokenizer: Any,
    names: Sequence[str],
    folder: Path | None = None,
    limit: int = 0,
    batch_size: int = 16,
) -> Scores:
    """Score a model on tasks of the harness, as it defines them; the model is left in the mode it was in."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    manager = _manager(names, folder)
    with in_evaluation_mode(model):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            found = lm_eval.simple_evaluate(
                wrapped, tasks=list(names), task_manager=manager, limit=limit or None, log_samples=False
            )
        except (OSError, ValueError) as error:  # a data hub out of reach is a ConnectionError
            reason = " ".join(str(error).split())
            raise GeffectError(
                f"The data of {', '.join(names)} cannot be read: {reason}",
                remedy="Connect to its hub, or correct the task",
            ) from error
    results: dict[str, dict[str, Any]] = found["results"]
    return {name: _numbers(each) for name, each in results.items()}


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """The tasks of the folder alone, if those are enough: to read the thousands that come along takes a while."""
    if folder is not None and not folder.is_dir():
        raise GeffectError(f"There is no directory of tasks at {folder}", remedy="Correct --task-dir")
    for logger in ("lm_eval", "lm-eval"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    path = None if folder is None else str(folder)
    manager = TaskManager(include_path=path, include_defaults=False) if path else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=path)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        remedy = "See lm_eval ls tasks, or name a folder of tasks with --task-dir"
        raise GeffectError(f"lm-evaluation-harness has no task {unknown[0]!r}", remedy=remedy)
    return manager


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    """``acc,none`` is acc; a filtered metric keeps its filter's name."""
    values = {key: value for key, value in scores.items() if "," in key and isinstance(value, float)}
    return {key.removesuffix(",none"): value for key, value in values.items()}
