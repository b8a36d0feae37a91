"""Checks of a run before it begins: each finding says what was measured and what to do."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from geffect.config import UnlearnConfig
from geffect.core.architectures import CausalLM, Tokenizer
from geffect.core.forward import IGNORE_INDEX, forward
from geffect.core.gradients import NamedTensors, capture_gradients
from geffect.core.gram import Gram
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.core.splits import TARGETS, role_of, split_names
from geffect.data.checks import shared_examples
from geffect.data.encode import EncodedExample, collate, pad_id_of, turn_end
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError
from geffect.io.system import free_memory
from geffect.models.load import DTYPES
from geffect.models.scoring import check_trainable, compute_likelihood, in_evaluation_mode
from geffect.objectives.base import Counts, mean_nll
from geffect.training.memory import available_bytes
from geffect.training.setup import VANISHES, TrainingSetup
from geffect.training.unlearn import KNOWN

Batches = Mapping[str, Mapping[str, Tensor]]
DIGITS = 2.0  # of an inner product: fewer say little of a G-effect's size
TOLERANCE, LARGE = 0.1, 0.3  # relative errors of a derivative: rounding and curvature stay below the first
FULL = 4  # bytes of a float32
WRONG = "do not trust these gradients: use full weights in float32, or another attention or quantization kernel"
FLOAT32 = "use --dtype float32, with --autocast bfloat16 for speed"
SMALLER = "lower --batch-size, add --gradient-checkpointing, or train an adapter with --lora 8"
DIVIDE = (
    "choose --batch-size × --grad-accum-steps that divides the set, or expect this step to be noisier than the others"
)
ROUNDED = "gradients pass through rounded weights: compare a few with those of the full model"
APART = "leave them out of one set: an example cannot be both forgotten and retained, nor trained on and held out"
LOOK = "see them with geffect preview"
TEMPLATE = "edit the tokenizer's chat template so that it writes {{ bos_token }} once"
CUT = "raise --max-length if examples were cut; otherwise this tokenizer ends texts with another token"
REPEAT = "runs will not repeat bit for bit: on a GPU set CUBLAS_WORKSPACE_CONFIG=:4096:8, on a CPU use fewer threads"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the check.
        status: ``good``, ``warning`` (results may mislead), or ``bad`` (a run would fail or be wrong).
        found: what was measured.
        remedy: what to do; empty where all is good.
    """

    name: str
    status: Literal["good", "warning", "bad"]
    found: str
    remedy: str = ""


def is_quantized(model: nn.Module) -> bool:
    """Whether the model's weights, or those under its adapter, are quantized."""
    return bool(getattr(model, "is_quantized", False))


def determinism(model: CausalLM, batches: Batches) -> Finding:
    """Whether the same batches give the same gradients twice."""
    one, other = (_gradients(model, batches) for _ in range(2))
    differing = [
        name for loss in one for name, tensor in one[loss].items() if not torch.equal(tensor, other[loss][name])
    ]
    if differing:
        state = f"the same batch twice: {len(differing)} gradients differ, that of {differing[0]} first"
        return Finding("determinism", "warning", state, REPEAT)
    return Finding("determinism", "good", "the same batch twice: the same gradients bit for bit")


@torch.no_grad()
def derivative(model: CausalLM, batches: Batches) -> Finding:
    """Compare a central difference of the forget loss along its own gradient with ‖∇R‖.

    Some kernels, such as those of quantized weights, silently return no gradient or a wrong one. Weights are restored
    bit for bit.
    """
    if any(p.element_size() < FULL for p in trainable_parameters(model).values()):
        return Finding("derivative", "good", "not measured: 16-bit weights do not move by so little")
    gradient, parameters = _gradients(model, {"forget": batches["forget"]})["forget"], trainable_parameters(model)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    counts = Counts.of([batches["forget"]])

    def at(step: float) -> float:
        for name, g in gradient.items():
            parameters[name].copy_(before[name] + step / norm * g)
        with in_evaluation_mode(model):
            value = float(mean_nll(forward(model, _on_device(model, batches["forget"])), counts))
        for name in gradient:
            parameters[name].copy_(before[name])
        return value

    step = min(0.1 * at(0.0), 0.005) / norm if norm else 0.0
    slope = (at(step) - at(-step)) / (2 * step) if step else 0.0
    state = f"a finite difference of the forget loss along its gradient is {slope:.4g}, the gradient's norm {norm:.4g}"
    error = abs(slope - norm) / norm if norm else math.inf
    if error > TOLERANCE:
        return Finding("derivative", "bad" if error > LARGE else "warning", state, WRONG)
    return Finding("derivative", "good", state)


