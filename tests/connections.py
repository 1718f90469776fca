"""Helper of server tests: the state of a socket."""

from __future__ import annotations

import socket


def is_ended(connection: socket.socket, seconds: float = 0.05) -> bool:
    """Return whether the other end closed the connection within `seconds`."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1_000_000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
