"""The kinds of model that are supported, and their types: causal ones, and the text decoder of multimodal ones."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geffect.core.model_state import ModelState
from geffect.errors import GeffectError

LOGGER = logging.getLogger(__name__)
SCORERS = ("SequenceClassification", "TokenClassification", "RewardModel", "QuestionAnswering", "MultipleChoice")
CAUSAL = "a causal language model (decoder-only, with an output head over its vocabulary)"
NEEDED = f"geffect needs {CAUSAL}"


def check_class(name: str, config: object) -> None:
    """Refuse a class of model that is an encoder-decoder or scores whole texts, by its name and configuration."""
    if getattr(config, "is_encoder_decoder", False):
        remedy = "Choose a decoder-only model, such as a Llama or Qwen"
        raise GeffectError(f"{name} is an encoder-decoder; {NEEDED}", remedy=remedy)
    if name.endswith(("RewardModel", *(f"For{each}" for each in SCORERS))):
        remedy = "Name the causal language model it was made from"
        raise GeffectError(f"{name} scores texts and predicts no token; {NEEDED}", remedy=remedy)


def check_causal(base: nn.Module, answer: Any) -> None:
    """Refuse an unwrapped model whose logits of a `short_pass` move with later tokens, by more than rounding.

    An answer None, on the meta device, or not finite shows nothing.
    """
    if _differ(answer):
        raise GeffectError(
            f"The predictions of {type(base).__name__} depend on later tokens; {NEEDED}",
            remedy="Set is_decoder: true in its config.json (of XLM: causal: true) if it was trained as "
            "a decoder, or choose another model",
        )


def _differ(answer: Any) -> bool:
    """Whether two texts' logits differ before their last tokens."""
    logits = getattr(answer, "logits", None)
    if logits is None or logits.device.type == "meta":
        return False
    one, other = logits[:, :-LATER].detach()
    return _are_apart(one, other, torch.finfo(logits.dtype).eps)


def _are_apart(one: Tensor, other: Tensor, precision: float) -> bool:
    """Whether two finite tensors differ by more than √precision of the first one's largest entry."""
    bound = precision**0.5 * float(one.abs().max())
    return isfinite(bound) and not float((one - other).abs().max()) <= bound


def _depends_on_length(base: nn.Module, answer: Any) -> bool:
    """Whether a text's logits without padding differ from those beside it; False where the text is not taken."""
    logits = answer.logits.detach()
    if logits.device.type == "meta":
        return False
    ids, mask = _texts(base, logits.shape[1], padded=True)
    try:
        with torch.no_grad():
            alone = base(input_ids=ids[1:, :-LATER], attention_mask=mask[1:, :-LATER], use_cache=False).logits[0]
    except Exception:  # of any kind: a chunk too short
        return False
    beside = logits[1, :-LATER]
    return alone.shape == beside.shape and _are_apart(beside, alone, _precision(base, logits))


def _precision(base: nn.Module, logits: Tensor) -> float:
    """The unit of the coarsest type a model may compute in: float32 in any case, as norms do; TF32 off the CPU."""
    types = {p.dtype for p in base.parameters() if p.is_floating_point()} | {logits.dtype, torch.float32}
    if hasattr(base, "_original_forward"):  # accelerate runs it in bfloat16 and hands on float32
        types.add(torch.bfloat16)
    return max(TF32 if logits.device.type != "cpu" else 0.0, *(torch.finfo(each).eps for each in types))


def check_runs(base: nn.Module) -> None:
    """Refuse an unwrapped model that fails on tokens alone, forward or backward, or gives no logits, or is not causal.

    That is, predicts from later tokens, from padding or from its length.
    """
    beside = set(map(id, non_text_parameters(base).values()))
    seen = [p for p in base.parameters() if p.requires_grad and id(p) not in beside]
    seen = [p for p in seen if not p._backward_hooks and not hasattr(p, "device_mesh")]  # a caller's, and shards
    try:
        with ModelState(base).preserve():
            answer = short_pass(base, graph=bool(seen))
            _B, _T, _V = answer.logits.shape
            if seen:
                torch.autograd.grad(answer.logits.float().sum(), seen[:1], allow_unused=True)
        with ModelState(base).preserve():  # each from the same state, since a pass may change it
            beside_padding = short_pass(base, padded=True)
        with ModelState(base).preserve():
            by_length = _depends_on_length(base, beside_padding)
    except GeffectError:
        raise
    except Exception as error:  # any model's own
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        message = f"{type(base).__name__} gives no logits of token ids and a mask, or no gradients of them ({reason})"
        raise GeffectError(message, remedy="Choose another model") from error
    check_causal(base, answer)
    if _differ(beside_padding) or by_length:
        what = "padding on the right" if _differ(beside_padding) else "the length of the padding"
        message = f"The predictions of {type(base).__name__} depend on {what}; {NEEDED}"
        raise GeffectError(message, remedy="Choose another model")


