"""Domains, each a set to unlearn and one to retain under one name: ``--domain``, ``--validation`` and ``--balance``."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from geffect.core.splits import TARGETS, domain_of, split_name
from geffect.errors import GeffectError

if TYPE_CHECKING:
    from geffect.config import InspectConfig, LocalizeConfig, UnlearnConfig

FORM = re.compile(r"^(?P<name>[\w-]+)=(?P<sets>.+)$")
SLICE = re.compile(r"^(?P<source>.+?)(?P<slice>\[\d*:\d*\])?$")
SCOPED = ("knowundo:", "builtin:domains/")  # sources whose sets are SOURCE/unlearn and SOURCE/retention, in parts
ROLES = ("forget", "retain", "general", "heldout")
EXAMPLE = "Write NAME=UNLEARN,RETENTION, or NAME=knowundo:privacy, or NAME=builtin:domains/privacy"


@dataclass(frozen=True)
class Domain:
    """A set to unlearn and a set to retain under one name.

    Attributes:
        name: such as ``privacy``.
        unlearn: a set, as `geffect.data.load.load_set` takes it.
        retention: a set.
        scoped: the source both are parts of, and its slice; None for two sets of different sources.
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
        """The ``train``, ``val`` or ``all`` part of the same domain; None for two sets of different sources."""
        return _make_scoped(self.name, self.scoped, name) if self.scoped else None


def _make_scoped(name: str, scoped: tuple[str, str], part: str, text: str = "") -> Domain:
    unlearn, retention = (f"{scoped[0]}/{split}/{part}{scoped[1]}" for split in ("unlearn", "retention"))
    return Domain(name, unlearn, retention, scoped, text)


def parse_domains(texts: Iterable[str | Domain]) -> list[Domain]:
    """Domains from ``NAME=SOURCE`` (of `SCOPED`; the train parts) or ``NAME=UNLEARN,RETENTION``, in order.

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
        raise GeffectError(f"{text!r} is not a domain with its sets", remedy=EXAMPLE)
    name, sets = match["name"], [each.strip() for each in match["sets"].split(",")]
    if len(sets) == 1 and sets[0].startswith(SCOPED):
        pair = SLICE.match(sets[0])
        source, slice_text = (pair["source"], pair["slice"] or "") if pair else (sets[0], "")
        if source.rpartition("/")[2] not in ("unlearn", "retention"):
            return _make_scoped(name, (source, slice_text), "train", text)
    if len(sets) != 2 or not all(sets):
        message = f"The domain {name} needs a set to unlearn and one to retain, not {match['sets']!r}"
        raise GeffectError(message, remedy=EXAMPLE)
    return Domain(name, sets[0], sets[1], text=text)


def domain_sets(config: "UnlearnConfig | LocalizeConfig") -> tuple[list[Domain], list[Domain]]:
    """A configuration's domains, and those with validation sets: as the user named them, else a source's own."""
    trained = list(config.domain)
    others = {each.name: each.part("val") or each for each in config.validation}
    validation = [others.pop(each.name, None) or each.part("val") for each in trained]
    return trained, [each for each in (*validation, *others.values()) if each]


def split_sets(domain: Domain, suffix: str = "") -> list[tuple[str, str]]:
    """(split, set) pairs of one domain."""
    sets = {"forget": domain.unlearn, "retain": domain.retention}
    return [(split_name(role + suffix, domain.name), spec) for role, spec in sets.items()]


def set_names(config: "UnlearnConfig") -> list[tuple[str, str]]:
    """(role, split or target; set) pairs of a run, in the order printed."""
    return named_sets(config) + target_sets(config)


def named_sets(config: "UnlearnConfig") -> list[tuple[str, str]]:
    """(role or split, set) pairs of a run, without its further targets."""
    trained, validated = domain_sets(config)
    pairs = [pair for domain in trained for pair in split_sets(domain)]
    pairs += [pair for domain in validated for pair in split_sets(domain, "_val")]
    return pairs + [(role, spec) for role in ROLES if (spec := getattr(config, role))]


def target_sets(config: "UnlearnConfig | InspectConfig") -> list[tuple[str, str]]:
    """(target, set) pairs of a configuration."""
    return [named_set(text, "--target") for text in config.target]


def named_set(text: str, flag: str) -> tuple[str, str]:
    """The name and the set of ``NAME=SET``, the value of a flag.

    >>> named_set("math=math.jsonl[:8]", "--target")
    ('math', 'math.jsonl[:8]')
    """
    name, equals, spec = text.partition("=")
    if not (name and equals and spec):
        raise GeffectError(f"{flag} {text!r} is not NAME=SET", remedy="Write forget=tofu:forget01, for example")
    return name, spec


def bare_or_named(text: str) -> tuple[str, str]:
    """The name and the set of ``NAME=SET``, or of ``SET``, whose name it is itself.

    >>> bare_or_named("math=math.jsonl"), bare_or_named("./a=b.jsonl")
    (('math', 'math.jsonl'), ('./a=b.jsonl', './a=b.jsonl'))
    """
    match = FORM.match(text)
    return (match["name"], match["sets"]) if match else (text, text)


def balanced_sizes(config: "UnlearnConfig", sizes: Mapping[str, int]) -> dict[str, int]:
    """How many examples of each split a run with domains uses, from split → size; ``config.balance`` decides."""
    if not config.domain:
        return dict(sizes)
    for name, size in sizes.items():
        if size < 2:
            raise GeffectError(f"{name} has {size} example, and needs two", remedy="Name a larger set or a wider slice")
    if config.balance == "refuse" and len(set(sizes.values())) > 1:
        each = ", ".join(f"{name} {size}" for name, size in sizes.items())
        remedy = "Slice them alike, or add --balance cut (to a domain's smaller set) or --balance repeat"
        raise GeffectError(f"The sets of the domains differ in size: {each}", remedy=remedy)
    if config.balance != "cut":
        return dict(sizes)
    return {name: min(sizes[split_name(role, domain_of(name))] for role in TARGETS) for name in sizes}
