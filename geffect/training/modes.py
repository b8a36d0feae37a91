"""Which modules are in training mode while a run trains without dropout."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from geffect.core.model_state import keep_weight_scale


def set_mode(model: nn.Module, *, dropout: bool, checkpointing: bool = True) -> None:
    """Training mode with dropout, or evaluation mode in which gradient checkpointing still works.

    Transformers checkpoints a block only while that block itself is in training mode. So, without dropout, blocks are
    put into it and their parts are not; a dropout probability a block holds itself is then zero.

    Args:
        model: the model.
        dropout: as it is trained, thinned.
        checkpointing: let blocks recompute their activations; not where the model returns to dropout after.
    """
    model.train(dropout)
    keep_weight_scale(model)
    if dropout or not checkpointing:
        return
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
                setattr(module, name, 0.0)