def text_decoder(base: nn.Module) -> nn.Module | None:
    """The text decoder inside a multimodal model; None for a model of text alone."""
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "get_text_config") or not hasattr(base, "get_decoder"):
        return None
    decoder = base.get_decoder() if config.get_text_config(decoder=True) is not config else base  # type: ignore[operator]
    return decoder if isinstance(decoder, nn.Module) and decoder is not base else None


def non_text_parameters(base: nn.Module) -> dict[str, nn.Parameter]:
    """Name → parameter of an unwrapped multimodal model outside its text decoder and the decoder's embedding and head.

    Empty for a model of text alone.
    """
    decoder = text_decoder(base)
    if decoder is None:
        return {}
    ends = (base.get_input_embeddings(), base.get_output_embeddings())  # type: ignore[operator]
    text = {id(p) for part in (decoder, *ends) if part is not None for p in part.parameters()}
    return {name: parameter for name, parameter in base.named_parameters() if id(parameter) not in text}


def freeze_non_text(base: nn.Module) -> None:
    """Freeze the parameters beside a multimodal model's text decoder, and log one line about them."""
    if rest := non_text_parameters(base):
        for parameter in rest.values():
            parameter.requires_grad_(False)
        warn_non_text(base, rest, "frozen")


def warn_non_text(base: nn.Module, rest: dict[str, nn.Parameter], fate: str) -> None:
    """Log one line about the parameters beside the text decoder (`non_text_parameters`), and what becomes of them."""
    parts = ", ".join(sorted({".".join(name.split(".")[:2]) for name in rest}))
    size, kind = sum(parameter.numel() for parameter in rest.values()), type(base).__name__
    LOGGER.warning("%s: its text decoder is measured; the other %d parameters (%s) are %s", kind, size, parts, fate)


BEFORE, AFTER = -1, -2  # places that are no block's number
TF32 = 2**-10  # relative precision
SHORT, LONG, LATER = 8, 64, 2  # tokens of a short pass (some attention takes whole chunks), and its texts' own


class ForwardTrace(TorchFunctionMode):
    """A record of the blocks that a forward pass enters, and of the parameters that functions take meanwhile.

    ``blocks`` maps each decoder block of the unwrapped model to its number; several modules may make up one.
    """

    def __init__(self, base: nn.Module, blocks: Mapping[nn.Module, int]) -> None:
        super().__init__()
        self.base, self.blocks = base, blocks
        self.answer: Any = None  # the model's, to the short pass
        self.entered: list[nn.Module] = []
        self.uses: dict[int, set[tuple[int, bool]]] = {}  # id → (blocks entered until then, inside the last of them)
        self._inside = 0
        self._parameters = set(map(id, base.parameters()))

    @classmethod
    def of(cls, base: nn.Module, blocks: Mapping[nn.Module, int]) -> Self:
        """The record of a short pass; an empty one where the model does not run on token ids and a mask."""
        trace = cls(base, blocks)
        try:
            with ModelState(base).preserve(), trace.recording():
                trace.answer = short_pass(base)
        except Exception:  # any model's own
            return cls(base, blocks)
        return trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; where it makes or fills a tensor, note the parameters it takes."""
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__setitem__ or any(True for _ in _tensors(result)):  # no shape or dtype
            self._note(map(id, _tensors((args, kwargs))))
        return result

    def places(self, parameter: nn.Parameter) -> set[int]:
        """Where a parameter was used: block numbers, `BEFORE` or `AFTER`; between two blocks counts as in the first."""

        def place(count: int, inside: bool) -> int:
            if not inside and count in (0, len(self.entered)):
                return AFTER if count else BEFORE
            return self.blocks[self.entered[count - 1]]

        return {place(*each) for each in self.uses.get(id(parameter), ())}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record forward passes while this lasts.

        A module's call uses the parameters it owns: for a shard, functions take the gathered tensor.
        """
        around = {each for each in self.base.modules() if not self.blocks.keys().isdisjoint(each.modules())}
        owners = [each for each in self.base.modules() if each in self.blocks or each not in around]
        handles = [block.register_forward_pre_hook(self._enter) for block in self.blocks]
        handles += [block.register_forward_hook(self._leave) for block in self.blocks]
        handles += [each.register_forward_pre_hook(self._call) for each in owners]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, keys: Iterable[int]) -> None:
        for key in self._parameters.intersection(keys):
            self.uses.setdefault(key, set()).add((len(self.entered), self._inside > 0))

    def _enter(self, block: nn.Module, *_: Any) -> None:
        self.entered.append(block)
        self._inside += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def _call(self, module: nn.Module, *_: Any) -> None:
        self._note(map(id, module.parameters(recurse=False)))


