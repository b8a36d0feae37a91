"""Variants of a model that an evaluation scores: as it is, rounded, in 4 bits, mixed with its start, or relearned."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from geffect.config import EvaluateConfig, FinetuneConfig
from geffect.core.layers import decoder_blocks, unwrap
from geffect.core.losses import widen
from geffect.core.registry import Configurable, parse
from geffect.core.splits import role_of
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError, Interrupted
from geffect.evaluation.scores import extraction_strength
from geffect.evaluation.suites import Part
from geffect.evaluation.view import View
from geffect.io.readers import read_json
from geffect.models.cache import cached_directory
from geffect.models.load import Loaded, outline
from geffect.training.finetune import state_path
from geffect.training.setup import model_key

Sets = Sequence[tuple[Part, ExampleSet]]
Load = Callable[[str], Loaded]
MOST_GROUPED = 2**20
SHARED = {  # of the evaluation, for relearning
    *("trust_remote_code", "data_dir", "question_column", "answer_column", "text_column", "max_length", "seed"),
    *("template_date", "system_prompt", "chat_template", "tokenizer"),
    *("dtype", "device", "deterministic"),
}


@dataclass(frozen=True)
class Variant:
    """A model with changed weights."""

    label: str  # its name in the result
    loaded: Loaded
    weights: str = ""  # the change of its weights, for the key of a cached result; empty: none
    context: Callable[[], AbstractContextManager[None]] = nullcontext  # changes the weights, and restores them on exit
    numbers: dict[str, float] = field(default_factory=dict)  # that describe it, for the result
    beside: Mapping[str, Loaded] = field(default_factory=dict)  # further models, for metrics that need them


def variants(
    config: EvaluateConfig,
    spec: str,
    label: str,
    sets: Sets,
    load: Load,
    view: Callable[[ExampleSet, Loaded], View],
    finetune: Callable[..., os.PathLike[str]],
) -> Iterator[Variant]:
    """A model, then what ``--rounded``, ``--quantize``, ``--calibrate`` and ``--relearn`` make of it, one at a time."""
    loaded = load(spec)
    yield Variant(label, loaded)
    if config.rounded:
        yield Variant(f"{label} 8bit", loaded, "8bit", partial(rounded, loaded.model))
    if config.quantize or config.calibrate is not None:
        loaded = replace(loaded, model=_merged(loaded.model))
    for each in map(parse_quantization, config.quantize):
        yield Variant(f"{label} {each}", loaded, f"{each} merged", partial(quantized, loaded.model, each))
    if config.calibrate is not None:
        yield _calibrated(config, label, loaded, load(config.calibrate), _retain_set(sets), view)
    if config.relearn_steps:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                fit, steps = _relearning(config, spec, sets, Path(scratch) / "fit"), config.relearn_steps
                path = Path(finetune(fit, states=steps[:-1]))
            except Interrupted as stopped:  # its directory is temporary
                raise Interrupted("stopped while relearning; nothing of that is kept", stopped.signum) from None
            for step in steps:
                name = f"{label} relearned" if len(steps) == 1 else f"{label} relearned {step}"
                state = path if step == steps[-1] else state_path(path, step)
                yield Variant(name, load(os.fspath(state)), numbers={"relearn_steps": step})


def check_variants(config: EvaluateConfig, sets: Sets) -> None:
    """Raise where a set is missing that a variant needs."""
    if config.calibrate is not None:
        _retain_set(sets)
        outline(config.calibrate, trust_remote_code=config.trust_remote_code)
    if config.relearn_steps:
        _relearning(config, "", sets, Path())
    names = [str(parse_quantization(each)) for each in config.quantize]
    if len(set(names)) < len(names):
        raise GeffectError(f"--quantize names {names[-1]} twice", remedy="Leave one of them out")
    for model in filter(None, (config.start, config.retrained)):
        outline(model, trust_remote_code=config.trust_remote_code)


def _retain_set(sets: Sets) -> ExampleSet:
    by_name = {part.name: examples for part, examples in sets if part.name in ("retain", "heldout")}
    if not by_name:
        names = ", ".join(part.name for part, _ in sets)
        message = f"--calibrate needs a set named heldout or retain, and there is {names}"
        raise GeffectError(message, remedy="Add --set heldout=SET")
    return by_name.get("heldout") or by_name["retain"]  # heldout: no gradient was drawn from it


def _calibrated(
    config: EvaluateConfig,
    label: str,
    loaded: Loaded,
    start: Loaded,
    examples: ExampleSet,
    view: Callable[[ExampleSet, Loaded], View],
) -> Variant:
    """The model mixed with its start until ``--tau`` of the start's extraction strength on a set remains (UWC)."""
    both = [model_key(config, each) for each in (loaded, start)]
    before = dict(_merged(start.model).named_parameters())

    def retention(alpha: float) -> float:
        with mixed(loaded.model, before, alpha):
            scores = [extraction_strength(example) for example in view(examples, loaded).scores()]
        present = [score for score in scores if not math.isnan(score)]
        if not present:
            message = f"--calibrate needs an example of {examples.name} with two labeled tokens, and there is none"
            raise GeffectError(message, remedy="Name a set of longer examples or raise --max-length")
        return sum(present) / len(present)

    def search(directory: Path) -> None:
        (directory / "alpha.json").write_text(json.dumps(calibrate(retention, config.tau)), encoding="utf-8")

    key = json.dumps([both, config.tau, config.max_length, examples.examples])
    if all(both):
        alpha = read_json(cached_directory("calibration", key, search) / "alpha.json")
    else:
        alpha = calibrate(retention, config.tau)
    weights = f"mixed {alpha} {json.dumps(both)}"
    hashed = replace(loaded, sha256=loaded.sha256 if start.sha256 else None)
    mix = partial(mixed, loaded.model, before, alpha)
    return Variant(f"{label} calibrated", hashed, weights, mix, {"alpha": alpha})


