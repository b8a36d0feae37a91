"""Parameter → layer → group, read off the module tree.

A *layer* is ``embed``, ``block_0`` … ``block_{L-1}``, ``final_norm``, ``lm_head``, ``shared`` where several blocks have
one tensor, or ``tied`` where one tensor is both embedding and head. A *group* is a run of layers under a scheme, chosen
when a record is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.architectures import (
    AFTER,
    BEFORE,
    ForwardTrace,
    check_causal,
    check_class,
    is_shard,
    non_text_parameters,
    text_decoder,
    warn_non_text,
)
from geffect.core.groups import layer_groups
from geffect.errors import GeffectError


@dataclass(frozen=True)
class Layout:
    """The layer of every trainable parameter, in the model's own order.

    Attributes:
        layers: canonical parameter name → layer.
        numel: canonical parameter name → number of elements.
        num_blocks: how many decoder blocks the model has, trainable or not.
    """

    layers: dict[str, str]
    numel: dict[str, int]
    num_blocks: int

    def groups(self, scheme: str = "thirds") -> dict[str, str]:
        """Canonical parameter name → group under a scheme (see `block_groups`)."""
        by_layer = layer_groups(self.num_blocks, scheme)
        return {name: by_layer[layer] for name, layer in self.layers.items()}


def layout(model: nn.Module) -> Layout:
    """Assign every trainable parameter of a model, bare or wrapped by DDP, PEFT or ``torch.compile``, to its layer.

    The embedding and the head are the model's ``get_input_embeddings`` and ``get_output_embeddings``, the blocks are
    the children of its largest outermost ``ModuleList`` (see `decoder_blocks`). A tensor that is both embedding and
    head is ``tied``, one that several blocks hold or use is ``shared``. A parameter outside the blocks belongs where a
    forward pass over a few tokens uses it: before the first block to ``embed``, after the last to ``final_norm``, else
    to the block it is used in or right after, and to ``shared`` where these are several. A parameter that the pass
    does not use is placed by the order of registration, and so are all where the pass fails. The model is left
    unchanged.

    Raises:
        GeffectError: the model is no causal language model, or a trainable parameter has no home; it is named.
    """
    base = unwrap(model)
    check_class(type(base).__name__, getattr(base, "config", None))
    lists = parallel_blocks(base)
    trace = ForwardTrace.of(base, _numbers(lists))
    check_causal(base, trace.answer)
    places, rest = _places(base, lists, trace), {n: p for n, p in non_text_parameters(base).items() if p.requires_grad}
    if rest:
        warn_non_text(base, rest, "left out")
    layers, numel = {}, {}
    for name, parameter in trainable_parameters(model).items():
        if id(parameter) not in places:
            message = f"The trainable parameter {name} is outside the decoder and its head"
            raise GeffectError(message, remedy="Freeze it, or move it out of the model")
        layers[name], numel[name] = places[id(parameter)], parameter.numel()
    return Layout(layers, numel, len(lists[0]))


def by_scope(model: nn.Module, scope: str) -> dict[str, str]:
    """Parameter → its layer (``layer``) or layer group (``group``); empty of any other scope."""
    if scope not in ("layer", "group"):
        return {}
    placed = layout(model)
    return placed.groups() if scope == "group" else dict(placed.layers)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name → trainable parameter, each tensor once, under the names of the unwrapped model.

    Of a multimodal model the text decoder alone counts (`geffect.core.architectures.non_text_parameters`).
    """
    base = unwrap(model)
    names = {id(p): name for name, p in base.named_parameters()}
    left_out = set(map(id, non_text_parameters(base).values()))
    return {
        names.get(id(p), name): p for name, p in model.named_parameters() if p.requires_grad and id(p) not in left_out
    }


def unwrap(model: nn.Module) -> nn.Module:
    """The language model inside DDP, PEFT and ``torch.compile`` wrappers; adapters stay in their places."""
    for inner in ("module", "_orig_mod"):
        if isinstance(getattr(model, inner, None), nn.Module):
            return unwrap(getattr(model, inner))
    if hasattr(model, "get_base_model"):
        return unwrap(model.get_base_model())  # type: ignore[operator]
    return model


