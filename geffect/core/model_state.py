"""Run passes of a model and leave it and the random states as they were, bit for bit.

A forward pass may change what it runs on, in evaluation mode too: buffers grow, counters count, caches fill, weights
are rescaled. `ModelState` runs passes and restores all of it.
"""

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter as preserve_versions
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from geffect.errors import GeffectError

DICTS, LISTS, SETS = (dict, OrderedDict, defaultdict), (list, deque), (set,)
CONTAINERS = frozenset((*DICTS, *LISTS, *SETS, tuple))
HOOKS = ("_backward_hooks", "_backward_pre_hooks")
SMALL = 1 << 16  # elements of a buffer that is copied before every look
DEPTH, WIDTH = 4, 1000  # how deep, and into how large a container, tensors are looked for


def enter_evaluation_mode(model: nn.Module) -> None:
    """Put a model into evaluation mode, without letting it rescale its weights.

    RWKV divides weights in place at the first pass in evaluation mode and multiplies them again at the first one in
    training mode. That module itself, which has no dropout, stays in the mode that its weights are scaled for.
    """
    model.eval()
    keep_weight_scale(model)


def keep_weight_scale(model: nn.Module) -> None:
    """Put the modules that rescale their weights into the mode that the weights are scaled for."""
    for module in model.modules():
        if hasattr(module, "layers_are_rescaled"):
            module.training = not module.layers_are_rescaled


def _keep_weight_format(model: nn.Module) -> None:
    """Let no module pack its weights meanwhile.

    On a CPU with AVX512-BF16, bitsandbytes packs 4-bit weights at the first pass in evaluation mode. They stay packed,
    and then no gradient passes through them in training mode either. The attribute is restored with all others.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            vars(module)["support_avx512bf16_for_cpu"] = False


class ModelState:
    """Runs passes of a model and leaves no trace: ``with ModelState(model).preserve(): …``.

    Restored are the random states of Python, NumPy and torch and, of every module and its configuration, attributes,
    parameters, buffers and hooks (identity, order, and what lists and dictionaries among them hold), and of every
    tensor among these its values, version, ``.grad`` and ``requires_grad``. Backward hooks of modules are removed
    meanwhile. Forward hooks run, since they are part of what the model computes. The model may be wrapped. Of one that
    `fully_shard` has sharded, parameters and hooks are left to it.

    The first use sees every operation and copies a tensor before something is written into it. Later uses copy
    those tensors beforehand, and small buffers; version counters show that nothing else has changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._first = True
        self._written: set[str] = set()

    @contextmanager
    def preserve(self, *, evaluate: bool = True) -> Iterator[None]:
        """Run passes while this lasts, in evaluation mode or in the modules' present modes, then restore everything.

        Passes that changed a trainable weight (which is restored), or what cannot be restored, are refused.
        """
        parts = _Parts(self.model)
        writes = _Writes(parts.tensors)
        for each in parts.tensors:
            small = each.tensor.numel() <= SMALL and not isinstance(each.tensor, nn.Parameter)
            if small or each.name in self._written:
                writes.keep(each)
        try:
            with ExitStack() as stack:
                stack.enter_context(preserve_random_states({p.device for p in self.model.parameters()}))
                stack.enter_context(_hooks_aside(self.model))
                enter_evaluation_mode(self.model) if evaluate else keep_weight_scale(self.model)
                _keep_weight_format(self.model)
                stack.enter_context(_uncompiled())
                if self._first:
                    stack.enter_context(writes)
                yield
        finally:
            changed, lost = parts.put_back(writes.copies)
            self._written |= {each.name for each in writes.seen}
        self._first = False
        _refuse(changed, lost)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run what ``torch.compile`` has compiled as it was written.

    A compiled model is compiled again for every kind of input, then for changing shapes, so that passes over other
    batches would change the code, and the rounding, of those that follow.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _refuse(changed: list[str], lost: list[str]) -> None:
    if lost:
        message = f"A pass wrote into {lost[0]}, which the first pass did not change, so that it cannot be restored"
        raise GeffectError(message, remedy="Resume from the last checkpoint without monitoring this model")
    if changed:
        raise GeffectError(
            f"A forward pass changed the trainable weights {changed[0]} (now restored), "
            "so that its gradients are of other weights",
            remedy="Take that out of the model's forward pass",
        )


@dataclass(eq=False)
class _Tensor:
    """A tensor of the model as it was."""

    name: str
    tensor: Tensor

    def __post_init__(self) -> None:
        self.memory, self.place = self.tensor.detach(), self.tensor.data_ptr()
        self.version, self.requires_grad = self.tensor._version, self.tensor.requires_grad
        self.leaf = self.tensor.is_leaf
        self.grad = self.tensor.grad if self.leaf else None
        if self.leaf and self.grad is not None:
            self.tensor.grad = None  # a backward pass would add to it

    def put_back(self, copy: Tensor | None) -> bool:
        """Restore it; whether its values had changed, as far as a copy or another memory shows."""
        changed = False
        if self.tensor.data_ptr() != self.place or self.tensor.shape != self.memory.shape:
            changed, self.tensor.data = not _same(self.tensor.detach(), self.memory), self.memory
        if copy is not None:
            changed |= self.requires_grad and not _same(self.memory, copy)
            self.memory.data.copy_(copy)
        if self.leaf and self.tensor.requires_grad != self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)
        if self.leaf and self.tensor.grad is not self.grad:
            self.tensor.grad = self.grad
        return changed


