"""How many tokens a model knows."""

from typing import Any


def num_tokens(model: Any) -> int | None:
    """The ids that a model takes and predicts are below this.

    Args:
        model: a causal language model, adapted or not, on any device.

    Returns:
        The rows of its embedding, or of its head where that has fewer; None where neither is known.
    """
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(model, name, lambda: None)()
        shape: tuple[int, ...] = getattr(getattr(layer, "weight", None), "shape", ())
        if len(shape) == 2:
            found.append(int(shape[0]))
    return min(found, default=None)
