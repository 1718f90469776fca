"""What tests of servers ask of a socket."""

from __future__ import annotations

import socket


def is_ended(connection: socket.socket, seconds: float = 0.05) -> bool:
    """Whether the other end has closed it; waits so long for a word."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1_000_000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
