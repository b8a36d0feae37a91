"""Tokenizers and chat templates of models: a directory's own, an adapter's, or one that is named."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from geffect.core.architectures import Tokenizer
from geffect.errors import GeffectError
from geffect.io.readers import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"),
    *("*.spm", "*.tiktoken", "*.bpe.model", "spiece.model", "sentencepiece.model"),
)
SETTINGS, TEMPLATES = "tokenizer_config.json", ("chat_template.jinja", "chat_template.json")
MAX_BYTES = 1 << 20  # of a template
NONE = "none"


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer can be read from a directory: its settings, and its vocabulary or code."""
    settings = directory / SETTINGS
    if not settings.is_file():
        return False
    vocabulary = any(file.is_file() for name in FILES for file in directory.glob(name))
    return vocabulary or "auto_map" in settings.read_text(encoding="utf-8", errors="replace")


def read_tokenizer(source: str, trust: bool, config: "PretrainedConfig | None" = None, **revision: str) -> Tokenizer:
    """The tokenizer of a directory or hub id.

    ``config`` is that of the model it belongs to, where another directory holds the model: it decides the class.
    """
    from transformers import AutoTokenizer

    model = {} if config is None else {"config": config}
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust, **model, **revision)
    return tokenizer


def read_template(directory: Path) -> str | dict[str, str] | None:
    """The chat template, or several by name, in a directory without a tokenizer; None if there is none."""
    file, older = (directory / name for name in TEMPLATES)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for path in (older, directory / SETTINGS):
        if path.is_file() and (template := read_json(path).get("chat_template")):
            return {item["name"]: item["template"] for item in template} if isinstance(template, list) else template
    return None


def set_template(tokenizer: Tokenizer, choice: str | None) -> Tokenizer:
    """Replace a tokenizer's chat template: by ``none``, one of its several, or a file; None keeps its own."""
    if choice is None:
        return tokenizer
    several: dict[str, str] = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if choice == NONE:
        tokenizer.chat_template = None
    elif choice in several:
        tokenizer.chat_template = several | {"default": several[choice]}  # checkpoints keep all
    else:
        tokenizer.chat_template = _read_template_file(Path(choice).expanduser(), several)
    return tokenizer


def _read_template_file(file: Path, several: dict[str, str]) -> str:
    names = f", one of {', '.join(map(str, several))}" if several else ""
    remedy = f"Set --chat-template to {NONE}{names}, or a template's file"
    try:
        if not file.is_file():
            raise GeffectError(f"There is no chat template and no file at {file}", remedy=remedy)
        if file.stat().st_size > MAX_BYTES:
            raise GeffectError(f"{file} has {file.stat().st_size} bytes, too many for a chat template", remedy=remedy)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"The chat template at {file} cannot be read: {reason}", remedy=remedy) from error
    if not text.strip():
        raise GeffectError(f"The chat template in {file} is empty", remedy=f"Set --chat-template {NONE} for none")
    return text


def vocabulary_size(model: nn.Module) -> int | None:
    """The size of a model's embedding, or of a smaller head: every id is below it; None where neither is known.

    The model may be adapted, and on any device.
    """
    sizes = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(model, name, lambda: None)()
        shape: tuple[int, ...] = getattr(getattr(layer, "weight", None), "shape", ())
        if len(shape) == 2:
            sizes.append(int(shape[0]))
    return min(sizes, default=None)
