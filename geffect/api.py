"""The verbs as functions: each takes the configuration its command takes, and returns what it made."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geffect.config import DataConfig, FitConfig, ShowConfig, TrainConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.record import RunDirectory, layout_to_json, read_lines

if TYPE_CHECKING:
    from geffect.data import Encoded, QASet
    from geffect.models import Loaded

LOGGER = logging.getLogger(__name__)
SIDES = ("forget", "retain", "held")
VANISHES = 1e-4  # a bfloat16 weight near 1 moves by 1/128 or not at all


def load_model(spec: str, dtype: str = "float32", *, trust_remote_code: bool = False) -> "Loaded":
    """Load a model by any of its names; ``builtin:tiny`` is fitted on first use (about a minute) and cached.

    Args:
        spec: see `geffect.models.load.FORMS`.
        dtype: of the weights.
        trust_remote_code: run code that comes with a hub model.

    Returns:
        Model and tokenizer.
    """
    from geffect.models import load

    if spec == "builtin:tiny":
        spec = str(builtin_tiny())
    return load(spec, dtype, trust_remote_code=trust_remote_code)


def builtin_tiny() -> Path:
    """The directory of the fitted built-in model, made on first use and cached by content."""
    from geffect.models.cache import cached
    from geffect.models.tiny import tiny_key

    return cached("tiny", tiny_key(), _fit_tiny)


def _fit_tiny(directory: Path) -> None:
    from geffect.models.load import quiet_transformers
    from geffect.models.tiny import RECIPE, make_tiny, training_sets

    LOGGER.info("fitting builtin:tiny once, about a minute; it is kept in %s", directory.parent)
    model, tokenizer = make_tiny()
    with quiet_transformers():
        model.save_pretrained(directory / "init")
        tokenizer.save_pretrained(directory / "init")
    fit(FitConfig.read(model=str(directory / "init"), train=training_sets(), out=directory / "fit", **RECIPE))
    for file in (directory / "fit").iterdir():
        file.rename(directory / file.name)
    for leftover in ("init", "fit"):
        shutil.rmtree(directory / leftover)


def fit(config: FitConfig) -> Path:
    """Descend the NLL of named sets and write a model (or adapter) directory that is also a run.

    Args:
        config: the run.

    Returns:
        The directory.
    """
    from geffect.arguments import training_arguments
    from geffect.groups import layout
    from geffect.models.load import quiet_transformers
    from geffect.planning import num_fit_steps
    from geffect.training import FitTrainer

    run = RunDirectory(config.out)
    sets = {name: _set(config, name) for name in config.train}
    loaded = _start(config)
    encoded = {name: _encoded(loaded, config, rows) for name, rows in sets.items()}
    rows = [row for each in encoded.values() for row in each]
    steps = num_fit_steps(config, len(rows))
    arguments = training_arguments(config, steps)
    environment = _environment(config, sets, loaded, steps, len(rows), layout(loaded.model))
    with quiet_transformers(), _started(run, _resolved(config), environment) as sink:
        trainer = FitTrainer(
            loaded.model, arguments, tokenizer=loaded.tokenizer, rows=rows, evaluation_sets=encoded,
            until_accuracy=config.until_accuracy, sink=sink,
        )  # fmt: skip
        trainer.train()
        loaded.model.save_pretrained(config.out)
        loaded.tokenizer.save_pretrained(config.out)
    run.finish(_metrics(config.out))
    return config.out


def unlearn(config: UnlearnConfig, *, free_rows: bool = True) -> Path:
    """Unlearn a set and record the G-effect while it happens.

    Args:
        config: the run.
        free_rows: take rows that follow from others by algebra; False back-propagates each (for tests).

    Returns:
        The run directory.
    """
    from geffect.arguments import training_arguments
    from geffect.groups import layout
    from geffect.models.load import quiet_transformers
    from geffect.objectives import make_objective
    from geffect.rectify import make_rectifier
    from geffect.training import UnlearnTrainer

    objective, rectifier = make_objective(config.objective), make_rectifier(config.rectifier)
    run = RunDirectory(config.out)
    sets = {side: _set(config, spec) for side in SIDES if (spec := getattr(config, side))}
    loaded = _start(config)
    _same_start(config, loaded)
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        LOGGER.warning("steps of %g vanish in bfloat16's rounding: use --dtype float32", config.learning_rate)
    encoded = {side: _encoded(loaded, config, rows) for side, rows in sets.items()}
    environment = _environment(config, sets, loaded, config.steps, len(sets["forget"]), layout(loaded.model))
    resolved = _resolved(config) | {"reference": {"path": loaded.source, "sha256": loaded.sha256}}
    arguments = training_arguments(config, config.steps)
    with quiet_transformers(), _started(run, resolved, environment) as sink:
        trainer = UnlearnTrainer(
            loaded.model, arguments, tokenizer=loaded.tokenizer, objective=objective, rectifier=rectifier,
            forget=encoded["forget"], retain=encoded["retain"], evaluation_sets=encoded, sink=sink,
            reference=_reference(loaded, objective, encoded["forget"]), diagnose_every=config.diagnose_every,
            free_rows=free_rows,
        )  # fmt: skip
        trainer.train()
    run.finish(_metrics(config.out))
    return config.out


def plan(config: TrainConfig) -> dict[str, str]:
    """What a run would do: model, sets, batch arithmetic, memory. Nothing is written and no weight loaded.

    Args:
        config: of ``fit`` or ``unlearn``.

    Returns:
        Lines by name.
    """
    from geffect.planning import plan as make_plan

    return make_plan(config)


def show_batch(config: ShowConfig) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first rows of a set as a model sees them.

    Args:
        config: model, set and how many rows.

    Returns:
        (title, [(token's text, carries loss)]) a row.
    """
    from geffect.data import encode_set
    from geffect.models import outline
    from geffect.objectives import IGNORE_INDEX

    _, tokenizer = outline(config.model)
    rows = encode_set(tokenizer, _set(config, config.data), config.max_length)[: config.limit]
    shown = []
    for row in rows:
        learned = [label != IGNORE_INDEX for label in row.labels]
        tokens = _texts(tokenizer, row.input_ids)
        shown.append((
            f"row {row.index}: {sum(learned)} of {len(tokens)} tokens",
            list(zip(tokens, learned, strict=True)),
        ))
    return shown


