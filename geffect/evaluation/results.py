"""The results of an evaluation: computed, cached by content, written, read, and summed up in means with intervals."""

import hashlib
import importlib.util
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from geffect.config import EvaluateConfig
from geffect.core.statistics import bootstrap, percentile_interval
from geffect.data.checks import warn_cut
from geffect.data.encode import encode_examples
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError, visible_text
from geffect.evaluation.metrics import METRICS, SHOTS, check_fields
from geffect.evaluation.scores import exponential
from geffect.evaluation.suites import Derived, Part, Values, compared, totals
from geffect.evaluation.variants import Variant
from geffect.evaluation.view import CACHE, MOST, SCORED, View
from geffect.io.progress import Bar
from geffect.io.readers import StrPath, byte_lines, parse_json, read_bytes
from geffect.models.cache import cached_directory, file_sha256
from geffect.models.load import Loaded
from geffect.models.scoring import in_evaluation_mode
from geffect.record.reader import check_format, damage_refused
from geffect.record.schema import EXAMPLES, FORMAT
from geffect.record.writer import write
from geffect.training.setup import encode, model_key, read_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from collections.abc import Iterable

from geffect.data.encode import EncodedExample
from geffect.training.memory import MemoryEstimate, evaluation_memory
from geffect.training.setup import load_outline

TASKS = "tasks.json"
INSTALL = "pip install 'lm-eval>=0.4.10'"
TEXTS = "texts.jsonl"
Scores = dict[str, dict[str, float]]  # task → metric → value
NOTHING: Mapping[str, Any] = MappingProxyType({})
KEEP = ["set", "sha256", "index", "metric", "value"]


def summary(
    config: EvaluateConfig,
    examples: pd.DataFrame,
    reference: Values | None,
    numbers: Mapping[str, tuple[Mapping[str, float], Scores]],
) -> dict[str, Any]:
    """Each model's means with their intervals, numbers of several sets, and scores on tasks, as ``metrics.json``.

    ``numbers`` holds a model's own numbers (such as α of a mixture) and its scores on tasks.
    """
    models = {}
    for model, (own_numbers, tasks) in numbers.items():
        values = values_by_metric(examples[examples["model"] == model])
        means: dict[tuple[str, str], float] = {}
        sets: dict[str, dict[str, Any]] = {}
        for (name, kind), each in values.items():
            interval = geometric_interval if METRICS[kind].geometric else mean_interval
            mean, low, high = interval(each, config.confidence, config.seed)
            means[name, kind] = mean
            sets.setdefault(name, {})[kind] = {"mean": mean, "low": low, "high": high, "examples": len(each)}
        derived = totals(config, means, values, reference) | dict(own_numbers)
        models[model] = {"sets": sets, "totals": derived} | ({"tasks": tasks} if tasks else {})
    return models


