"""Where in a forward pass each parameter is used: before the decoder blocks, in one of them, or after them."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geffect.core.host_state import Untouched

BEFORE, AFTER = -1, -2  # places that are no block's number
LENGTHS, LATER = (8, 64), 2  # tokens of a short pass (some kinds of attention take whole chunks), and its texts' own


class Trace(TorchFunctionMode):
    """A record of the blocks that a forward pass enters, and of the parameters that functions take meanwhile.

    Args:
        base: the model, without wrappers.
        blocks: decoder block → its number; several modules may make up one.
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
            with Untouched(base).look(), trace.recording():
                trace.answer = short_pass(base)
        except Exception:  # any model's own
            return cls(base, blocks)
        return trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; where it makes or fills a tensor, note the parameters it takes."""
        found = func(*args, **(kwargs or {}))
        if func is Tensor.__setitem__ or any(isinstance(each, Tensor) for each in _flat(found)):  # no shape or dtype
            self._note(id(each) for each in _flat((args, kwargs or {})) if isinstance(each, Tensor))
        return found

    def places(self, parameter: nn.Parameter) -> set[int]:
        """Where a parameter was used: block numbers, `BEFORE` or `AFTER`; between two blocks counts as in the first."""

        def place(count: int, inside: bool) -> int:
            if not inside and count in (0, len(self.entered)):
                return AFTER if count else BEFORE
            return self.blocks[self.entered[count - 1]]

        return {place(*each) for each in self.uses.get(id(parameter), ())}

    def repeats(self, block: nn.Module) -> bool:
        """Whether a block was entered more than once."""
        return self.entered.count(block) > 1

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """While this lasts forward passes are recorded.

        A module's call counts as a use of the parameters it owns: of a shard functions take the gathered tensor.
        """
        around = {each for each in self.base.modules() if not self.blocks.keys().isdisjoint(each.modules())}
        handles = [block.register_forward_pre_hook(self._enter) for block in self.blocks]
        handles += [block.register_forward_hook(self._leave) for block in self.blocks]
        owners = [each for each in self.base.modules() if each in self.blocks or each not in around]
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
    """Run the model over two texts that differ in the last `LATER` places alone.

    Call it while the model is kept as it is (`geffect.core.host_state.Untouched`).

    Args:
        base: a causal language model, without wrappers.
        graph: keep what a backward pass needs.
        padded: in these places the second text has padding, in place of other tokens.

    Returns:
        What it answers.

    Raises:
        Exception: the model's own, where it does not run on token ids and a mask.
    """
    device = next(base.parameters()).device
    with torch.set_grad_enabled(graph):
        for length in LENGTHS[:-1]:
            with contextlib.suppress(Exception):  # of any kind: a chunk too short
                return _answer(base, length, device, padded=padded)
        return _answer(base, LENGTHS[-1], device, padded=padded)


def _answer(base: nn.Module, length: int, device: torch.device, *, padded: bool) -> Any:
    (other, *plain), padding = _ids(base)
    ids = torch.tensor([plain[i % len(plain)] for i in range(length)], device=device).repeat(2, 1)
    ids[1, -LATER:] = padding if padded else other
    if device.type == "meta":  # no value of a mask can be looked at
        return base(input_ids=ids, use_cache=False)
    mask = torch.ones_like(ids)
    mask[1, -LATER:] = not padded
    return base(input_ids=ids, attention_mask=mask, use_cache=False)


def _ids(base: nn.Module) -> tuple[list[int], int]:
    # tokens without a meaning of their own, since positions and masks of some models follow from padding; and that
    config = getattr(base, "config", None)
    padding, *special = (getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos"))
    plain = [token for token in range(8) if token not in (0, padding, *special)]
    return plain[:4], padding if isinstance(padding, int) else 0


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        yield value
        return
    for each in value:
        yield from _flat(each)