def precision(config: UnlearnConfig, model: CausalLM, batches: Batches) -> Iterator[Finding]:
    """Compare inner products of the losses' gradients in bfloat16 and float32 with those in float64.

    A Llama-like model computes its norms in float32 whatever the dtype, so its float64 is no better than that.
    """
    needed, free = 32 * sum(p.numel() for p in model.parameters()) / 1e9, free_memory() / 1e9
    if is_quantized(model) or needed > free:
        why = "quantized weights have no other dtype" if is_quantized(model) else f"it takes {needed:.1f} GB"
        yield Finding("precision", "warning", f"not measured: {why}", "measure it on a smaller model of the family")
        return
    exact = _gram(model, torch.float64, batches)
    for name in ("bfloat16", "float32"):
        digits = _digits(_gram(model, DTYPES[name], batches), exact)
        used = name == config.dtype
        state = f"inner products hold {digits:.1f} digits of those in float64{'' if used else '; not used here'}"
        poor = used and digits < DIGITS
        yield Finding(f"precision, {name}", "warning" if poor else "good", state, FLOAT32 if poor else "")


def _on_device(model: CausalLM, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _gradients(model: CausalLM, batches: Batches) -> dict[str, NamedTensors]:
    def loss(batch: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        return lambda: mean_nll(forward(model, _on_device(model, batch)), Counts.of([batch]))

    with in_evaluation_mode(model), torch.enable_grad():
        return capture_gradients(model, {name: loss(batch) for name, batch in batches.items()})


def _gram(model: CausalLM, dtype: torch.dtype, batches: Batches) -> Tensor:
    place = "cpu" if model.device.type == "mps" else model.device  # Apple's GPUs have no float64
    twin = copy.deepcopy(model).to(place, dtype)
    gradients = _gradients(twin, batches)
    return Gram.reduce(tuple(gradients), trainable_parameters(twin), gradients).total()


def _digits(gram: Tensor, exact: Tensor) -> float:
    """−log₁₀ of the largest error relative to ‖a‖·‖b‖, at most 16."""
    norms = exact.diagonal().sqrt()
    error = float(((gram - exact).abs() / (norms[:, None] * norms)).max())
    return min(16.0, -math.log10(error)) if error > 0 else 16.0


def examine(start: TrainingSetup[UnlearnConfig]) -> Iterator[Finding]:
    """Run every check on a run before it begins, cheap ones first."""
    config, model, tokenizer = start.config, start.loaded.model, start.loaded.tokenizer
    yield memory(start)
    yield batches(start)
    yield weights(config, model)
    yield tie(model)
    yield from overlaps(start.sets)
    for name, examples in start.encoded.items():
        yield masks(name, examples)
        yield ends(name, examples, tokenizer)
    for name, examples in start.encoded.items():
        yield knowledge(name, examples, model, pad_id_of(tokenizer))
    if any(p.requires_grad for p in model.parameters()):
        probe = {
            role: collate(start.encoded[split_names(role, start.encoded)[0]][: config.batch_size], pad_id_of(tokenizer))
            for role in TARGETS
        }
        yield determinism(model, probe)
        yield derivative(model, probe)
        yield from precision(config, model, probe)


def memory(start: TrainingSetup[UnlearnConfig]) -> Finding:
    """Compare the plan's estimate with the free memory; loaded weights count as free, since the estimate has them."""
    needed = start.memory.on(start.device).gb
    loaded = sum(p.numel() * p.element_size() for p in start.loaded.model.parameters())
    free = (available_bytes(start.device) + loaded) / 1e9
    numbers = f"about {needed:.1f} GB needed, {free:.1f} GB free"
    return Finding("memory", "bad", numbers, SMALLER) if needed > free else Finding("memory", "good", numbers)


def batches(start: TrainingSetup[UnlearnConfig]) -> Finding:
    """Whether every step of an epoch has the same number of examples."""
    numbers = start.batches()
    left = int(numbers["examples"]) % int(numbers["examples_a_step"])
    sentence = str(numbers["sentence"])
    if left:
        return Finding("batches", "warning", f"{sentence}; an epoch's last step has {left} examples", DIVIDE)
    return Finding("batches", "good", sentence)


def weights(config: UnlearnConfig, model: CausalLM) -> Finding:
    """Whether gradients reach the weights, and steps change them."""
    total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) / 1e6 for every in (1, 0))
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    state = f"{trained:.2f} M of {total:.2f} M trained, {dtypes}"
    try:
        check_trainable(model)
    except GeffectError as error:
        return Finding("weights", "bad", f"{state}; {error.message}", error.remedy)
    if is_quantized(model):
        return Finding("weights", "warning", f"{state}; the base is quantized", ROUNDED)
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        lost = f"{state}; steps of {config.learning_rate:g} vanish in bfloat16's rounding"
        return Finding("weights", "warning", lost, FLOAT32)
    return Finding("weights", "good", state)


