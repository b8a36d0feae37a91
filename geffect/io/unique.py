"""JSON and YAML in which a key stands once: their readers keep the last of two and drop the first without a word."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import yaml


def duplicate(names: Iterable[Any]) -> Any | None:
    """Look for a name that stands twice.

    Args:
        names: hashable.

    Returns:
        The first such; None where each stands once.

    >>> duplicate(["a", "b", "a"]), duplicate(["a", "b"])
    ('a', None)
    """
    return next((name for name, count in Counter(names).items() if count > 1), None)


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as `json.loads` takes it for ``object_pairs_hook``.

    Args:
        pairs: its keys with their values.

    Returns:
        The object.

    Raises:
        ValueError: a key stands twice.

    >>> unique_object([("a", 1), ("a", 2)])
    Traceback (most recent call last):
    ValueError: the key 'a' twice in one object
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {duplicate(key for key, _ in pairs)!r} twice in one object")
    return found


class UniqueLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping that has a key twice; what ``<<`` merges in may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """As PyYAML's, once every key of the mapping is seen to stand once.

        Args:
            anchor: as PyYAML's.

        Returns:
            The mapping's node.

        Raises:
            ComposerError: a key stands twice.
        """
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if (twice := duplicate((key.tag, key.value) for key in keys)) is not None:
            mark = [key.start_mark for key in keys if (key.tag, key.value) == twice][1]
            raise yaml.composer.ComposerError(None, None, f"the key {twice[1]!r} twice", mark)
        return node
