"""What stands around a question: a tokenizer's chat template, and what it is told of the day and of the system.

A template is code that came with a tokenizer. It is rendered in Hugging Face's sandbox, within bounds of time and
memory, on a day that does not move, so that the same row has the same tokens tomorrow.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from geffect.data.templates import bounded
from geffect.errors import GeffectError

Turn = Mapping[str, str]  # role and content

DAY = datetime.date(2025, 4, 10)  # open-unlearning's
SECONDS, MEMORY = 10.0, 2 << 30  # of one rendering, which takes a thousandth of a second and some kilobytes
OTHER = "correct the template, or choose another with --chat-template"


@dataclass(frozen=True)
class Prompt:
    """What is told to a chat template beside the turns.

    Attributes:
        date: what it takes for today, in ``date_string`` (10 Apr 2025) and ``strftime_now``.
        system: the system turn before a question that has none of its own; None: none.
    """

    date: datetime.date = DAY
    system: str | None = None


def has_template(tokenizer: Any) -> bool:
    """Whether questions are put into a chat template."""
    return getattr(tokenizer, "chat_template", None) not in (None, "", [], {})


def render(tokenizer: Any, turns: Sequence[Turn], prompt: Prompt) -> str:
    """Turns as the tokenizer's chat template writes them.

    Args:
        tokenizer: a Hugging Face tokenizer with a template.
        turns: in order.
        prompt: the date; its system turn is the caller's to add.

    Returns:
        The text.

    Raises:
        GeffectError: the template is no text, is one of several without a default, fails, or takes too long.
    """
    template = _template(tokenizer)
    now = datetime.datetime.combine(prompt.date, datetime.time())
    try:
        _refuse_powers(template)
        with bounded(SECONDS, MEMORY), _clock(now):
            return str(
                tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns],
                    chat_template=template,
                    tokenize=False,
                    date_string=now.strftime("%d %b %Y"),
                )
            )
    except Exception as error:  # a template raises whatever an expression can
        reason = " ".join((str(error).strip() or type(error).__name__).partition("\n")[0].split())
        raise GeffectError("a chat template that renders a question and its answer", reason, OTHER) from error


@contextlib.contextmanager
def _clock(now: datetime.datetime) -> Iterator[None]:
    """Stop the clock of ``strftime_now``, which takes no date: Hugging Face makes text of a function passed to it."""
    from transformers.utils import chat_template_utils

    clock = chat_template_utils.datetime
    chat_template_utils.datetime = SimpleNamespace(now=lambda: now)
    try:
        yield
    finally:
        chat_template_utils.datetime = clock


def _template(tokenizer: Any) -> str:
    """The template that is used; of several, the one named default."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        if "default" not in template:
            names = ", ".join(map(str, template))
            raise GeffectError(
                "one chat template, or a default among several", names, "choose one by name with --chat-template"
            )
        template = template["default"]
    if not isinstance(template, str):
        raise GeffectError("a chat template that is text", repr(template)[:80], OTHER)
    return template


@functools.lru_cache
def _refuse_powers(template: str) -> None:
    """Raise where a template takes a power, which Python cannot interrupt; ``f(**values)`` is none."""
    from jinja2 import Environment

    before = ""
    for _, kind, value in Environment().lex(template):
        if kind == "operator" and value == "**" and before not in ("(", ","):
            raise ValueError("a power (**), which may take for ever")
        before = before if kind == "whitespace" else value


def described(tokenizer: Any, prompt: Prompt) -> dict[str, Any]:
    """What decides a prompt, for a run's record and for the key of a kept result.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: date and system turn.

    Returns:
        ``template`` (its text, or each by name; None without one), ``date``, ``system`` and ``tokenizer`` (a hash).
    """
    template = tokenizer.chat_template if has_template(tokenizer) else None
    return {
        "template": dict(template) if isinstance(template, Mapping) else template,
        "date": prompt.date.isoformat(),
        "system": prompt.system,
        "tokenizer": tokenizer_sha256(tokenizer),
    }


SETTINGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "legacy",
    "split_special_tokens",
    "spaces_between_special_tokens",
)


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash of what makes tokens of a text, and a text of tokens: no path, and no chat template."""
    settings = {name: repr(getattr(tokenizer, name)) for name in SETTINGS if hasattr(tokenizer, name)}
    special = {name: str(each) for name, each in tokenizer.special_tokens_map.items()}
    content = [settings, special, _vocabulary(tokenizer)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _vocabulary(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.loads(backend.to_str()) | {"padding": None, "truncation": None}  # which calls set and leave
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    with tempfile.TemporaryDirectory() as scratch:  # one written in Python keeps merges under names of its own
        tokenizer.save_vocabulary(scratch)
        files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(scratch).iterdir())]
    return [type(tokenizer).__name__, tokenizer.get_vocab(), added, files]