def tie(model: CausalLM) -> Finding:
    """Whether embedding and head are one tensor, and how its gradients are treated."""
    tied_weights = find_tied_weights(model)
    if tied_weights is not None:
        return Finding(
            "tie", "good", f"{tied_weights.name} is embedding and head: its gradients on targets are split by use"
        )
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embed, "weight", ())
    return Finding("tie", "good", "embedding and head are one tensor, not trained" if tied else "none")


def overlaps(sets: Mapping[str, ExampleSet]) -> Iterator[Finding]:
    """Examples that two sets share: a finding for each pair of sets, one where there are none."""
    pairs = list(shared_examples(sets))
    if not pairs:
        yield Finding("shared", "good", f"no example is in two of {', '.join(sets)}")
    for each in pairs:
        yield Finding(f"shared, {each.one} and {each.other}", "warning", str(each), APART)


def masks(name: str, examples: Sequence[EncodedExample]) -> Finding:
    """The share of tokens that carry loss; an example whose only such token is its end has an empty answer."""
    labeled = [sum(label != IGNORE_INDEX for label in example.labels) for example in examples]
    share = sum(labeled) / sum(len(example.labels) for example in examples)
    state = f"{share:.0%} of its tokens carry loss; examples have {min(labeled)} to {max(labeled)} such tokens"
    poor = [str(example.index) for example, count in zip(examples, labeled, strict=True) if count < 2]
    if poor:
        return Finding(f"masks, {name}", "warning", f"{state}; only one in examples {', '.join(poor[:5])}", LOOK)
    return Finding(f"masks, {name}", "good", state)


def ends(name: str, examples: Sequence[EncodedExample], tokenizer: Tokenizer) -> Finding:
    """Whether examples begin with one beginning-of-sequence token, as plain texts do, and end with a learned end."""
    title, bos, end, count = f"ends, {name}", tokenizer.bos_token_id, turn_end(tokenizer), len(examples)
    begins = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    without = sum(example.input_ids[0] != bos for example in examples) if begins else 0
    twice = sum(example.input_ids[:2] == [bos, bos] for example in examples) if bos is not None else 0
    if without or twice:
        wrong = f"{without or twice} of {count} examples begin {'without' if without else 'twice with'}"
        return Finding(title, "bad", f"{wrong} {tokenizer.bos_token}, with which plain texts begin once", TEMPLATE)
    unended, token = (
        sum(example.labels[-1] != end for example in examples),
        None if end is None else tokenizer.decode([end]),
    )
    if unended:
        return Finding(title, "warning", f"{unended} of {count} examples do not end with {token}", CUT)
    return Finding(title, "good", f"examples begin as plain texts do and end with a learned {token}")


def knowledge(name: str, examples: Sequence[EncodedExample], model: CausalLM, pad_id: int) -> Finding:
    """Whether the start knows a set: token accuracy, and loss in nats a token."""
    scores = compute_likelihood(model, examples, pad_id, 8)
    state = f"token accuracy {scores.accuracy:.3f}, loss {scores.loss:.3g} nats a token"
    if scores.accuracy >= KNOWN:
        return Finding(f"knows {name}", "good", state)
    lost, remedy = f"{state}: this model does not know the set", "train it first: geffect finetune --train SET"
    return Finding(f"knows {name}", "bad" if role_of(name) == "forget" else "warning", lost, remedy)
