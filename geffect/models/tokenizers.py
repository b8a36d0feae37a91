"""Which tokenizer a model is read with: its own, an adapter's, or one that is named; and which chat template."""

import json
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "*.spm",
    "*.tiktoken",
    "*.bpe.model",
    "spiece.model",
    "sentencepiece.model",
    "tekken.json",
)
SETTINGS, TEMPLATES = "tokenizer_config.json", ("chat_template.jinja", "chat_template.json")
LARGEST = 1 << 20  # bytes of a template
NONE = "none"


def holds_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer can be read from a directory: its settings, and its vocabulary or code."""
    settings = directory / SETTINGS
    if not settings.is_file():
        return False
    vocabulary = any(file.is_file() for name in FILES for file in directory.glob(name))
    return vocabulary or "auto_map" in settings.read_text(encoding="utf-8", errors="replace")


def read_tokenizer(source: str, trust: bool, config: Any = None, **revision: str) -> Any:
    """The tokenizer of a directory or hub id.

    Args:
        source: which.
        trust: run code that comes with it.
        config: of the model it belongs to, where another directory holds that: its kind decides the tokenizer's class.
        **revision: of the hub id.

    Returns:
        A Hugging Face tokenizer.
    """
    from transformers import AutoTokenizer

    model = {} if config is None else {"config": config}
    return AutoTokenizer.from_pretrained(source, trust_remote_code=trust, **model, **revision)


def own_template(directory: Path) -> Any:
    """The chat template that lies in a directory without a tokenizer; None where there is none."""
    file, older = (directory / name for name in TEMPLATES)
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for each in (older, directory / SETTINGS):
        if each.is_file() and (found := json.loads(each.read_text(encoding="utf-8")).get("chat_template")):
            named = isinstance(found, list)
            return {one["name"]: one["template"] for one in found} if named else found
    return None


def choose_template(tokenizer: Any, choice: str | None) -> Any:
    """Put the chat template that is asked for in the place of a tokenizer's own.

    Args:
        tokenizer: the tokenizer, which is changed; a run's checkpoints are saved with it.
        choice: ``none``, a name among its several, or a file; None: its own.

    Returns:
        The tokenizer.

    Raises:
        GeffectError: there is no such template, or the file cannot be read.
    """
    if choice is None:
        return tokenizer
    several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if choice == NONE:
        tokenizer.chat_template = None
    elif choice in several:
        tokenizer.chat_template = several | {"default": several[choice]}  # checkpoints keep the names
    else:
        tokenizer.chat_template = _read(Path(choice).expanduser(), several)
    return tokenizer


def _read(file: Path, several: dict[str, Any]) -> str:
    names = f", a name among {', '.join(map(str, several))}" if several else ""
    wanted = f"a chat template: {NONE}{names}, or a file"
    try:
        if not file.is_file():
            raise GeffectError(wanted, f"no file at {file}", "correct --chat-template")
        if file.stat().st_size > LARGEST:
            raise GeffectError(wanted, f"{file.stat().st_size} bytes in {file}", "name a template's file")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"a readable chat template at {file}", reason, "correct --chat-template") from error
    if not text.strip():
        raise GeffectError(f"a chat template in {file}", "nothing", f"write --chat-template {NONE} for none")
    return text