def _merged(model: Any) -> Any:
    """The model with its adapter merged into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _relearning(config: EvaluateConfig, spec: str, sets: Sets, out: Path) -> FinetuneConfig:
    train = [part.spec for part, _ in sets if role_of(part.name) == "forget"]
    if not train:
        names = ", ".join(part.name for part, _ in sets)
        raise GeffectError(f"--relearn needs a set named forget, and there is {names}", remedy="Add --set forget=SET")
    given: dict[str, Any] = {"model": spec or config.model, "train": train, "out": out}
    given["steps"] = config.relearn_steps[-1]
    shared = config.model_dump(include=SHARED, exclude_none=True)
    return FinetuneConfig.read(**shared, **given, learning_rate=config.relearn_rate)


@contextmanager
def mixed(model: nn.Module, start: Mapping[str, Tensor], alpha: float) -> Iterator[None]:
    """Set θ(α) = (1 − α) θ_start + α θ inside the context; on exit the weights are restored bit for bit."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name not in start or start[name].shape != parameter.shape:
            state = f"has {name} of shape {tuple(start[name].shape)}" if name in start else f"lacks {name}"
            message = f"The start {state}, and the model's has shape {tuple(parameter.shape)}"
            raise GeffectError(message, remedy="Name the run's own start")
    with _changed_weights(parameters, lambda name, p: torch.lerp(start[name].to(p), p, alpha)):
        yield


