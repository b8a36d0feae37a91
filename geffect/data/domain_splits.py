"""A configuration's domains: their sets, and how many rows of each are used."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from geffect.core.splits import TARGETS, domain_of, split_name
from geffect.data.domains import Domain
from geffect.errors import GeffectError

if TYPE_CHECKING:
    from geffect.config import LocalizeConfig, UnlearnConfig

ROLES = ("forget", "retain", "general", "heldout")


def domain_sets(config: "UnlearnConfig | LocalizeConfig") -> tuple[list[Domain], list[Domain]]:
    """A configuration's domains, and those with validation sets: as named, else a source's own.

    Args:
        config: domains and validation sets.

    Returns:
        Both.
    """
    trained, named = list(config.domain), config.validation
    given = {each.name: each.part("val") or each for each in named}
    own = {each.name: given.pop(each.name, None) or each.part("val") for each in trained}
    return trained, [each for each in (*own.values(), *given.values()) if each]


def split_sets(domain: Domain, suffix: str = "") -> list[tuple[str, str]]:
    """(split, set) of one domain."""
    sets = {"forget": domain.unlearn, "retain": domain.retention}
    return [(split_name(role + suffix, domain.name), spec) for role, spec in sets.items()]


def set_names(config: "UnlearnConfig") -> list[tuple[str, str]]:
    """(role or split, set) of a run, in the order printed."""
    trained, validated = domain_sets(config)
    pairs = [pair for domain in trained for pair in split_sets(domain)]
    pairs += [pair for domain in validated for pair in split_sets(domain, "_val")]
    return pairs + [(role, spec) for role in ROLES if (spec := getattr(config, role))]


def balanced(config: "UnlearnConfig", sizes: Mapping[str, int]) -> dict[str, int]:
    """How many rows of each domain's sets a run uses.

    Args:
        config: the run.
        sizes: forget and retain split → rows it has.

    Returns:
        The same, of the rows used; all where there are no domains.

    Raises:
        GeffectError: a set has one row, or sizes differ and nothing was said of that.
    """
    if not config.domain:
        return dict(sizes)
    for name, size in sizes.items():
        if size < 2:
            raise GeffectError(f"two rows or more in {name}", str(size), "name a larger set or a wider slice")
    told = ", ".join(f"{name} {size}" for name, size in sizes.items())
    if config.balance == "refuse" and len(set(sizes.values())) > 1:
        remedy = "slice them alike, or add --balance cut (to a domain's smaller set) or --balance repeat"
        raise GeffectError("domains' sets of one size", told, remedy)
    if config.balance != "cut":
        return dict(sizes)
    return {name: min(sizes[split_name(role, domain_of(name))] for role in TARGETS) for name in sizes}
