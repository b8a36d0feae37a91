"""Any other training, watched: a callback for Hugging Face Trainers, a context for bare loops."""

from geffect.watching.callback import GEffectCallback
from geffect.watching.loop import Watch

watch = Watch  # reads as a verb: with geffect.watch(model, …) as watch

__all__ = ["GEffectCallback", "Watch", "watch"]