class _Parts:
    """The parts of a model: containers with what they hold, and tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.containers: dict[int, tuple[Any, list[Any]]] = {}
        self.empty: list[Any] = []  # most of them, as of hooks: objects made here would wake Python's collector
        tensors: dict[int, _Tensor] = {}
        for path, module in model.named_modules():
            exchanged = _exchanged(module)
            attributes = {name: value for name, value in vars(module).items() if name not in exchanged}
            for name, tensor in self._inside(f"{path}.", attributes):
                if id(tensor) not in tensors and _plain(tensor):
                    tensors[id(tensor)] = _Tensor(name.strip("."), tensor)
            self.containers[id(vars(module))] = vars(module), list(vars(module).items())
        self.tensors = list(tensors.values())
        self._versions = [preserve_versions(each.tensor) for each in self.tensors]  # torch 2.6 takes one at a time

    def _inside(self, name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
        """The tensors in an attribute; the containers on the way are noted."""
        if isinstance(value, Tensor):
            yield name, value
        kind = type(value)
        if kind not in CONTAINERS or depth > DEPTH or id(value) in self.containers:
            return
        if not value:
            self.empty.append(value)
            return
        if kind is not tuple and depth:
            self.containers[id(value)] = value, list(value.items() if kind in DICTS else value)
        if len(value) > WIDTH:
            return
        for key, each in value.items() if kind in DICTS else (("", each) for each in value):
            if key == "config" and hasattr(each, "__dict__"):
                each = vars(each)
            if isinstance(each, Tensor) or type(each) in CONTAINERS:  # asked here: most attributes are neither
                place = name if key in ("_parameters", "_buffers") else f"{name}{key}"
                yield from self._inside(place, each, depth + 1)

    @torch.no_grad()
    def put_back(self, copies: Mapping[int, Tensor]) -> tuple[list[str], list[str]]:
        """Restore everything from copies by id of a tensor.

        Returned are the names of trainable tensors that had changed, and of those written into that have no copy.
        """
        for container in self.empty:
            if container:
                container.clear()
        for container, content in self.containers.values():
            _refill(container, content)
        written = [each for each in self.tensors if each.tensor._version != each.version]
        lost = [each.name for each in written if id(each.tensor) not in copies]
        changed = [each for each in self.tensors if each.put_back(copies.get(id(each.tensor)))]
        for each in self._versions:  # what was written is undone, so that a graph outside may still use it
            each.__exit__()
        return [each.name for each in changed if each.requires_grad], lost


class _Writes(TorchDispatchMode):
    """Copies a tensor before the first operation that writes into its memory."""

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[_Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: dict[int, Tensor] = {}
        self.seen: list[_Tensor] = []
        self._by_storage: dict[int, list[_Tensor]] = {}
        for each in tensors:
            self._by_storage.setdefault(each.memory.untyped_storage()._cdata, []).append(each)
        self._places: dict[Any, tuple[tuple[int, str], ...]] = {}

    def keep(self, each: _Tensor) -> None:
        """Copy a tensor, once."""
        if id(each.tensor) not in self.copies:
            self.copies[id(each.tensor)] = each.memory.clone()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments that the operation writes into, then run it."""
        if func not in self._places:
            self._places[func] = _write_places(func)
        for at, name in self._places[func]:
            self._note(args[at] if at < len(args) else (kwargs or {}).get(name))
        return func(*args, **(kwargs or {}))

    def _note(self, argument: Any) -> None:
        for tensor in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(tensor, Tensor) and _plain(tensor):
                for each in self._by_storage.get(tensor.untyped_storage()._cdata, ()):
                    self.keep(each)
                    self.seen.append(each)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _write_places(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes into."""
    arguments = getattr(getattr(func, "_schema", None), "arguments", ())
    return tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory and a version of its own."""
    known = tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_inference()
    return known and not is_traceable_wrapper_subclass(tensor)


def _exchanged(module: nn.Module) -> set[str]:
    """The attributes of a module that FSDP2 exchanges while it runs, and sets up in its first pass."""
    kinds = {base.__name__ for base in type(module).__mro__}
    if "FSDPModule" in kinds or any(type(each).__name__ == "DTensor" for each in module._parameters.values()):
        return {"_parameters", *(name for name in vars(module) if name.endswith("hooks"))}
    return set()


def _refill(container: Any, content: list[Any]) -> None:
    """Restore the content of a container."""
    if type(container) not in DICTS:
        if len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True)):
            container.clear()
            container.update(content) if type(container) in SETS else container.extend(content)
        return
    now = container.items()
    if len(now) == len(content) and all(k is a and v is b for (k, v), (a, b) in zip(now, content, strict=True)):
        return
    before = dict(content)
    for key in [key for key in container if key not in before]:
        del container[key]
    if list(container) != list(before):
        container.clear()
    container.update(before)


@contextmanager
def preserve_random_states(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch and the devices' generators afterwards."""
    gpus = sorted({each.index or 0 for each in devices if each.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _hooks_aside(model: nn.Module) -> Iterator[None]:
    """Remove the backward hooks of modules meanwhile; their handles work again after."""
    places: list[tuple[dict[str, Any], str]] = [(vars(torch_module), f"_global{name}") for name in HOOKS]
    places += [(vars(module), name) for module in model.modules() for name in HOOKS]
    removed = [(owner, name, owner[name]) for owner, name in places if owner.get(name)]
    for owner, name, _ in removed:
        owner[name] = OrderedDict()
    try:
        yield
    finally:
        for owner, name, hooks in removed:
            owner[name] = hooks
