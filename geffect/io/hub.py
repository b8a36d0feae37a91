"""Whether the Hugging Face hub can be reached."""

import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 3.0  # for a connection


@contextlib.contextmanager
def offline_if_unreachable(name: str) -> Iterator[None]:
    """Ask only the hub's cache for a model or set, where the hub cannot be reached and no directory has that name.

    Hugging Face's libraries otherwise try again for half a minute per file before they say so, a cached one's too.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not (Path(name).exists() or is_reachable(constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_reachable(address: str) -> bool:
    """Whether a connection to the host of an address comes about, or a proxy stands between."""
    parts = urlsplit(address)
    if urllib.request.getproxies().keys() & {parts.scheme, "all"}:
        return True
    port = parts.port or {"http": 80}.get(parts.scheme, 443)
    try:
        socket.create_connection((parts.hostname or "", port), SECONDS).close()
    except OSError:
        return False
    return True
