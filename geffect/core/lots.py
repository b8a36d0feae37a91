"""Masks drawn by lot, in text: the seeds of a control, and the entries that a fine-tuning plants its examples in."""

import re

from geffect.errors import GeffectError

MOST_SEEDS = 100
SEEDS = re.compile(r"random:(\d{1,10})(?:-(\d{1,10}))?", re.ASCII)
PLANTED = re.compile(r"random:(\d{1,10}):([0-9.e-]{1,20})", re.ASCII)


def control_seeds(texts: list[str]) -> list[int]:
    """The seeds of ``random:SEED`` and ``random:FIRST-LAST``, each once and in order; refuse another text.

    >>> control_seeds(["random:0-2", "random:7"])
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for text in texts:
        found = SEEDS.fullmatch(text)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < min(2**32, first + MOST_SEEDS):
            remedy = f"Write random:0, or random:0-4 for five; a control has at most {MOST_SEEDS}"
            raise GeffectError(f"The control {text!r} names no seeds", remedy=remedy)
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def planted_lot(text: str) -> tuple[int, float] | None:
    """Seed and share of ``random:SEED:SHARE``; None of another text, which names a file.

    >>> planted_lot("random:3:0.05"), planted_lot("masks/share-0.1.safetensors")
    ((3, 0.05), None)
    """
    if not text.startswith("random:"):
        return None
    found = PLANTED.fullmatch(text)
    try:
        share = float(found[2]) if found else 0.0
    except ValueError:
        share = 0.0
    if found is None or not (0 < share <= 1 and int(found[1]) < 2**32):
        raise GeffectError(
            f"{text!r} draws no mask", remedy="Write random:SEED:SHARE, such as random:0:0.05, or a file"
        )
    return int(found[1]), share
