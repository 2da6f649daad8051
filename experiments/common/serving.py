"""What our servers have in common: whom they answer, how much they read, where they listen."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from seg_env.errors import WrongOptionError

MOST_BYTES = 16 * 2**20
"""Longest request that is read."""


def is_own_name(name: str, host: str) -> bool:
    """Whether a header ``Host`` names the server that listens on ``host``.

    Another site's name can be made to resolve to this machine (DNS rebinding), a number cannot.
    """
    try:
        name = urlsplit(f"//{name}").hostname or ""
        if name not in ("localhost", host.lower()):
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def say_other_name(name: str) -> str:
    """The reply to requests with another ``Host``."""
    return f"the Host {name!r} is not this server's: use its address, or --host"


@contextmanager
def listening(host: str, port: int) -> Iterator[None]:
    """Say what to do if something else is listening already.

    Raises:
        WrongOptionError: Something is.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise WrongOptionError(
            f"--port {port} on {host} is in use by another program: end it, or give another port, "
            "0 for any free one"
        ) from error
