"""Prefect's server as winnow starts it: it answers only requests that name it by an address of its own.

    python -m winnow.servers.prefect_server HOST PORT

`prefect server start` answers any Host, so a page whose name is turned to 127.0.0.1 after it was loaded (DNS
rebinding) may talk to it; and pages of any origin may read what it says. Here both are refused; the password
(PREFECT_SERVER_API_AUTH_STRING) is asked of everybody. WINNOW_SERVER_HOSTS names further hosts, comma-separated, as
that of a proxy in front of it.
"""

from __future__ import annotations

import os
import sys

HOSTS = "WINNOW_SERVER_HOSTS"
LOCAL = ("127.0.0.1", "localhost")


def allowed_hosts(host: str) -> list[str]:
    """Names that a request may call this server by."""
    further = [name.strip() for name in os.environ.get(HOSTS, "").split(",")]
    return list(dict.fromkeys(name for name in (host, *LOCAL, *further) if name))


def origins(hosts: list[str], port: int) -> str:
    """Origins of its own pages, as PREFECT_SERVER_CORS_ALLOWED_ORIGINS takes them."""
    return ",".join(
        f"{scheme}://{name}{end}" for name in hosts for scheme, end in (("http", f":{port}"), ("https", ""))
    )


def main(host: str, port: int) -> None:
    """Serve API and pages until a signal ends it. Raises SystemExit without a password."""
    if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise SystemExit("PREFECT_SERVER_API_AUTH_STRING is not set: Prefect would run what anybody asks it to")
    hosts = allowed_hosts(host)
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", origins(hosts, port))
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = create_app(final=True)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    settings = get_current_settings().server
    uvicorn.run(
        app,
        host=host,
        port=port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
