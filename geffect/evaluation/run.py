"""Evaluate a model: one number an example and metric, and tasks of lm-evaluation-harness, cached by content."""

import hashlib
import importlib.util
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from geffect.config import EvaluateConfig
from geffect.data.checks import warn_cut
from geffect.data.encode import encode_examples
from geffect.data.load import ExampleSet, QASet
from geffect.errors import GeffectError, visible_text
from geffect.evaluation.metrics import METRICS, SHOTS, check_fields
from geffect.evaluation.results import EXAMPLES, KEEP, TEXTS, Scores, read_values, write_texts
from geffect.evaluation.suites import Part
from geffect.evaluation.variants import Variant
from geffect.evaluation.view import View
from geffect.io.readers import byte_lines, parse_json, read_bytes
from geffect.models.cache import cached_directory, file_sha256
from geffect.models.load import Loaded
from geffect.models.scoring import in_evaluation_mode
from geffect.training.setup import encode, model_key, read_set

TASKS = "tasks.json"
INSTALL = "pip install 'lm-eval>=0.4.9'"


def evaluate_variant(
    config: EvaluateConfig, sets: Sequence[tuple[Part, ExampleSet]], variant: Variant
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Compute every metric of every example under one variant of a model, or read it from the cache."""
    frames, texts = [], []
    for part, examples in tqdm(sets, desc=visible_text(variant.label, lines=False), unit="set", disable=None):
        make = partial(_write, config, part, examples, variant)
        frame, answers = _read_result(_key(config, part, examples, variant), make)
        frames.append(frame.assign(model=variant.label))
        texts += [{"model": variant.label} | each for each in answers]
    result = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["model", *KEEP])
    return result[["model", *KEEP]], texts


def evaluate_tasks(config: EvaluateConfig, variant: Variant) -> Scores:
    """Score one variant of a model on the tasks of lm-evaluation-harness, or read the scores from the cache."""
    if not config.task:
        return {}

    def make(directory: Path) -> None:
        with variant.context():
            result = harness(
                variant.loaded.model,
                variant.loaded.tokenizer,
                config.task,
                config.task_dir,
                config.limit,
                config.batch_size,
            )
        (directory / TASKS).write_text(json.dumps(result), encoding="utf-8")

    with _result_directory("tasks", _tasks_key(config, variant), make) as directory:
        scores: Scores = parse_json(read_bytes(directory / TASKS), constants=True)
        return scores


def _tasks_key(config: EvaluateConfig, variant: Variant) -> str | None:
    if variant.loaded.sha256 is None:
        return None
    files = sorted(each for each in config.task_dir.rglob("*") if each.is_file()) if config.task_dir else []
    content = [model_key(config, variant.loaded), variant.weights, version("lm_eval"), config.task, config.limit]
    return json.dumps([*content, [(str(each), file_sha256(each)) for each in files]])


def make_view(config: EvaluateConfig, examples: ExampleSet, loaded: Loaded) -> View:
    """A set under a model, with the options of a configuration."""
    shots = read_set(config, config.shots).examples[:SHOTS] if config.shots else ()
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    most = min(config.max_new_tokens, context or config.max_new_tokens)  # positions end where the model's do
    return View(
        loaded.model,
        loaded.tokenizer,
        examples,
        partial(encode, config, loaded, by=encode_examples),
        config.batch_size,
        most,
        shots,
    )


def read_part(config: EvaluateConfig, part: Part) -> ExampleSet:
    """Read the examples of a part; raise where they lack what its metrics need."""
    examples = read_set(config, part.spec)
    for name in part.metrics:
        check_fields(name, examples)
    if "knowmem" in part.metrics:
        _check_shots(config)
    return replace(examples, examples=examples.examples[: config.limit]) if config.limit else examples


def _check_shots(config: EvaluateConfig) -> None:
    if config.shots is None:
        raise GeffectError("knowmem needs a set of answered questions", remedy="Add --shots SET with other examples")
    shots = read_set(config, config.shots)
    check_fields("knowmem", shots)
    if len(shots.examples) < SHOTS:
        raise GeffectError(
            f"knowmem needs {SHOTS} examples, and {config.shots} has {len(shots.examples)}", remedy="Name a larger set"
        )


def _sha256(examples: ExampleSet) -> str:
    """The hash of all columns of a set."""
    return hashlib.sha256(json.dumps(examples.examples, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _key(config: EvaluateConfig, part: Part, examples: ExampleSet, variant: Variant) -> str | None:
    """All that a result depends on; None where the weights have no hash, or a metric comes from outside the package."""
    if variant.loaded.sha256 is None or not all(METRICS[name].is_cacheable for name in part.metrics):
        return None
    options = config.model_dump(include={"max_length", "max_new_tokens"})
    shots = _sha256(read_set(config, config.shots)) if config.shots else None
    model = [model_key(config, variant.loaded), variant.weights]
    content = [model, _sha256(examples), part.name, part.metrics, options, shots]
    return json.dumps(content, sort_keys=True)


def _read_result(key: str | None, make: Callable[[Path], None]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    with _result_directory("evaluation", key, make) as directory:
        frame = read_values(directory / EXAMPLES)
        return frame, [parse_json(line) for line in byte_lines(directory / TEXTS)]


@contextmanager
def _result_directory(name: str, key: str | None, make: Callable[[Path], None]) -> Iterator[Path]:
    """The directory of a result: in the cache, or, without a key, a temporary one."""
    if key is not None:
        yield cached_directory(name, key, make)
        return
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        yield Path(scratch)


def _write(config: EvaluateConfig, part: Part, examples: ExampleSet, variant: Variant, directory: Path) -> None:
    with variant.context():
        view = make_view(config, examples, variant.loaded)
        warn_cut({part.name: view.encoded})
        values = {name: METRICS[name](view) for name in part.metrics}
    sha256 = _sha256(examples)
    frame = pd.DataFrame([
        {"set": part.name, "sha256": sha256, "index": i, "metric": name, "value": value}
        for name, each in values.items()
        for i, value in enumerate(each)
    ])
    frame.to_csv(directory / EXAMPLES, index=False)
    texts = [
        {"set": part.name, "index": i, "question": row["question"], "true": row["answer"], "said": answers}
        for i, (row, answers) in enumerate(_answers(view))
    ]
    write_texts(directory, texts)


def _answers(view: View) -> Iterator[tuple[dict[str, Any], str]]:
    if view.has_answers and isinstance(view.examples, QASet):
        yield from zip(view.examples, view.answers(), strict=True)


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
    """Score a model on tasks of the harness, as it defines them; the model stays in its mode."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    manager = _manager(names, folder)
    with in_evaluation_mode(model):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            outcome = lm_eval.simple_evaluate(
                wrapped, tasks=list(names), task_manager=manager, limit=limit or None, log_samples=False
            )
        except (OSError, ValueError) as error:  # a data hub out of reach is a ConnectionError
            reason = " ".join(str(error).split())
            raise GeffectError(
                f"The data of {', '.join(names)} cannot be read: {reason}",
                remedy="Connect to its hub, or correct the task",
            ) from error
    results: dict[str, dict[str, Any]] = outcome["results"]
    return {name: _numbers(each) for name, each in results.items()}


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """The tasks of the folder alone, where they suffice: reading the thousands that the harness brings takes long."""
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
    """Name ``acc,none`` acc; a filtered metric keeps its filter's name."""
    values = {key: value for key, value in scores.items() if "," in key and isinstance(value, float)}
    return {key.removesuffix(",none"): value for key, value in values.items()}
