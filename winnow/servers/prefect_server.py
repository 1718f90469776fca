"""Prefect's server as winnow starts it: it answers only requests that call it by one of its own host names.

    python -m winnow.servers.prefect_server HOST PORT

`prefect server start` answers any Host, so a web page whose name is redirected to 127.0.0.1 after it was loaded (DNS
rebinding) may talk to it, and pages of any origin may read its answers. Here both are refused; every request needs the
password (PREFECT_SERVER_API_AUTH_STRING). WINNOW_SERVER_HOSTS lists further host names, comma-separated, such as that
of a proxy in front of it.
"""

from __future__ import annotations

import os
import sys

HOSTS = "WINNOW_SERVER_HOSTS"
LOCAL = ("127.0.0.1", "localhost")


def allowed_hosts(host: str) -> list[str]:
    """Return the host names by which a request may call this server."""
    extra_hosts = [name.strip() for name in os.environ.get(HOSTS, "").split(",")]
    return list(dict.fromkeys(name for name in (host, *LOCAL, *extra_hosts) if name))


def origins(hosts: list[str], port: int) -> str:
    """Return the origins of its own pages, as PREFECT_SERVER_CORS_ALLOWED_ORIGINS takes them."""
    return ",".join(
        f"{scheme}://{name}{port_suffix}"
        for name in hosts
        for scheme, port_suffix in (("http", f":{port}"), ("https", ""))
    )


def main(host: str, port: int) -> None:
    """Serve API and pages until a signal. Raises SystemExit without a password."""
    if not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise SystemExit(
            "PREFECT_SERVER_API_AUTH_STRING is not set: without it anyone could run anything through Prefect"
        )
    hosts = allowed_hosts(host)
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", origins(hosts, port))
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = create_app(final=True)
    settings = get_current_settings().server
    uvicorn.run(
        # Around the app, not in it: the actions of automations call the app itself, under a host name of their own.
        TrustedHostMiddleware(app, allowed_hosts=hosts, www_redirect=False),
        host=host,
        port=port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
