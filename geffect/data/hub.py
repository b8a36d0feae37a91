"""``hub:ORG/NAME/CONFIG/SPLIT``: a set of the Hugging Face hub, through the optional ``datasets`` library."""

import re
from typing import Any

from geffect.data.files import plain
from geffect.errors import GeffectError

FORM = "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT for the default configuration"
NAME = re.compile(r"(?!\.+$)[\w.+-]+")  # none leads to a directory elsewhere


def hub_rows(name: str) -> list[Any]:
    """Load a split of a hub's data set; no code that comes with it is run.

    As ever with ``datasets``, a directory ``ORG/NAME`` below the current one goes before the hub's. KnowUnDo is one row
    there, whose columns ``train`` and ``val`` list its rows: its train part is taken.

    Args:
        name: ``ORG/NAME/CONFIG/SPLIT`` or ``ORG/NAME/SPLIT``, recognized by their number of parts.

    Returns:
        The rows by column.

    Raises:
        GeffectError: the name has another form, ``datasets`` is not installed, or there is no such set within reach.
    """
    parts = name.split("/")
    if len(parts) not in {3, 4} or not all(map(NAME.fullmatch, parts)):
        raise GeffectError(FORM, repr(f"hub:{name}"), "name it so")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise GeffectError(
            f"the datasets library for hub:{name}", str(error), "install it: pip install 'geffect[hub]'"
        ) from error
    config = parts[2] if len(parts) == 4 else None
    try:
        rows = load_dataset("/".join(parts[:2]), name=config, split=parts[-1]).to_list()
        rows = [plain(row) for row in rows]
    except Exception as error:  # each builder, reader and network layer below has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GeffectError(
            f"a data set at hub:{name}", reason, "check the name, its configuration, its split and the network"
        ) from error
    return _unfolded(rows)


def _unfolded(rows: list[dict[str, Any]]) -> list[Any]:
    folded = len(rows) == 1 and set(rows[0]) == {"train", "val"} and isinstance(rows[0]["train"], list)
    return rows[0]["train"] if folded else rows
