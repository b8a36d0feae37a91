"""What a field or an argument takes one of, for ``--help`` and for a shell's completion; nothing heavy is imported."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from geffect.config import NAMED_BY
from geffect.config.presets import PRESETS
from geffect.config.schema import MODEL_FIELDS, SET_FIELDS, names_in_transformers, words_of
from geffect.core.registry import MODELS, OF_SETTING
from geffect.models.names import UNTRAINED

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

VARIABLE = "_GEFFECT_COMPLETE"
DEVICES = ("auto", "cpu", "cuda", "mps")
LISTED = {"objective": "objectives", "points": "objectives", "rectifier": "rectifiers", "stop": "stop-rules"}
BREAKS = (":", "=")  # where bash ends a word
_before = ""  # what bash has cut from the word that is completed


def names_of(setting: str, field: "FieldInfo | None" = None) -> list[str]:
    """What a setting takes one of, or a sum of; empty where that is not known."""
    if words := words_of(field.annotation) if field else []:
        return words
    if setting in OF_SETTING:
        return OF_SETTING[setting].names
    if setting in NAMED_BY:
        return names_in_transformers(*NAMED_BY[setting])
    if setting in MODEL_FIELDS and setting != "checkpoints":
        return [*(name + end for name in MODELS for end in ("", UNTRAINED)), "smollm2"]
    if setting in SET_FIELDS:
        from geffect.data.load import BUILTIN
        from geffect.data.synthetic import DOMAINS

        sources = [f"domains/{name}" for name in DOMAINS]
        return [f"builtin:{name}" for name in (sources if setting in ("domain", "validation") else BUILTIN)]
    return {"preset": list(PRESETS), "device": list(DEVICES)}.get(setting, [])


def shown_names(setting: str, field: "FieldInfo") -> str:
    """What a flag takes one of, for its help; nothing where the description has it, or where it is a long list."""
    if setting in LISTED:
        return f"of {', '.join(names_of(setting))}: see geffect list {LISTED[setting]}; "
    names = words_of(field.annotation)
    if all(name in str(field.description) for name in names):
        return ""
    return f"{', '.join(names[:-1])} or {names[-1]}; "


def completer(names: Callable[[], Iterable[str]], *, is_sum: bool = False) -> Callable[[str], list[str]]:
    """The function that completes a word to one of ``names``, or the last word of a sum, or what follows NAME=.

    Where none of them begins so, it is empty, and the shell completes a path.
    """

    def complete(incomplete: str) -> list[str]:
        word = _before + incomplete
        done = re.match(r".*[+*(\s]" if is_sum else r"(?!builtin:)[\w.-]+=|.*,", word)
        start = done[0] if done else ""
        with contextlib.suppress(OSError):
            found = [start + name for name in names() if name.lower().startswith(word[len(start) :].lower())]
            rest = [name[len(word) :] for name in found]
            return [incomplete + (each.upper() if incomplete.isupper() else each) for each in rest]
        return []

    return complete


def join_words() -> None:
    """Put together what bash has taken apart at ``:`` and ``=`` in the line to complete, but for its last word.

    Bash replaces what stands after the last of these, so that completions are of that part alone.
    """
    global _before
    if os.environ.get(VARIABLE) != "complete_bash":
        return
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    joined: list[str] = []
    for word in words[: at + 1]:
        if joined and (word in BREAKS or joined[-1].endswith(BREAKS)):
            joined[-1] += word
        else:
            joined.append(word)
    last = joined[-1] if joined else ""
    cut = max(last.rfind(each) for each in BREAKS) + 1
    if last.startswith("--"):  # --flag=value
        name, equals, last = last.partition("=")
        joined[-1:] = [name, last] if equals else [name]
        cut = max(last.rfind(each) for each in BREAKS) + 1 if equals else 0
        last = last or ("" if equals else name)
    _before, joined[-1] = last[:cut], last[cut:]
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(joined), str(len(joined) - 1)