def values_by_metric(frame: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """(set, metric) → a value an example, in the examples' order."""
    groups = frame.groupby(["set", "metric"], sort=False)["value"]
    return {(str(key[0]), str(key[1])): each.tolist() for key, each in groups}


def read_reference(config: EvaluateConfig, examples: pd.DataFrame) -> Values | None:
    """The values of the evaluation that ``config.reference`` names; None without one."""
    if config.reference is None:
        return None
    other = read_evaluation(config.reference)
    label = other["model"].iloc[0]
    other = other[other["model"] == label]
    for number in compared(config):
        for name in number.needs:
            _check_comparable(config, number, *(frame[frame["set"] == name] for frame in (other, examples)))
    return values_by_metric(other)


def _check_comparable(config: EvaluateConfig, number: Derived, theirs: pd.DataFrame, ours: pd.DataFrame) -> None:
    """Raise where a set's examples in the reference differ from these, or lack what a number is computed from."""
    name = ours["set"].iloc[0]
    if theirs["sha256"].unique().tolist() != ours["sha256"].unique().tolist():
        state = f"has no set {name}" if theirs.empty else f"was made of other {name} examples ({len(theirs)} values)"
        remedy = "Evaluate the reference with the same sets and --limit"
        raise GeffectError(f"The reference {config.reference} {state}", remedy=remedy)
    if lacking := set(number.needs[name]) - set(theirs["metric"]):
        message = f"The reference {config.reference} lacks {min(lacking)} of the {name} examples, for {number.name}"
        raise GeffectError(message, remedy="Evaluate the reference again, with the same --suite or --metric")


@damage_refused
def read_evaluation(path: StrPath) -> pd.DataFrame:
    """The values of an evaluation, one an example, metric and model.

    Returns:
        Columns ``model``, ``set``, ``sha256``, ``index``, ``metric``, ``value``.

    Raises:
        GeffectError: no evaluation is there.
    """
    file = Path(path) / EXAMPLES
    if not file.is_file():
        message = f"There is no evaluation in {path}: no {EXAMPLES}"
        raise GeffectError(message, remedy="Name a directory of geffect evaluate")
    check_format(path)
    return read_values(file)[["model", *KEEP]]


def read_values(file: Path) -> pd.DataFrame:
    """The values of a file, to the last bit."""
    # Python's own float reads back what was written; pandas 2's parser may be off by a last bit
    return pd.read_csv(file, converters={"value": lambda text: float(text or "nan")})


def write_texts(directory: Path, texts: Sequence[Mapping[str, Any]]) -> None:
    """Write a model's answers, a JSON object a line."""
    lines = "".join(json.dumps({"format": FORMAT, **each}, ensure_ascii=False) + "\n" for each in texts)
    write(directory / TEXTS, lines)


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A mean over examples and its percentile bootstrap interval; NaN does not count.

    The interval covers other examples of the kind, not other seeds of training. Mean, lower and upper end are NaN
    without a value, and the mean three times with one or with equal ones.

    >>> mean_interval([1.0, 1.0]), mean_interval([float("nan")])[0]
    ((1.0, 1.0, 1.0), nan)
    """
    present = np.asarray(values, dtype=np.float64)
    present = present[~np.isnan(present)]
    if not len(present):
        return float("nan"), float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        mean = float(present.mean())
    if not np.isfinite(mean) or np.ptp(present) == 0:
        return mean, mean, mean
    return mean, *percentile_interval(bootstrap([present], lambda drawn: drawn.mean(-1), seed), confidence)


def geometric_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A geometric mean over examples and its percentile bootstrap interval: exp of `mean_interval` of the logarithms.

    >>> [round(each, 9) for each in geometric_interval([2.0, 8.0])]
    [4.0, 2.0, 8.0]
    """
    mean, low, high = mean_interval([math.log(each) for each in values], confidence, seed)
    return exponential(mean), exponential(low), exponential(high)


def evaluate_variant(
    config: EvaluateConfig, sets: Sequence[tuple[Part, ExampleSet]], variant: Variant
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Compute every metric of every example under one variant of a model, or read it from the cache."""
    frames, texts = [], []
    with closing(Bar(len(sets), "set", label=visible_text(variant.label, lines=False))) as bar:
        for part, examples in sets:
            bar.tell({visible_text(part.name, lines=False): ""})
            make = partial(_write, config, part, examples, variant)
            with _result_directory("evaluation", _key(config, part, examples, variant), make) as directory:
                frames.append(read_values(directory / EXAMPLES).assign(model=variant.label))
                texts += [{"model": variant.label} | parse_json(line) for line in byte_lines(directory / TEXTS)]
            bar.update()
    result = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["model", *KEEP])
    return result[["model", *KEEP]], texts


def evaluate_tasks(config: EvaluateConfig, variant: Variant) -> Scores:
    """Score one variant of a model on the tasks of lm-evaluation-harness, or read the scores from the cache."""
    if not config.task:
        return {}

    def make(directory: Path) -> None:
        with variant.context():
            loaded, options = variant.loaded, (config.task_dir, config.limit, config.batch_size or SCORED)
            result = harness(loaded.model, loaded.tokenizer, config.task, *options)
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


def make_view(
    config: EvaluateConfig,
    examples: ExampleSet,
    loaded: Loaded,
    shots: str = "",
    beside: Mapping[str, Loaded] = NOTHING,
) -> View:
    """A set under a model, with the options of a configuration; ``shots`` names a set in place of its own."""
    shots = shots or config.shots or ""
    shown = read_set(config, shots).examples[:SHOTS] if shots else ()
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    most = min(config.max_new_tokens, context or config.max_new_tokens)  # positions end where the model's do
    encoder = partial(encode, config, loaded, by=encode_examples)
    models = {name: each.model for name, each in beside.items()}
    return View(loaded.model, loaded.tokenizer, examples, encoder, config.batch_size, most, shown, models)


def read_part(config: EvaluateConfig, part: Part) -> ExampleSet:
    """Read the examples of a part; raise where they lack what its metrics need."""
    examples = read_set(config, part.spec)
    for name in part.metrics:
        check_fields(name, examples)
    if "knowmem" in part.metrics:
        _check_shots(config, part.shots or config.shots)
    return replace(examples, examples=examples.examples[: config.limit]) if config.limit else examples


def _check_shots(config: EvaluateConfig, spec: str | None) -> None:
    if spec is None:
        raise GeffectError("knowmem needs a set of answered questions", remedy="Add --shots SET with other examples")
    shots = read_set(config, spec)
    check_fields("knowmem", shots)
    if len(shots.examples) < SHOTS:
        message = f"knowmem needs {SHOTS} examples, and {spec} has {len(shots.examples)}"
        raise GeffectError(message, remedy="Name a larger set")


def _sha256(examples: ExampleSet) -> str:
    """The hash of all columns of a set."""
    return hashlib.sha256(json.dumps(examples.examples, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _key(config: EvaluateConfig, part: Part, examples: ExampleSet, variant: Variant) -> str | None:
    """All that a result depends on; None where the weights have no hash, or a metric comes from outside the package."""
    models = [variant.loaded, *(variant.beside.values() if "uds" in part.metrics else ())]
    if not all(each.sha256 for each in models) or not all(METRICS[name].is_cacheable for name in part.metrics):
        return None
    options, spec = config.model_dump(include={"max_length", "max_new_tokens"}), part.shots or config.shots
    shots = _sha256(read_set(config, spec)) if spec else None
    model = [*(model_key(config, each) for each in models), variant.weights]
    content = [model, _sha256(examples), part.name, part.metrics, options, shots]
    return json.dumps(content, sort_keys=True)


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
        view = make_view(config, examples, variant.loaded, part.shots, variant.beside)
        warn_cut({part.name: view.encoded})
        values = {name: METRICS[name](view) for name in part.metrics}
    sha256 = _sha256(examples)
    frame = pd.DataFrame([
        {"set": part.name, "sha256": sha256, "index": i, "metric": name, "value": value}
        for name, each in values.items()
        for i, value in enumerate(each)
    ])
    frame.to_csv(directory / EXAMPLES, index=False)
    answers = zip(view.examples.examples, view.answers(), strict=True) if view.has_answers else ()
    texts = [
        {"set": part.name, "index": i, "question": example["question"], "true": example["answer"], "said": answer}
        for i, (example, answer) in enumerate(answers)
    ]
    write_texts(directory, texts)


def check_tasks(names: Sequence[str], folder: Path | None) -> None:
    """Raise where a task cannot be found."""
    if importlib.util.find_spec("lm_eval") is None:
        message = f"--task {names[0]} needs lm-evaluation-harness, which is not installed"
        raise GeffectError(message, remedy=f"Run {INSTALL}")
    _manager(names, folder)


def harness(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
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


WRITES = (  # ask for answers
    *("rouge_l_recall", "rouge_l_f1", "extraction_strength_generated", "verbmem", "knowmem"),
    *("paraphrase_rouge_l_recall", "reworded_rouge_l_recall"),
)


def estimate_memory(config: EvaluateConfig, sets: Iterable[tuple[Part, ExampleSet]]) -> MemoryEstimate:
    """What the evaluation of sets takes, from the outline of the model and the longest examples of each set."""
    sets = list(sets)
    writes = any(name in WRITES for part, _ in sets for name in part.metrics)
    size, prompts = config.batch_size or SCORED, (config.batch_size or MOST) * writes
    loaded = load_outline(config, config.model)
    encoder = partial(encode, config, loaded, by=encode_examples)
    encoded: dict[str, Sequence[EncodedExample]] = {
        part.name: encoder(_longest(examples, size)) for part, examples in sets
    }
    if not encoded:
        return MemoryEstimate()
    return evaluation_memory(config, loaded.model, encoded, batch_size=size, prompts=prompts, cache=CACHE)


def _longest(examples: ExampleSet, count: int) -> ExampleSet:
    """The examples with the most characters."""
    by_length = sorted(examples, key=lambda each: -sum(len(str(each[field])) for field in examples.FIELDS))
    return replace(examples, examples=tuple(by_length[:count]))