@contextmanager
def _changed_weights(
    parameters: Mapping[str, nn.Parameter], change: Callable[[str, nn.Parameter], Tensor]
) -> Iterator[None]:
    """Set parameters to other values inside the context; on exit they are restored bit for bit."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(change(name, parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def calibrate(retention: Callable[[float], float], tau: float = 0.95, tolerance: float = 0.01) -> float:
    """The largest α at which retention is τ of the start's or more, by bisection.

    ``retention`` scores retained knowledge at α, such as by the mean extraction strength on a retain set, and is
    assumed to fall with α; a share ``tau`` of ``retention(0)`` must remain. The paper names no search, and its
    published script tries α = 0 and 1 alone.

    Returns:
        1 where the unlearned model retains enough, else an α that does, ``tolerance`` at most below one that does not.

    >>> calibrate(lambda alpha: 1 - alpha, tau=0.75, tolerance=0.001)
    0.25
    """
    enough = tau * retention(0.0)
    if retention(1.0) >= enough:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if retention(middle) >= enough else (low, middle)
    return low


@contextmanager
def rounded(model: nn.Module, bits: int = 8) -> Iterator[None]:
    """Round every matrix to so many bits inside the context; on exit the weights are restored bit for bit.

    w → s · round(w / s) with s = max |row| / (2^(bits − 1) − 1), a scale an output row.
    """
    matrices = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
    with _changed_weights(matrices, lambda _, p: _rounded(p, bits)):
        yield


def _rounded(weight: Tensor, bits: int) -> Tensor:
    scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)


NF4 = (  # quantiles of a normal distribution, scaled to [−1, 1], with an exact 0 (QLoRA, arXiv 2305.14314)
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
INT4 = tuple(each / 7 for each in range(-7, 8))


@dataclass(frozen=True)
class Quantization(Configurable):
    """A rounding of weights to 4 bits, in groups of entries.

    Attributes:
        levels: the values that a weight may take, as shares of the largest magnitude of its group: ``nf4`` or ``int4``.
        group: entries of a group; 64 is that of bitsandbytes.
    """

    levels: Literal["nf4", "int4"]
    group: Annotated[int, Field(ge=1, le=MOST_GROUPED)] = 64

    def __str__(self) -> str:
        return self.levels if self.group == 64 else f"{self.levels}(group={self.group})"


def parse_quantization(text: str) -> Quantization:
    """The quantization of a text: ``nf4``, ``int4``, or with a group, as ``nf4(group=128)``.

    >>> str(parse_quantization("int4(group=32)"))
    'int4(group=32)'
    """
    calls = parse(text)
    [call], remedy = calls[:1], "Write nf4 or int4, or with a group as in nf4(group=128)"
    names = {"nf4": "nf4", "int4": "int4"}
    if len(calls) > 1 or call.weight != 1 or call.wrapped or call.name not in names or set(call.parameters) - {"group"}:
        raise GeffectError(f"--quantize is {text!r}", remedy=remedy)
    return Quantization(names[call.name], **call.parameters)  # type: ignore[arg-type]


@contextmanager
def quantized(model: nn.Module, quantization: Quantization) -> Iterator[None]:
    """Round the matrices of the decoder's blocks to 4 bits inside the context; they are restored bit for bit on exit.

    A row is cut into groups of ``group`` entries, the last of which may be shorter: w → a · the level nearest to w/a,
    with a = max |w| over the group. Embeddings, the head, norms and biases stay as they are, as with bitsandbytes.
    """
    blocks = decoder_blocks(unwrap(model))[1]
    matrices = {name: p for name, p in blocks.named_parameters() if p.dim() >= 2}
    if packed := [str(p.dtype) for p in matrices.values() if not p.is_floating_point()]:
        message = f"--quantize needs weights that are numbers, and the model's are packed as {packed[0]}"
        raise GeffectError(message, remedy="Name the model before it was quantized")
    with _changed_weights(matrices, lambda _, p: quantize(p, quantization)):
        yield


def quantize(weight: Tensor, quantization: Quantization) -> Tensor:
    """A weight ``[…, n]`` whose entries have levels of their groups; a group of zeros stays."""
    length = weight.shape[-1]
    padded = nn.functional.pad(widen(weight), (0, -length % quantization.group))
    levels = padded.new_tensor(NF4 if quantization.levels == "nf4" else INT4)
    groups = padded.unflatten(-1, (-1, quantization.group))
    largest = groups.abs().amax(-1, keepdim=True)
    shares = torch.where(largest > 0, groups / largest, 0.0)
    nearest = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2)
    rounded_groups: Tensor = levels[nearest] * largest
    return rounded_groups.flatten(-2)[..., :length].to(weight.dtype)