def short_pass(base: nn.Module, *, graph: bool = False, padded: bool = False) -> Any:
    """The output of the unwrapped model for two texts that differ in the last `LATER` places alone.

    Call it inside `geffect.core.model_state.ModelState.preserve`. ``graph`` keeps what a backward pass needs;
    ``padded`` puts padding in these places of the second text, in place of other tokens. The model's own exception
    passes where it does not run on token ids and a mask.
    """
    with torch.set_grad_enabled(graph):
        with contextlib.suppress(Exception):  # of any kind: a chunk too short
            return _answer(base, SHORT, padded=padded)
        return _answer(base, LONG, padded=padded)


def _answer(base: nn.Module, length: int, *, padded: bool) -> Any:
    ids, mask = _texts(base, length, padded=padded)
    if ids.device.type == "meta":  # no value of a mask can be looked at
        return base(input_ids=ids, use_cache=False)
    return base(input_ids=ids, attention_mask=mask, use_cache=False)


def _texts(base: nn.Module, length: int, *, padded: bool) -> tuple[Tensor, Tensor]:
    # of tokens without a meaning of their own, since positions and masks of some models follow from padding
    config = getattr(base, "config", None)
    padding, *special = (getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos"))
    other, *plain = [token for token in range(8) if token not in (0, padding, *special)][:4]
    device = next(base.parameters()).device
    ids = torch.tensor([plain[i % len(plain)] for i in range(length)], device=device).repeat(2, 1)
    mask = torch.ones_like(ids)
    ids[1, -LATER:] = (padding if isinstance(padding, int) else 0) if padded else other
    mask[1, -LATER:] = not padded
    return ids, mask


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


__all__ = ["CausalLM", "Tokenizer"]

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedTokenizerBase as Tokenizer

    class CausalLM(nn.Module):
        """A module with what geffect uses of a causal language model, bare or with an adapter.

        No model inherits from it: annotate what is loaded with it, and what a user passes with `torch.nn.Module`.
        """

        config: Any
        device: torch.device
        dtype: torch.dtype

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run a forward pass: an output with ``logits`` and perhaps ``hidden_states``."""

        def __getattr__(self, name: str) -> Any:
            """Whatever else a kind of model has."""

        def get_input_embeddings(self) -> nn.Embedding:
            """The token embedding."""

        def get_output_embeddings(self) -> nn.Linear | None:
            """The head."""

        def get_base_model(self) -> "CausalLM":
            """The model inside an adapter's wrapper."""

        def generate(self, *args: Any, **kwargs: Any) -> Tensor:
            """Token ids ``[B, T]`` of continuations."""

        def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
            """Write weights and configuration."""

else:  # importing transformers takes seconds
    CausalLM, Tokenizer = nn.Module, object


def is_shard(tensor: object) -> TypeGuard["DTensor"]:
    """Whether a tensor is this process's part of one that lies in parts."""
    loaded = sys.modules.get("torch.distributed.tensor")  # takes a second to import; not imported, there is no shard
    return loaded is not None and isinstance(tensor, loaded.DTensor)
