"""One tensor that is both embedding and head: its gradients told apart by use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geffect.core.fsdp import is_shard
from geffect.core.layers import Layout, named_trainable, unwrap

EMBED, HEAD, BOTH = "@embed", "@lm_head", "@tied"
GATHERING = ("DistributedDataParallel", "FullyShardedDataParallel")


@dataclass(frozen=True)
class Tie:
    """A trainable tensor that embeds tokens and scores them.

    Attributes:
        name: its canonical name.
        parameter: the tensor.
        heads: the modules, and the names there, through which it scores; inside an adapter's wrapper, say.
        alias: a parameter over the same storage, which stands in for it in the head while rows are measured.
    """

    name: str
    parameter: nn.Parameter
    heads: tuple[tuple[nn.Module, str], ...]
    alias: nn.Parameter

    @property
    def head_name(self) -> str:
        """The name of the alias's gradient."""
        return self.name + HEAD

    @contextmanager
    def untied(self) -> Iterator[None]:
        """While this lasts a forward pass reads the head's weight from the alias; values are the same."""
        self.alias.data = self.parameter.data
        for module, name in self.heads:
            module._parameters[name] = self.alias
        try:
            yield
        finally:
            for module, name in self.heads:
                module._parameters[name] = self.parameter


def find_tie(model: nn.Module) -> Tie | None:
    """The tied tensor of a model; None where there is none, where it is frozen or a shard, or where a wrapper gathers.

    Also None where one module is both embedding and head: its two uses cannot be separated.

    Args:
        model: a causal language model, bare or wrapped.

    Returns:
        The tie.
    """
    base = unwrap(model)
    embedding, head = (
        getattr(base, accessor)() if hasattr(base, accessor) else None
        for accessor in ("get_input_embeddings", "get_output_embeddings")
    )
    weight = getattr(embedding, "weight", None)
    gathers = any(type(module).__name__ in GATHERING for module in model.modules())
    if gathers or is_shard(weight) or not isinstance(head, nn.Module) or getattr(head, "weight", None) is not weight:
        return None
    names = {id(parameter): name for name, parameter in named_trainable(model)}
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
    return Tie(names[id(weight)], weight, heads, nn.Parameter(weight.data)) if heads else None


def split_layout(layout: Layout, tie: Tie | None) -> Layout:
    """A layout in which the tied tensor stands three times: as embedding, as head, and whole.

    Args:
        layout: of the model.
        tie: its tie, if any.

    Returns:
        The layout; the whole, ``NAME@tied``, alone counts elements.
    """
    if tie is None:
        return layout
    parts = {tie.name + EMBED: "embed", tie.name + HEAD: "lm_head", tie.name + BOTH: "tied"}
    layers: dict[str, str] = {}
    numel: dict[str, int] = {}
    for name, layer in layout.layers.items():
        layers |= parts if name == tie.name else {name: layer}
        sizes = dict.fromkeys(parts, 0) | {tie.name + BOTH: layout.numel[name]}
        numel |= sizes if name == tie.name else {name: layout.numel[name]}
    return Layout(layers, numel, layout.num_blocks)


def by_use(whole: Tensor, embed: Tensor, risks: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of the tied tensor, told apart by the *risk* row's use of it.

    ⟨risk, row⟩ = ⟨risk as embedding, row⟩ + ⟨risk as head, row⟩. Of two risk rows the mean of both ways to split is
    taken; pairs without a risk row are not split. The three parts add up to the whole.

    Args:
        whole: ``[M, M]`` ⟨row_i, row_j⟩.
        embed: ``[M, M]`` ⟨row_i as embedding, row_j⟩; only the lines of risk rows are read.
        risks: which of the M rows are risks.

    Returns:
        The parts ``[M, M]`` as embedding, as head, and not split.

    >>> one = torch.ones(2, 2)
    >>> [part.tolist() for part in by_use(4 * one, one, [True, False])]
    [[[1.0, 1.0], [1.0, 0.0]], [[3.0, 3.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]]
    """
    line = torch.tensor(risks, dtype=whole.dtype)[:, None]  # [M, 1]
    ways = line + line.T  # [M, M]: how many of the two rows are risks
    split = (line * embed + (line * embed).T) / ways.clamp(min=1)
    unsplit = torch.where(ways > 0, 0.0, whole)
    return split, torch.where(ways > 0, whole - split, 0.0), unsplit
