"""Parameter → layer → group, read off the module tree.

A *layer* is ``embed``, ``block_0`` … ``block_{L-1}``, ``final_norm``, ``lm_head``, or ``tied`` where one tensor is
both embedding and head. A *group* is a run of layers under a scheme, chosen when a record is looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from geffect.errors import GeffectError
from geffect.untouched import Untouched

GROUPS = ("embed", "shallow", "middle", "deep", "lm_head", "tied")
SCHEMES = ("thirds", "paper", "paper_script")


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
    """Assign every trainable parameter to its layer.

    Blocks are the children of the largest outermost ``ModuleList``; the embedding and the head are what the model
    itself answers to ``get_input_embeddings`` and ``get_output_embeddings``; of the rest, what its decoder runs before
    the blocks belongs to ``embed`` and what it runs after them to ``final_norm``. The order is read off a forward pass
    over two tokens, since some decoders (OPT) register their final norm first; what that pass does not call, or all
    where it fails, is placed by the order of registration. The model is left as found.

    Args:
        model: a causal language model, bare or wrapped by DDP, PEFT or ``torch.compile``.

    Returns:
        The layout.

    Raises:
        GeffectError: a trainable parameter has no home; it is named.
    """
    base = unwrap(model)
    path, blocks = block_list(base)
    places = _places(base, path, blocks)
    layers, numel = {}, {}
    for name, parameter in named_trainable(model):
        if id(parameter) not in places:
            raise GeffectError("every trainable parameter inside the decoder or its head", f"{name} outside",
                               "freeze it, or move it out of the model")  # fmt: skip
        layers[name], numel[name] = places[id(parameter)], parameter.numel()
    return Layout(layers, numel, len(blocks))


def layer_groups(num_blocks: int, scheme: str = "thirds") -> dict[str, str]:
    """Layer → group for a model of ``num_blocks`` decoder blocks (see `block_groups`)."""
    blocks = {f"block_{i}": group for i, group in enumerate(block_groups(num_blocks, scheme))}
    return {"embed": "embed", **blocks, "final_norm": "deep", "lm_head": "lm_head", "tied": "tied"}


def block_groups(num_blocks: int, scheme: str = "thirds") -> list[str]:
    """The group of each decoder block.

    ``thirds`` splits the blocks in three, the first parts the larger. ``paper`` splits the hidden states in three, of
    which the first is the embedding's output (arXiv 2502.19301: states 1–11, 12–22, 23–33 of 32 blocks, hence blocks
    10/11/11). ``paper_script`` cuts at blocks 10 and 20 whatever the depth, as the published script does (10/10/12).

    Args:
        num_blocks: L, the number of blocks.
        scheme: ``thirds``, ``paper`` or ``paper_script``.

    Returns:
        L names among ``shallow``, ``middle``, ``deep``.

    Raises:
        GeffectError: the scheme is unknown.

    >>> block_groups(7)
    ['shallow', 'shallow', 'shallow', 'middle', 'middle', 'deep', 'deep']
    """
    thirds = ("shallow", "middle", "deep")
    if scheme == "thirds":
        sizes = [len(part) for part in np.array_split(np.arange(num_blocks), 3)]
    elif scheme == "paper":
        first, *rest = [len(part) for part in np.array_split(np.arange(num_blocks + 1), 3)]
        sizes = [first - 1, *rest]
    elif scheme == "paper_script":
        sizes = [min(num_blocks, 10), min(max(num_blocks - 10, 0), 10), max(num_blocks - 20, 0)]
    else:
        raise GeffectError(f"a scheme among {', '.join(SCHEMES)}", repr(scheme), "choose one of these")
    return [group for group, size in zip(thirds, sizes, strict=True) for _ in range(size)]


def named_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters under the names they have in the unwrapped model, each tensor once."""
    names = {id(p): name for name, p in unwrap(model).named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield names.get(id(parameter), name), parameter


def unwrap(model: nn.Module) -> nn.Module:
    """The language model inside DDP, PEFT and ``torch.compile`` wrappers; adapters stay in their places."""
    for inner in ("module", "_orig_mod"):
        if isinstance(getattr(model, inner, None), nn.Module):
            return unwrap(getattr(model, inner))
    if hasattr(model, "get_base_model"):
        return unwrap(model.get_base_model())  # type: ignore[operator]
    return model


def block_list(base: nn.Module) -> tuple[str, nn.ModuleList]:
    """Where the decoder blocks of a bare language model stand, and the blocks.

    Args:
        base: the model, without wrappers.

    Returns:
        The list's name in the model, and the list.

    Raises:
        GeffectError: there is none.
    """
    lists = {name: module for name, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    if not outermost:
        raise GeffectError("a decoder whose blocks stand in a ModuleList", type(base).__name__,
                           "use a Hugging Face causal language model")  # fmt: skip
    return max(outermost.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _places(base: nn.Module, path: str, blocks: nn.ModuleList) -> dict[int, str]:
    """id(parameter) → layer; later lines win, so the specific ones come last."""
    places: dict[int, str] = {}
    decoder, side = base.get_submodule(path.rpartition(".")[0]), "embed"
    ran = _order_of_calls(base, decoder, blocks)
    if decoder is not base:  # a bare decoder has no head beside it, so nothing can be told apart by owner
        places |= dict.fromkeys(map(id, decoder.parameters()), "embed")
    for child in decoder.children():
        side = "final_norm" if child is blocks else side
        places |= dict.fromkeys(map(id, child.parameters()), ran.get(id(child), side))
    for i, block in enumerate(blocks):
        places |= dict.fromkeys(map(id, block.parameters()), f"block_{i}")
    embed, head = _parameters(base, "get_input_embeddings"), _parameters(base, "get_output_embeddings")
    places |= dict.fromkeys(embed, "embed") | dict.fromkeys(head, "lm_head")
    return places | dict.fromkeys(embed & head, "tied")


def _order_of_calls(base: nn.Module, decoder: nn.Module, blocks: nn.ModuleList) -> dict[int, str]:
    """id(child of the decoder) → ``embed`` or ``final_norm``: first called before the first block, or after it."""
    sides: dict[int, str] = {}
    begun: list[bool] = []

    def note(module: nn.Module, _: Any) -> None:
        sides.setdefault(id(module), "final_norm" if begun else "embed")

    handles = [child.register_forward_pre_hook(note) for child in decoder.children() if child is not blocks]
    handles += [block.register_forward_pre_hook(lambda *_: begun.append(True)) for block in blocks]
    device = next(base.parameters()).device
    try:
        with torch.no_grad(), Untouched(base).look():
            base(torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    except Exception:  # any model's own: registration decides then
        sides.clear()
    finally:
        for handle in handles:
            handle.remove()
    return sides


def _parameters(base: nn.Module, accessor: str) -> set[int]:
    module: nn.Module | None = getattr(base, accessor)() if hasattr(base, accessor) else None
    return set(map(id, module.parameters())) if module is not None else set()
