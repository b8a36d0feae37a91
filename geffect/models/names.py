"""What names a model, and the refusal of a name that names none; nothing of torch is imported."""

import re
from pathlib import Path

from geffect.core.registry import MODELS
from geffect.errors import GeffectError, missing_path, nearest

HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")
UNTRAINED = "-untrained"  # after a built-in model's name: its tokenizer and first weights
PUBLISHED = {"open_unlearning:": "open-unlearning/"}  # a benchmark's checkpoints, as open_unlearning:NAME
FORMS = (
    f"{', '.join(MODELS)} (each also {UNTRAINED}), smollm2, gguf:FILE, a hub id ORG/NAME or ORG/NAME@REVISION, "
    "open_unlearning:NAME, "
    "or a directory with a model, an adapter or a run"
)


def check_model(spec: str) -> None:
    """Raise where no model, adapter or run can be what a name says; a hub id passes, and no file is read."""
    if spec.startswith("gguf:"):
        check_gguf(Path(spec.removeprefix("gguf:")).expanduser())
    elif not (spec == "smollm2" or spec.removesuffix(UNTRAINED) in MODELS or Path(spec).expanduser().is_dir()):
        hub_id(spec)


def check_gguf(file: Path) -> None:
    """Raise where there is no GGUF file."""
    if not file.is_file():
        raise GeffectError(f"There is no GGUF file at {file}", remedy=missing_path(file, "Correct the path"))


def hub_id(spec: str) -> str:
    """The hub id of a name that is no directory; raise where it cannot be that of a model on a hub.

    >>> hub_id("open_unlearning:tofu_Llama-3.2-1B-Instruct_full")
    'open-unlearning/tofu_Llama-3.2-1B-Instruct_full'
    """
    folder = spec.partition("/")[0]
    is_local = "/" in spec and Path(folder).is_dir()  # runs/nope is a missing directory, no hub id
    prefix = next((each for each in PUBLISHED if spec.startswith(each)), "")
    name = PUBLISHED.get(prefix, "") + spec.removeprefix(prefix)
    if is_local or spec.startswith(("builtin:", ".", "/", "~")) or not HUB_ID.match(name):
        kind, _, name = spec.partition(":")
        names = [each.partition(":")[2] + end for each in MODELS for end in ("", UNTRAINED)]
        hint = nearest(name, names, "builtin:") if kind == "builtin" else missing_path(spec, "")
        raise GeffectError(f"There is no model {spec!r}", remedy=f"{hint}Name one of {FORMS}")
    return name
