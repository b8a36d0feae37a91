"""Domains: what ``--domain`` and ``--validation`` accept, a set to unlearn and one to retain under one name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from geffect.errors import GeffectError

FORM = re.compile(r"^(?P<name>[\w-]+)=(?P<sets>.+)$")
SLICE = re.compile(r"^(?P<source>.+?)(?P<slice>\[\d*:\d*\])?$")
SCOPED = ("knowundo:", "builtin:domains/")  # sources whose sets are SOURCE/unlearn and SOURCE/retention, in parts
EXAMPLE = "write NAME=UNLEARN,RETENTION, or NAME=knowundo:privacy, or NAME=builtin:domains/privacy"


@dataclass(frozen=True)
class Domain:
    """What is unlearned and what is retained under one name.

    Attributes:
        name: such as ``privacy``.
        unlearn: a set, as `geffect.data.load.load_set` takes it.
        retention: a set.
        scoped: the source both are parts of, with its slice; None where they were named apart.
        text: as the user wrote it.
    """

    name: str
    unlearn: str
    retention: str
    scoped: tuple[str, str] | None = None
    text: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    def part(self, name: str) -> "Domain | None":
        """The same domain's ``train``, ``val`` or ``all`` part; None where its sets were named apart."""
        if self.scoped is None:
            return None
        source, chosen = self.scoped
        unlearn, retention = (f"{source}/{split}/{name}{chosen}" for split in ("unlearn", "retention"))
        return Domain(self.name, unlearn, retention, self.scoped)


def parse_domains(texts: Iterable[str | Domain]) -> list[Domain]:
    """Read domains.

    Args:
        texts: ``NAME=SOURCE`` with one of `SCOPED`, whose train parts are meant, or ``NAME=UNLEARN,RETENTION``.

    Returns:
        The domains, in order.

    Raises:
        GeffectError: one is of another form, lacks a retention set, or has the name of another.

    >>> parse_domains(["privacy=knowundo:privacy[:40]"])[0].retention
    'knowundo:privacy/retention/train[:40]'
    >>> parse_domains(["tofu=tofu:forget01,tofu:retain99[:40]"])[0].retention
    'tofu:retain99[:40]'
    """
    domains = [text if isinstance(text, Domain) else _parse(text) for text in texts]
    names = [domain.name for domain in domains]
    for name in names:
        if names.count(name) > 1:
            raise GeffectError(f"Two domains are named {name!r}", remedy="Name each once")
    return domains


def _parse(text: str) -> Domain:
    match = FORM.match(text)
    if match is None:
        raise GeffectError("a domain with its sets", repr(text), EXAMPLE)
    name, sets = match["name"], [each.strip() for each in match["sets"].split(",")]
    if len(sets) == 1 and sets[0].startswith(SCOPED):
        pair = SLICE.match(sets[0])
        source, chosen = (pair["source"], pair["slice"] or "") if pair else (sets[0], "")
        if source.rpartition("/")[2] not in ("unlearn", "retention"):
            unlearn, retention = (f"{source}/{split}/train{chosen}" for split in ("unlearn", "retention"))
            return Domain(name, unlearn, retention, (source, chosen), text)
    if len(sets) != 2 or not all(sets):
        raise GeffectError(f"a set to unlearn and one to retain for the domain {name}", repr(match["sets"]), EXAMPLE)
    return Domain(name, sets[0], sets[1], text=text)
