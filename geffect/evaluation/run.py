"""Evaluate a model, part by part: one number a row and metric, kept by content, and their means."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from geffect.config import EvaluateConfig
from geffect.data.checks import warn_cut
from geffect.data.encode import encode_examples
from geffect.data.load import ExampleSet, QASet
from geffect.errors import GeffectError, visible
from geffect.evaluation.harness import Scores, harness
from geffect.evaluation.metrics.table import METRICS, SHOTS, check_fields
from geffect.evaluation.results import EXAMPLES, KEEP, TEXTS, read_values, write_texts
from geffect.evaluation.suites import Part
from geffect.evaluation.variants import Variant
from geffect.evaluation.view import View
from geffect.io.readers import byte_lines, parse_json, read_bytes
from geffect.models.cache import cached_directory, file_sha256
from geffect.models.load import Loaded
from geffect.training.setup import decides, encode, read_set

TASKS = "tasks.json"


def evaluate_variant(
    config: EvaluateConfig, chosen: Sequence[tuple[Part, ExampleSet]], variant: Variant
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Every metric of every example under one variant of a model; what was computed before is taken from the cache."""
    frames, texts = [], []
    for part, examples in tqdm(chosen, desc=visible(variant.label, lines=False), unit="set", disable=None):
        make = partial(_write, config, part, examples, variant)
        frame, answers = _read_result(_key(config, part, examples, variant), make)
        frames.append(frame.assign(model=variant.label))
        texts += [{"model": variant.label} | each for each in answers]
    result = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["model", *KEEP])
    return result[["model", *KEEP]], texts


def evaluate_tasks(config: EvaluateConfig, variant: Variant) -> Scores:
    """The tasks of lm-evaluation-harness under one variant of a model, kept as `evaluate_variant` keeps its values."""
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
    content = [decides(config, variant.loaded), variant.weights, version("lm_eval"), config.task, config.limit]
    return json.dumps([*content, [(str(each), file_sha256(each)) for each in files]])


def make_view(config: EvaluateConfig, examples: ExampleSet, loaded: Loaded) -> View:
    """A set under a model."""
    shots = read_set(config, config.shots).rows[:SHOTS] if config.shots else ()
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    most = min(config.max_new_tokens, context or config.max_new_tokens)  # a model that never ends would go on and on
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
    """The examples of a part, checked for what its metrics need."""
    examples = read_set(config, part.spec)
    for name in part.metrics:
        check_fields(name, examples)
    if "knowmem" in part.metrics:
        _check_shots(config)
    return replace(examples, rows=examples.rows[: config.limit]) if config.limit else examples


def _check_shots(config: EvaluateConfig) -> None:
    if config.shots is None:
        raise GeffectError("knowmem needs a set of answered questions", remedy="Add --shots SET, of other examples")
    shots = read_set(config, config.shots)
    check_fields("knowmem", shots)
    if len(shots.rows) < SHOTS:
        raise GeffectError(
            f"knowmem needs {SHOTS} examples, and {config.shots} has {len(shots.rows)}", remedy="Name a larger set"
        )


def _sha256(examples: ExampleSet) -> str:
    """Of all columns: a wrong answer counts as much as the right one."""
    return hashlib.sha256(json.dumps(examples.rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _key(config: EvaluateConfig, part: Part, examples: ExampleSet, variant: Variant) -> str | None:
    """Everything a result depends on; None where weights have no hash, or a metric's code is not the package's."""
    if variant.loaded.sha256 is None or not all(METRICS[name].is_cacheable for name in part.metrics):
        return None
    options = config.model_dump(include={"max_length", "max_new_tokens"})
    shots = _sha256(read_set(config, config.shots)) if config.shots else None
    model = [decides(config, variant.loaded), variant.weights]
    content = [model, _sha256(examples), part.name, part.metrics, options, shots]
    return json.dumps(content, sort_keys=True)


def _read_result(key: str | None, make: Callable[[Path], None]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    with _result_directory("evaluation", key, make) as directory:
        frame = read_values(directory / EXAMPLES)
        return frame, [parse_json(line) for line in byte_lines(directory / TEXTS)]


@contextmanager
def _result_directory(name: str, key: str | None, make: Callable[[Path], None]) -> Iterator[Path]:
    """Where a result lies: in the cache, or, where it has no key, in a directory that goes."""
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
        yield from zip(view.examples.rows, view.answers(), strict=True)