def decoder_blocks(base: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and list of the decoder blocks of a bare language model: its outermost list with the most parameters."""
    decoder = text_decoder(base)
    inside = set((decoder or base).modules())
    lists = {n: m for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and m in inside}
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    if not outermost:
        message = f"{type(base).__name__} has no ModuleList that holds the blocks of a decoder"
        raise GeffectError(message, remedy="Use a Hugging Face causal language model")
    return max(outermost.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def parallel_blocks(base: nn.Module) -> list[nn.ModuleList]:
    """The lists that hold the decoder's blocks, that of `decoder_blocks` first: one, or several side by side (XLM).

    Such lists are the first one's siblings of its length whose i-th modules run right before, in or after its i-th.
    Where a pass does not show that, the model is refused.
    """
    path, blocks = decoder_blocks(base)
    inside = set(map(id, blocks.parameters()))
    beside = {
        name: each
        for name, each in base.get_submodule(path.rpartition(".")[0]).named_children()
        if isinstance(each, nn.ModuleList) and len(each) == len(blocks) and {*map(id, each.parameters())} - inside
    }
    if not beside:
        return [blocks]
    trace = ForwardTrace.of(base, _numbers([blocks]))
    if not trace.entered or len(blocks) == 1:
        raise GeffectError(
            f"{type(base).__name__} has lists of blocks beside {path} ({', '.join(beside)}), "
            "and a pass over token ids does not show which run together",
            remedy="Use a model of two blocks or more",
        )
    return [blocks, *(each for each in beside.values() if _alternates(trace, each))]


def _alternates(trace: ForwardTrace, modules: nn.ModuleList) -> bool:
    """Whether the i-th module runs between the calls of the blocks i − 1 and i + 1."""
    counts = [{count for p in each.parameters() for count, _ in trace.uses.get(id(p), ())} for each in modules]
    return all(each and each <= {i, i + 1} for i, each in enumerate(counts))


def _numbers(lists: Sequence[nn.ModuleList]) -> dict[nn.Module, int]:
    return {block: i for blocks in lists for i, block in enumerate(blocks)}


def _places(base: nn.Module, lists: Sequence[nn.ModuleList], trace: ForwardTrace) -> dict[int, str]:
    """id(parameter) → layer."""
    owners, places = _owners(base, lists), _places_by_order(base)
    for parameter in base.parameters():
        if place := _place(owners.get(id(parameter), set()), set(map(_layer, trace.places(parameter)))):
            places[id(parameter)] = place
    looped = (p for block in trace.blocks if trace.entered.count(block) > 1 for p in block.parameters())
    return places | dict.fromkeys(map(id, looped), "shared")


def _owners(base: nn.Module, lists: Sequence[nn.ModuleList]) -> dict[int, set[str]]:
    """id(parameter) → the layers whose modules hold it."""
    owners: dict[int, set[str]] = {}
    modules = [(f"block_{i}", block) for blocks in lists for i, block in enumerate(blocks)]
    modules += zip(("embed", "lm_head"), _ends(base), strict=True)
    for layer, module in modules:
        for parameter in module.parameters() if module is not None else ():
            owners.setdefault(id(parameter), set()).add(layer)
    return owners


def _layer(place: int) -> str:
    return {BEFORE: "embed", AFTER: "final_norm"}.get(place, f"block_{place}")


def _place(owners: set[str], used: set[str]) -> str | None:
    """The layer of a parameter by the modules that own it and the places where it is used; None where neither tells."""
    seen = owners | used
    blocks = {layer for layer in seen if layer.startswith("block_")}
    if len(blocks) > 1 or (blocks and owners - blocks):
        return "shared"
    if blocks and owners:
        return blocks.pop()  # whatever else reads it: RWKV rescales its blocks before they run
    if owners:
        return "tied" if "embed" in seen and seen & {"lm_head", "final_norm"} else owners.pop()
    return "shared" if len(used) > 1 else next(iter(used), None)


def _places_by_order(base: nn.Module) -> dict[int, str]:
    """id(parameter) → ``embed`` or ``final_norm``, as its module is registered before the blocks or after them."""
    places: dict[int, str] = {}
    parts = decoder_blocks(base)[0].split(".")
    for i in range(min(1, len(parts) - 1), len(parts)):  # beside the decoder stand heads, whose homes are not known
        decoder, side = base.get_submodule(".".join(parts[:i])), "embed"
        if decoder is not base:
            places |= dict.fromkeys(map(id, decoder.parameters(recurse=False)), "embed")
        for name, child in decoder.named_children():
            side = "final_norm" if name == parts[i] else side
            places |= dict.fromkeys(map(id, child.parameters()), side)
    return places


def _ends(base: nn.Module) -> list[Any]:
    """The modules that are the embedding and the head; None where the model has none."""
    accessors = ("get_input_embeddings", "get_output_embeddings")
    return [getattr(base, accessor)() if hasattr(base, accessor) else None for accessor in accessors]


EMBED, HEAD, BOTH = "@embed", "@lm_head", "@tied"
GATHERING = ("DistributedDataParallel", "FullyShardedDataParallel")


@dataclass(frozen=True)
class TiedWeights:
    """A trainable tensor that is both the embedding and the weight of the head.

    Attributes:
        name: its canonical name.
        parameter: the tensor.
        heads: the modules, and the names there, through which it is the head's; inside an adapter's wrapper, say.
        alias: a parameter over the same storage, which stands in for it in the head while gradients are measured.
    """

    name: str
    parameter: nn.Parameter
    heads: tuple[tuple[nn.Module, str], ...]
    alias: nn.Parameter

    @property
    def head_name(self) -> str:
        """The name of the alias's gradient."""
        return self.name + HEAD

    @property
    def uses(self) -> tuple[str, str, str]:
        """The names under which a record has its part as embedding, its part as head, and what is not split."""
        return self.name + EMBED, self.name + HEAD, self.name + BOTH

    @contextmanager
    def untied(self) -> Iterator[None]:
        """While this lasts, a forward pass reads the head's weight from the alias; values are the same."""
        self.alias.data = self.parameter.data
        for module, name in self.heads:
            module._parameters[name] = self.alias
        try:
            yield
        finally:
            for module, name in self.heads:
                module._parameters[name] = self.parameter


def find_tied_weights(model: nn.Module) -> TiedWeights | None:
    """The tied tensor of a model; None where there is none or it is frozen or a shard.

    Also None where a wrapper gathers gradients, and where one module is both embedding and head, whose two uses
    cannot be separated.
    """
    base = unwrap(model)
    embedding, head = _ends(base)
    weight = getattr(embedding, "weight", None)
    gathers = any(type(module).__name__ in GATHERING for module in model.modules())
    if gathers or is_shard(weight) or not isinstance(head, nn.Module) or getattr(head, "weight", None) is not weight:
        return None
    names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
    if not isinstance(weight, nn.Parameter) or id(weight) not in names:
        return None
    embeds = set(embedding.modules()) if isinstance(embedding, nn.Module) else set()
    heads = tuple(
        (module, name)
        for module in head.modules()
        if module not in embeds
        for name, parameter in module._parameters.items()
        if parameter is weight
    )
    return TiedWeights(names[id(weight)], weight, heads, nn.Parameter(weight.data)) if heads else None


def split_layout(layout: Layout, tie: TiedWeights | None) -> Layout:
    """A layout with three entries for the tied tensor: embedding, head, and ``NAME@tied``, which counts elements."""
    if tie is None:
        return layout
    layers: dict[str, str] = {}
    numel: dict[str, int] = {}
    for name, layer in layout.layers.items():
        names, size = (tie.uses, layout.numel[name]) if name == tie.name else ((name,), layout.numel[name])
        layers |= zip(names, ("embed", "lm_head", "tied") if name == tie.name else (layer,), strict=True)
        numel |= zip(names, (0, 0, size) if name == tie.name else (size,), strict=True)
    return Layout(layers, numel, layout.num_blocks)


def split_by_use(whole: Tensor, embed: Tensor, losses: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products ``[M, M]`` of the tied tensor, split by how the loss uses it: as embedding, as head, not split.

    ⟨∇R, g⟩ = ⟨∇R as embedding, g⟩ + ⟨∇R as head, g⟩. Of two loss gradients the mean of both ways to split is taken;
    pairs without a loss gradient are not split. The three parts add up to the whole.

    ``whole`` has ⟨g_i, g_j⟩, ``embed`` ⟨g_i as embedding, g_j⟩, of which only the lines of loss gradients are read,
    and ``losses`` says which of the M gradients are a loss's.

    >>> one = torch.ones(2, 2)
    >>> [part.tolist() for part in split_by_use(4 * one, one, [True, False])]
    [[[1.0, 1.0], [1.0, 0.0]], [[3.0, 3.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]]
    """
    line = torch.tensor(losses, dtype=whole.dtype)[:, None]  # [M, 1]
    ways = line + line.T  # [M, M]: how many of the two are losses
    split = (line * embed + (line * embed).T) / ways.clamp(min=1)
    unsplit = torch.where(ways > 0, 0.0, whole)
    return split, torch.where(ways > 0, whole - split, 0.0), unsplit
