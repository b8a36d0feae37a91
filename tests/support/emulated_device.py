"""GPUs without a GPU: tensors that say they lie on ``gpu:i``, hold CPU data, and refuse to mix with others.

`emulate` makes them of torch's PrivateUse1 backend. Models, autograd, hooks, accelerate's ``dispatch_model`` and a
Hugging Face Trainer (``ACCELERATE_TORCH_DEVICE=gpu:0``) run on them with real numbers, the CPU's bit for bit. Every
copy between host and device, every wait for a result and every launched operation is counted, by the line of geffect
that caused it.

torch is changed for the whole process. So a process of its own does it, and a test reads what that prints
(`tests.support.device_cases`).

What CUDA does and this does not:

- random numbers of its own: draws are the CPU's, so that numbers can be compared;
- autocast, since PrivateUse1 has no Autocast key of Python's;
- streams, pinned memory, NCCL, speed and memory.

torch's engine keeps one queue for a backend written in Python, and so one device. Here all devices are the first to
the engine, and ``device`` is an attribute of the tensor's own.
"""

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import backend_registration

import geffect

NAME = "gpu"
PACKAGE = f"{Path(geffect.__file__).parent}/"
LIBRARIES = f"{Path(torch.__file__).parent.parent}/"
PASSED_OVER = (f"{Path(torch.__file__).parent}/", __file__, "<")  # no line of these is anybody's own doing
aten = torch.ops.aten

# these block until the device has computed their input, since a number or a shape depends on it
WAITS = {
    aten._local_scalar_dense: "item",
    aten.equal: "equal",
    aten.nonzero: "nonzero",
    aten.masked_select: "nonzero",
    aten._unique2: "nonzero",
    aten.unique_consecutive: "nonzero",
    aten.unique_dim: "nonzero",
    aten.bincount: "nonzero",
    aten.repeat_interleave: "nonzero",
}
COPIES = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_, aten._unsafe_index}
STRICT = {aten.cat, aten.stack, aten.embedding, aten.gather, aten.scatter, aten.index_select}  # no CPU scalar either
SHAPES = {aten.is_same_size, aten._has_same_storage_numel}  # these look at no number
IDLE = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.detach, aten.alias, aten.lift_fresh}
# these reach a device without one of its tensors among their arguments, or with Python's own dispatch switched off
NAMED = (
    "copy_ _to_copy empty.memory_format empty_strided arange arange.start arange.start_step eye eye.m full linspace "
    "ones rand randint randint.low randn randperm scalar_tensor tril_indices triu_indices zeros"
)
WHOLE = "mish_backward silu_backward"  # CPU and CUDA have kernels; else torch composes them, to other bits


class Event(NamedTuple):
    """Something that costs time on a GPU.

    Attributes:
        kind: ``h2d``, ``d2h`` or ``d2d`` of a copy; ``item``, ``tolist``, ``nonzero``, ``equal`` or ``index`` (by a
            boolean mask) of a wait.
        where: the innermost line of geffect, as ``core/gram.py:51``, or in brackets the library's.
    """

    kind: str
    where: str