def _texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the text; a character's bytes stand with the token that completes it."""
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = end == len(ids) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return texts


@contextlib.contextmanager
def _started(run: RunDirectory, config: dict[str, Any], environment: dict[str, Any]) -> Iterator[Callable[..., None]]:
    """A sink for a run's lines: the directory is made with the first, so a start that fails leaves nothing."""

    def sink(line: dict[str, Any]) -> None:
        if not run.begun:
            run.create(config, environment)
        run.append(line)

    try:
        yield sink
    finally:
        run.abandon()


def _set(config: DataConfig, spec: str) -> "QASet":
    from geffect.data import load_set

    return load_set(spec, config.data_dir, config.question_column, config.answer_column)


def _encoded(loaded: "Loaded", config: TrainConfig, rows: "QASet") -> "list[Encoded]":
    from geffect.data import encode_set

    return encode_set(loaded.tokenizer, rows, config.max_length)


def _start(config: TrainConfig) -> "Loaded":
    from geffect.models import add_lora

    loaded = load_model(config.model, config.dtype)
    if config.lora:
        loaded.model = add_lora(loaded.model, config.lora, config.seed)
    return loaded


def _same_start(config: UnlearnConfig, loaded: "Loaded") -> None:
    """A replayed configuration must start where the run it came from did."""
    expected = (config.reference or {}).get("sha256")
    if expected is not None and expected != loaded.sha256:
        raise GeffectError(
            f"the start recorded in the configuration (weights {expected[:12]})",
            f"{config.model} (weights {str(loaded.sha256)[:12]})",
            "restore that model, or remove 'reference'",
        )


def _reference(loaded: "Loaded", objective: Any, forget: "list[Encoded]") -> Any:
    """The start's token NLLs of every forget row, where the objective needs them."""
    from geffect.data import pad_id_of
    from geffect.metrics import reference_nll

    return reference_nll(loaded.model, forget, pad_id_of(loaded.tokenizer)) if "ref_nll" in objective.needs else None


def _resolved(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _environment(
    config: TrainConfig, sets: "dict[str, QASet]", loaded: "Loaded", steps: int, rows: int, layout: Any
) -> dict[str, Any]:
    from geffect.environment import batch_arithmetic, describe

    return describe() | {
        "dtype": config.dtype,
        "attention": getattr(loaded.model.config, "_attn_implementation", None),
        "data": {name: {"set": each.name, "rows": len(each), "sha256": each.sha256} for name, each in sets.items()},
        "batch": batch_arithmetic(rows, config.batch_size, config.grad_accum_steps, steps),
        "parameters": layout_to_json(layout),
    }


def _metrics(path: Path) -> dict[str, Any]:
    """The first and last evaluation, and the peak memory."""
    from geffect.environment import peak_memory_gb

    scored = [line for line in read_lines(path) if "evaluation" in line]
    ends = {
        name: {"step": line["step"], **line["evaluation"]} for name, line in (("start", scored[0]), ("end", scored[-1]))
    }
    return ends | {"peak_memory_gb": round(peak_memory_gb(), 3)}
