"""sd_notify: what systemd wants to know of a `Type=notify` service (sd_notify(3))."""

import os
import socket


def notify(state: str) -> bool:
    """Send `state` (READY=1, STOPPING=1, STATUS=...) to the service manager; False if none asked for it or it can't be reached."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        return False
    return True