class Traffic:
    """What happened between host and devices so far, and on the devices.

    Attributes:
        events: how often.
        bytes: bytes copied.
        waits: line → how often the host waited: for an event that is no copy, and for a copy that blocks.
        launches: line → operations launched; views and empty tensors launch none.
    """

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter()
        self.bytes: Counter[Event] = Counter()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def copy(self) -> "Traffic":
        """The same, as of now."""
        return self - Traffic()

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        difference = Traffic()
        for name, counter in vars(self).items():
            setattr(difference, name, counter - getattr(earlier, name))
        return difference

    def count(self, *kinds: str) -> int:
        """Events of these kinds."""
        return sum(n for event, n in self.events.items() if event.kind in kinds)

    def num_bytes(self, *kinds: str) -> int:
        """Bytes copied by events of these kinds."""
        return sum(n for event, n in self.bytes.items() if event.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        """Totals, and what each line did, as JSON has it."""
        kinds = sorted({event.kind for event in self.events})
        return {
            "events": {kind: self.count(kind) for kind in kinds},
            "bytes": {kind: self.num_bytes(kind) for kind in kinds if self.num_bytes(kind)},
            "waits": self.waits.total(),
            "launches": self.launches.total(),
            "by_line": {
                f"{event.kind} {event.where}": [n, self.bytes[event]] for event, n in self.events.most_common()
            },
            "launches_by_line": dict(self.launches.most_common()),
        }

    def add_copy(self, kind: str, num_bytes: int, *, waits: bool) -> None:
        """Count a copy."""
        event = Event(kind, where())
        self.events[event] += 1
        self.bytes[event] += num_bytes
        self.waits[event.where] += waits

    def add_wait(self, kind: str) -> None:
        """Count a wait that is no copy."""
        event = Event(kind, where())
        self.events[event] += 1
        self.waits[event.where] += 1


TRAFFIC = Traffic()  # of this process
_HERE = threading.local()  # ``errors``: of the backward pass that runs
_PLACE: list[torch.device | None] = [
    None
]  # where torch's own code makes what it makes, in a backward pass's thread too


class EmulatedTensor(Tensor):
    """A tensor that says it lies on ``gpu:i``.

    Args:
        data: what it holds, on the CPU.
        device: where it says it lies.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # torch's own way to say none
    data_on_host: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, data: Tensor, device: torch.device) -> "EmulatedTensor":
        made: EmulatedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=torch.device(NAME, 0),
        )
        made.data_on_host, made.place = data, device
        return made

    def __init__(self, data: Tensor, device: torch.device) -> None:
        """All of it is done in ``__new__``."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the stub's is no class method
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _carry_out(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute in the stubs, which nobody sets
        return self.place

    def get_device(self) -> int:
        return int(self.place.index)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `torch.Tensor.to`; the engine does not see that a tensor goes to another device."""
        options = {name: value for name, value in kwargs.items() if name != "copy"}
        device, dtype, *_ = torch._C._nn._parse_to(*(each for each in args if not isinstance(each, Tensor)), **options)
        device = next((each.device for each in args if isinstance(each, Tensor)), device)
        if device is None or device.type != NAME:
            return super().to(*args, **kwargs)
        there = _numbered(device)
        if there.index == 0 and _PLACE[-1] is not None:  # as torch's own code names it
            there = _PLACE[-1]
        if there == self.place:
            return super().to(dtype or self.dtype, copy=kwargs.get("copy", False))
        moved = _move(self, there)
        return moved if dtype is None else moved.to(dtype)

    def tolist(self) -> Any:
        TRAFFIC.add_copy("d2h", self.nbytes, waits=False)
        TRAFFIC.add_wait("tolist")
        return self.data_on_host.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                "memory first."
            )
        return self.detach().cpu().numpy()

    def data_ptr(self) -> int:
        return self.data_on_host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.data_on_host.untyped_storage()

    def is_pinned(self, *_: Any) -> bool:
        return False

    def register_hook(self, hook: Callable[..., Any]) -> Any:
        register: Callable[..., Any] = super().register_hook
        return register(_hook(hook))

    def register_post_accumulate_grad_hook(self, hook: Callable[..., Any]) -> Any:
        register: Callable[..., Any] = super().register_post_accumulate_grad_hook
        return register(_hook(hook))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = self.detach().clone()
        twin = nn.Parameter(twin) if isinstance(self, nn.Parameter) else twin
        memo[id(self)] = twin.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds its data, which are read onto the CPU as with ``map_location="cpu"``."""
        return self.data_on_host.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # the stub has a keyword without a name
        return f"EmulatedTensor({self.data_on_host}, device={self.place})"


class _Move(torch.autograd.Function):
    """A copy from device to device, whose gradient goes back."""

    @staticmethod
    def forward(context: Any, tensor: EmulatedTensor, device: torch.device) -> Tensor:
        context.back, context.there = tensor.device, device
        TRAFFIC.add_copy("d2d", tensor.nbytes, waits=False)
        return EmulatedTensor(tensor.data_on_host.clone(), device)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0].to(context.back), None

    @staticmethod
    def jvp(context: Any, *tangents: Any) -> Any:
        return None if tangents[0] is None else _move(tangents[0], context.there)


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    apply: Callable[..., Tensor] = _Move.apply
    return apply(tensor, device)


class Backend(backend_registration._DummyBackendModule):
    """``torch.gpu``.

    Args:
        count: devices.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def device_count(self) -> int:
        return self.count

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self) -> bool:
        return True


@functools.cache
def emulate(count: int = 2) -> Traffic:
    """Emulate ``gpu:0`` and so on in this process from now on.

    Args:
        count: devices.

    Returns:
        What happens between host and devices.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend(count))
    torch.__future__.set_swap_module_params_on_conversion(True)  # .data cannot become a tensor of another class
    torch.autograd.set_multithreading_enabled(False)  # hooks run where backward() was called, in sight of `where`
    library = _library()
    for name in f"{NAMED} {WHOLE}".split():
        packet, _, overload = name.partition(".")
        func = getattr(getattr(aten, packet), overload or "default")
        library.impl(name, functools.partial(_dispatch, func), "PrivateUse1")
    library.impl("_efficientzerotensor", _zeros, "PrivateUse1")
    _load_onto_devices()
    _attend()
    _raise_after_backward()
    return TRAFFIC


