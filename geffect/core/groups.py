"""Layer → group under a scheme, and the order that both are shown in; `geffect.core.layers` says what a layer is."""

import re
from typing import Literal, get_args

from geffect.errors import GeffectError

GROUPS = ("embed", "shallow", "middle", "deep", "lm_head", "shared", "tied")  # in the order they are shown in
Scheme = Literal["thirds", "paper", "paper_script"]
SCHEMES: tuple[str, ...] = get_args(Scheme)


def depth_key(label: str) -> tuple[int, int]:
    """A sort key of layers and groups: from the embedding to the head, then what is in several, then any other name.

    >>> sorted(["tied", "lm_head", "block_10", "final_norm", "block_9", "embed", "shared"], key=depth_key)
    ['embed', 'block_9', 'block_10', 'final_norm', 'lm_head', 'shared', 'tied']
    >>> sorted(["shared", "lm_head", "deep", "middle", "embed", "shallow"], key=depth_key)
    ['embed', 'shallow', 'middle', 'deep', 'lm_head', 'shared']
    """
    block = re.fullmatch(r"block_(\d+)", label)
    order = (*GROUPS[:4], "block", "final_norm", *GROUPS[4:])
    place = "block" if block else label
    return order.index(place) if place in order else len(order), int(block[1]) if block else 0


def layer_groups(num_blocks: int, scheme: str = "thirds") -> dict[str, str]:
    """Layer → group for a model of ``num_blocks`` decoder blocks (see `block_groups`)."""
    blocks = {f"block_{i}": group for i, group in enumerate(block_groups(num_blocks, scheme))}
    return {"embed": "embed", **blocks, "final_norm": "deep", **{name: name for name in ("lm_head", "shared", "tied")}}


def block_groups(num_blocks: int, scheme: str = "thirds") -> list[str]:
    """The group of each decoder block.

    ``thirds`` splits the blocks in three, the first parts the larger. ``paper`` splits the hidden states in three, of
    which the first is the embedding's output (arXiv 2502.19301: states 1–11, 12–22, 23–33 of 32 blocks, hence blocks
    10/11/11). ``paper_script`` cuts at blocks 10 and 20 whatever the depth, as the published script does (10/10/12).
    Any other scheme is refused.

    >>> block_groups(7)
    ['shallow', 'shallow', 'shallow', 'middle', 'middle', 'deep', 'deep']
    """
    thirds = ("shallow", "middle", "deep")
    if scheme == "thirds":
        sizes = _in_three(num_blocks)
    elif scheme == "paper":
        first, *rest = _in_three(num_blocks + 1)
        sizes = [first - 1, *rest]
    elif scheme == "paper_script":
        sizes = [min(num_blocks, 10), min(max(num_blocks - 10, 0), 10), max(num_blocks - 20, 0)]
    else:
        raise GeffectError(f"There is no scheme {scheme!r}", remedy=f"Choose one of {', '.join(SCHEMES)}")
    return [group for group, size in zip(thirds, sizes, strict=True) for _ in range(size)]


def _in_three(count: int) -> list[int]:
    """The sizes of three parts, the first the larger."""
    return [(count + 2 - i) // 3 for i in range(3)]
