"""Models by name: hub ids, directories, adapters, GGUF files, and the built-in one."""

from geffect.models.load import Loaded, add_lora, load, outline, resolve
from geffect.models.tiny import make_tiny, make_tokenizer

__all__ = ["Loaded", "add_lora", "load", "make_tiny", "make_tokenizer", "outline", "resolve"]