@functools.cache
def _library() -> Any:
    """It lasts as long as the process: what is registered goes with it."""
    return torch.library.Library("aten", "IMPL")


def _load_onto_devices() -> None:
    """safetensors' reader knows no device of this name: read onto the CPU, then copy."""
    import safetensors.torch

    load = safetensors.torch.load_file

    def load_file(filename: Any, device: Any = "cpu") -> dict[str, Tensor]:
        if torch.device(device).type != NAME:
            read: dict[str, Tensor] = load(filename, device)
            return read
        return {name: tensor.to(device) for name, tensor in load(filename).items()}

    safetensors.torch.load_file = load_file


def _raise_after_backward() -> None:
    """Raise an error of a backward pass once it is over.

    Within it, torch would abort: as it unwinds, it calls the backend's guard, which is Python, with an error pending.
    """
    autograd: Any = torch.autograd  # whose stubs hide this
    run = autograd._engine_run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        before, errors = _errors(), list[Exception]()
        _HERE.errors = errors
        try:
            gradients = run(*args, **kwargs)
        finally:
            _HERE.errors = before
        if errors:
            raise errors[0]
        return gradients

    autograd._engine_run_backward = run_backward


def _errors() -> list[Exception] | None:
    """The errors so far of the backward pass that runs; None where none does, and in its hooks."""
    errors: list[Exception] | None = getattr(_HERE, "errors", None)
    return errors


