"""Splits: the forget and retain examples of a domain.

They are named ``forget/privacy`` and ``retain/privacy``; without domains, ``forget`` and ``retain``. Other sets whose
losses are measured, *targets*, have any names but those of roles and gradients.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from geffect.errors import GeffectError, shorten

TARGETS = ("forget", "retain")
GRADIENTS = ("objective", "rectified", "masked", "masked_retain", "retain_average", "applied_gradient", "applied")
MOST_REMEMBERED = 16  # retain gradients that a rectifier may remember
REMEMBERED = tuple(f"retain_{age}" for age in range(MOST_REMEMBERED))  # by their age in steps
EXAMPLES = tuple(f"example_{i}" for i in range(MOST_REMEMBERED))  # gradients of single retain examples
RESERVED = {*GRADIENTS, *REMEMBERED, *EXAMPLES, "update", "weights", "total"}
TARGET_NAME = re.compile(r"\w[\w.-]{0,39}(/\w[\w.-]{0,39})?")  # the latter as of a domain's split, forget/privacy
Content = TypeVar("Content")


def split_name(role: str, domain: str = "") -> str:
    """The name of a domain's split; the domain is empty where there are none."""
    return f"{role}/{domain}" if domain else role


def role_of(name: str) -> str:
    """The role of a split: ``forget`` or ``retain``, say."""
    return name.partition("/")[0]


def domain_of(name: str) -> str:
    """The domain of a split; empty where there are none."""
    return name.partition("/")[2]


def domains(names: Iterable[str]) -> tuple[str, ...]:
    """The domains of splits, in order; one without a name where there are none.

    Names of roles as a whole may be among the splits.

    >>> domains(["forget/privacy", "retain/privacy", "general"]), domains(["forget", "retain"])
    (('privacy',), ('',))
    """
    of_forget = [domain_of(name) for name in names if role_of(name) == "forget"]
    return tuple(each for each in of_forget if each) or ("",)


def of_role(sets: Mapping[str, Content], role: str) -> list[Content]:
    """The contents of every domain's split of a role, in order."""
    return [content for name, content in sets.items() if role_of(name) == role]


def of_domain(sets: Mapping[str, Content], domain: str) -> dict[str, Content]:
    """Role → content of one domain, with the contents that belong to no domain."""
    return {role_of(name): content for name, content in sets.items() if domain_of(name) in ("", domain)}


def split_names(role: str, names: Iterable[str]) -> tuple[str, ...]:
    """The splits of a role, one a domain."""
    return tuple(split_name(role, domain) for domain in domains(names))


def check_target_names(names: Iterable[object], taken: Iterable[str] = ()) -> None:
    """Refuse names of targets that no record can hold, that are ``taken``, or that differ in case alone."""
    seen, reserved = dict[str, str](), {*RESERVED, *taken}
    for name in names:
        if not isinstance(name, str) or not TARGET_NAME.fullmatch(name) or {name, role_of(name)} & reserved:
            remedy = f"Choose letters and digits, and none of {', '.join(sorted(reserved))}"
            raise GeffectError(f"A target cannot be called {shorten(name)}", remedy=remedy)
        if other := seen.get(name.casefold()):
            raise GeffectError(f"Two targets are called {other} and {name}", remedy="Give each a name of its own")
        seen[name.casefold()] = name
