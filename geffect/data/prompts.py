"""The text around a question: a tokenizer's chat template, with its date and system turn.

A template is code that came with a tokenizer. It is rendered in Hugging Face's sandbox, within bounds of time and
memory, on a fixed date, so that the same example has the same tokens tomorrow.
"""

import contextlib
import ctypes
import datetime
import functools
import hashlib
import json
import random
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil

from geffect.core.architectures import Tokenizer
from geffect.errors import GeffectError
from geffect.io.readers import JSON

Turn = Mapping[str, str]  # role and content

DAY = datetime.date(2025, 4, 10)  # open-unlearning's
SECONDS, MEMORY = 10.0, 2 << 30  # limits of one rendering, which takes a millisecond and some kilobytes
OTHER = "Correct the template, or choose another with --chat-template"


@dataclass(frozen=True)
class Prompt:
    """What a chat template gets beside the turns.

    Attributes:
        date: today, in ``date_string`` (10 Apr 2025) and ``strftime_now``.
        system: the system turn before a question that has none of its own; None: none.
    """

    date: datetime.date = DAY
    system: str | None = None


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer writes questions with a chat template."""
    return getattr(tokenizer, "chat_template", None) not in (None, "", [], {})


def render(tokenizer: Tokenizer, turns: Sequence[Turn], prompt: Prompt) -> str:
    """The turns as the tokenizer's chat template writes them; ``prompt`` gives the date, not its system turn."""
    template = _template(tokenizer)
    now = datetime.datetime.combine(prompt.date, datetime.time())
    try:
        _refuse_powers(template)
        with limits(SECONDS, MEMORY), _clock(now):
            messages, date = [dict(turn) for turn in turns], now.strftime("%d %b %Y")
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, date_string=date)
            return str(text)
    except Exception as error:  # a template raises whatever an expression can
        reason = " ".join((str(error).strip() or type(error).__name__).partition("\n")[0].split())
        raise GeffectError(f"The chat template fails on a question and its answer: {reason}", remedy=OTHER) from error


@contextlib.contextmanager
def _clock(now: datetime.datetime) -> Iterator[None]:
    """Stop the clock of ``strftime_now``, which takes no date; Hugging Face prints a function passed in its place."""
    from transformers.utils import chat_template_utils

    clock = chat_template_utils.datetime
    chat_template_utils.datetime = SimpleNamespace(now=lambda: now)
    try:
        yield
    finally:
        chat_template_utils.datetime = clock


def _template(tokenizer: Tokenizer) -> str:
    """The template in use: of several, the default."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        if "default" not in template:
            names = ", ".join(map(str, template))
            message = f"None of several chat templates is the default: {names}"
            raise GeffectError(message, remedy="Choose one by name with --chat-template")
        template = template["default"]
    if not isinstance(template, str):
        raise GeffectError(f"The chat template is not text: {repr(template)[:80]}", remedy=OTHER)
    return template


@functools.lru_cache
def _refuse_powers(template: str) -> None:
    """Raise for a power in a template, which Python cannot interrupt; ``f(**values)`` is none."""
    from jinja2 import Environment

    before = ""
    for _, kind, value in Environment().lex(template):
        if kind == "operator" and value == "**" and before not in ("(", ","):
            raise ValueError("it has a power (**), which may take for ever")
        before = before if kind == "whitespace" else value


def prompt_settings(tokenizer: Tokenizer, prompt: Prompt) -> dict[str, JSON]:
    """What decides a prompt, for a run's record and cache keys: template (or None), date, system turn, tokenizer."""
    template = tokenizer.chat_template if has_template(tokenizer) else None
    return {
        "template": dict(template) if isinstance(template, Mapping) else template,
        "date": prompt.date.isoformat(),
        "system": prompt.system,
        "tokenizer": tokenizer_sha256(tokenizer),
    }


SETTINGS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "do_lower_case", "legacy"),
    *("split_special_tokens", "spaces_between_special_tokens"),
)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """The hash of what turns text to tokens and back: no path, and no chat template."""
    settings = {name: repr(getattr(tokenizer, name)) for name in SETTINGS if hasattr(tokenizer, name)}
    special = {name: str(each) for name, each in tokenizer.special_tokens_map.items()}
    content = [settings, special, _vocabulary(tokenizer)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _vocabulary(tokenizer: Tokenizer) -> JSON:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.loads(backend.to_str()) | {"padding": None, "truncation": None}  # state of the last call
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    with tempfile.TemporaryDirectory() as scratch:  # a tokenizer written in Python has no common name for its merges
        tokenizer.save_vocabulary(scratch)
        files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(scratch).iterdir())]
    return [type(tokenizer).__name__, tokenizer.get_vocab(), added, files]


ARRIVES = 1000  # turns of a loop within which an exception that was sent arrives: the interpreter looks in each


class TimeIsUp(Exception):
    """Python code takes longer than its limit."""

    def __str__(self) -> str:
        return "it does not end"


@contextlib.contextmanager
def limits(seconds: float, memory: int) -> Iterator[None]:
    """Interrupt Python code after a number of seconds, and limit the bytes that it may allocate beyond those in use.

    `TimeIsUp` or ``MemoryError`` is raised. A single operation of the interpreter (such as a power of two large
    numbers) cannot be interrupted, and a system without ``RLIMIT_AS`` does not limit memory. Python's ``random`` starts
    from seed 0, and its state returns after.
    """
    state = random.getstate()
    random.seed(0)  # a template may draw from a list
    try:
        with _time(seconds), _memory(memory):
            yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    thread, lock, over, sent = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False, False

    def interrupt() -> None:
        nonlocal sent
        with lock:
            if not over:
                sent = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeIsUp))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with contextlib.suppress(TimeIsUp):
            with lock:
                over = True
            timer.cancel()
            for _ in range(ARRIVES if sent else 0):  # to take it back hangs Python 3.11 where a debugger traces it
                pass


@contextlib.contextmanager
def _memory(size: int) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + size
    lower = soft == resource.RLIM_INFINITY or limit < soft
    if lower:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        if lower:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