def _hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, whose error waits for the end of the backward pass; after an error no hook is called."""

    @functools.wraps(hook)
    def call(*args: Any) -> Any:
        errors = _errors()
        if errors is None:
            return hook(*args)
        if errors:
            return None
        _HERE.errors = None
        try:
            return hook(*args)
        except Exception as error:
            errors.append(error)
            return None
        finally:
            _HERE.errors = errors

    return call


def _attend() -> None:
    """Use torch's plain formula of attention, whose masks lie where the query does, on the CPU as on a device."""
    plain = torch.nn.functional.scaled_dot_product_attention
    for switch in (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp):
        switch(False)

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with made_on(query.device):
            return plain(query, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = attention


@contextlib.contextmanager
def made_on(place: torch.device) -> Iterator[None]:
    """What torch's own code makes beside a tensor lies on a device; to that code all are on the first."""
    _PLACE.append(place)
    try:
        yield
    finally:
        _PLACE.pop()


def where() -> str:
    """The innermost line of geffect that is carried out, a dispatch mode's aside, else of whoever calls torch."""
    frame: FrameType | None = sys._getframe(2)
    other = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and frame.f_code.co_name != "__torch_dispatch__":
            return f"{file.removeprefix(PACKAGE)}:{frame.f_lineno}"
        if not other and not file.startswith(PASSED_OVER):
            other = f"({file.removeprefix(LIBRARIES)}:{frame.f_lineno})"
        frame = frame.f_back
    return other


def _dispatch(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _carry_out(func, args, kwargs)


def _zeros(size: Any, **options: Any) -> Tensor:
    device = _PLACE[-1] or _numbered(options["device"])
    return EmulatedTensor(torch.zeros(size, dtype=options.get("dtype")), device)


def _numbered(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device(NAME, 0) if device.type == NAME and device.index is None else device


def _tensors(*values: Any) -> list[Tensor]:
    """The tensors among the arguments of an operation, which nest in lists at most."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(*value)
    return found


def _on_host(value: Any) -> Any:
    if isinstance(value, EmulatedTensor):
        return value.data_on_host
    return [_on_host(each) for each in value] if isinstance(value, list | tuple) else value


def _on_device(value: Any, place: torch.device) -> Any:
    if isinstance(value, Tensor):
        return EmulatedTensor(value, place)
    return type(value)(_on_device(each, place) for each in value) if isinstance(value, list | tuple) else value


def _carry_out(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the data, and put what it gives where a GPU would."""
    packet, tensors = func.overloadpacket, _tensors(args, *kwargs.values())
    written = _targets(func, args, kwargs)
    if packet not in COPIES and packet not in SHAPES:
        _refuse_mixed(packet, tensors, written)
    if packet is aten.copy_:
        _count_copy(tensors[1], tensors[0].device, bool(kwargs.get("non_blocking", len(args) > 2 and args[2])))
    place = next((each.device for each in tensors if isinstance(each, EmulatedTensor)), None)
    options, here = dict(kwargs), _PLACE[-1]
    if here is not None and options.get("device") == torch.device(NAME, 0):
        options["device"] = here
    if options.get("device") is not None:
        place = _numbered(options["device"])
        options |= {"device": torch.device("cpu"), "pin_memory": False} if "pin_memory" in options else {}
        options["device"] = torch.device("cpu")
    if packet is aten._to_copy and place is not None:
        _count_copy(tensors[0], place, bool(kwargs.get("non_blocking")))
    if place is not None and place.type == NAME:
        _count(func, args)
    given = func(*map(_on_host, args), **{name: _on_host(value) for name, value in options.items()})
    if written:
        _refuse_resized(func, written)
        return written[0] if len(written) == 1 else tuple(written)
    if place is None or place.type != NAME:
        return given
    return _on_device(given, place)


def _targets(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes to and returns."""
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in _write_places(func)]


@functools.cache
def _write_places(func: Any) -> tuple[tuple[int, str], ...]:
    schema = func._schema
    if not any(each.alias_info is not None and each.alias_info.is_write for each in schema.returns):
        return ()
    places = enumerate(schema.arguments)
    return tuple((i, each.name) for i, each in places if each.alias_info is not None and each.alias_info.is_write)


def _refuse_mixed(packet: Any, tensors: Iterable[Tensor], written: Sequence[Any]) -> None:
    """Raise as CUDA does where devices meet; a CPU tensor without dimensions is a number, and indices are copied."""
    tensors = list(tensors)
    places = {each.device for each in tensors if isinstance(each, EmulatedTensor)}
    host = [each for each in tensors if not isinstance(each, EmulatedTensor)]
    if packet in INDEXING:
        if not isinstance(tensors[0], EmulatedTensor) and places:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        host = [each for each in host if each.is_floating_point()]  # the values that are put
    strict = packet in STRICT or any(not isinstance(each, EmulatedTensor) for each in _tensors(written))
    sized = [each for each in host if each.dim() or strict]
    if len(places) > 1 or (places and sized):
        names = " and ".join(sorted({str(each) for each in places} | {str(each.device) for each in sized}))
        error = RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {names}! ({packet})"
        )
        if (errors := _errors()) is None:
            raise error
        errors.append(error)


def _refuse_resized(func: Any, written: Iterable[Any]) -> None:
    for each in written:
        if isinstance(each, EmulatedTensor) and each.data_on_host.size() != each.size():
            raise NotImplementedError(f"{func} changes the size of an emulated tensor, which is not emulated")


def _count_copy(source: Tensor, to: torch.device, non_blocking: bool) -> None:
    kinds = {(False, True): "h2d", (True, False): "d2h", (True, True): "d2d"}
    kind = kinds.get((isinstance(source, EmulatedTensor), to.type == NAME))
    if kind is not None and source.device != to:
        TRAFFIC.add_copy(kind, source.nbytes, waits=kind != "d2d" and not non_blocking)


def _count(func: Any, args: Sequence[Any]) -> None:
    """Count a launch, a wait, and the copies of indices."""
    packet = func.overloadpacket
    kind = WAITS.get(packet)
    if packet in INDEXING:
        indices = _tensors(args[1])
        masks = any(isinstance(each, EmulatedTensor) and each.dtype == torch.bool for each in indices)
        kind = "index" if masks else None
        for each in (each for each in indices if not isinstance(each, EmulatedTensor)):
            TRAFFIC.add_copy("h2d", each.nbytes, waits=True)
    if kind:
        TRAFFIC.add_wait(kind)
    if _launches(func):
        TRAFFIC.launches[where()] += 1


@functools.cache
def _launches(func: Any) -> bool:
    """Whether an operation computes something: it gives no view."""
    packet = func.overloadpacket
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return not views and packet not in COPIES | IDLE and packet is not aten._local_scalar_dense
