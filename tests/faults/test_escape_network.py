"""Attacks on the network: sockets of every family, by Python, by asyncio and by raw system calls."""

from pathlib import Path
from typing import Any

import pytest
from escape import REFUSED, Attack, Attacks, assert_fails, assert_succeeds

from agentd.sandbox import Zygote

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

attack = Attacks()


Target = dict[str, Any]


@attack(REFUSED)
def connects_to_a_port(target: Target) -> Any:
    import socket

    return socket.create_connection(("127.0.0.1", target["port"]), timeout=1)


@attack(REFUSED)
def connects_and_hides_the_refusal(target: Target) -> Any:
    import socket

    try:
        return socket.create_connection(("127.0.0.1", target["port"]), timeout=1)
    except OSError:
        return False


@attack(REFUSED)
def sends_a_datagram(target: Target) -> Any:
    import socket

    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", ("127.0.0.1", target["port"]))


@attack(REFUSED)
def listens_on_a_port(target: Target) -> Any:
    import socket

    return socket.create_server(("127.0.0.1", 0))


@attack(REFUSED)
def opens_an_abstract_unix_socket(target: Target) -> Any:
    import socket

    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.bind("\0attacker")
    return opened


@attack(REFUSED)
def opens_a_raw_socket(target: Target) -> Any:
    import socket

    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


@attack(REFUSED)
def opens_a_netlink_socket(target: Target) -> Any:
    import socket

    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)


@attack(REFUSED)
def makes_a_socket_pair(target: Target) -> Any:
    import socket

    return socket.socketpair()


@attack(REFUSED)
def asks_a_web_server(target: Target) -> Any:
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(f"http://127.0.0.1:{target['port']}", timeout=0.2)
    except urllib.error.URLError as error:
        raise error.reason from error
    except TimeoutError:
        return True  # connected, and nobody spoke
    return True


@attack(REFUSED)
def opens_a_socket_with_the_c_library(target: Target) -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.socket(2, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "socket")
    return True


@attack(REFUSED, says="Errno 1|gaierror")
def resolves_a_name(target: Target) -> Any:
    import socket

    return socket.getaddrinfo("localhost", target["port"])


@attack(REFUSED, works_unlocked=False)
def sends_with_the_channel_to_another_address(target: Target) -> Any:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    address = (ctypes.c_char * 16)(2)
    if library.sendto(3, b"x", 1, 0, address, 16) < 0:
        raise OSError(ctypes.get_errno(), "sendto")
    return True


@attack(REFUSED)
def sends_out_of_band(target: Target) -> Any:
    import ctypes

    library = ctypes.CDLL(None, handle=ctypes.pythonapi._handle, use_errno=True)  # which nobody hears of
    errors = []
    for descriptor in range(4, 16):  # the event loop's pair of stream sockets is among them
        if library.send(descriptor, b"x", 1, 1) == 1:
            return True
        errors.append(ctypes.get_errno())
    raise OSError(1 if 1 in errors else errors[0], "send")


@attack(REFUSED, works_unlocked=False)
def passes_a_descriptor_through_the_channel(target: Target) -> Any:
    import socket

    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=3)
    try:
        return socket.send_fds(channel, [b"x"], [1])
    finally:
        channel.detach()


@pytest.mark.parametrize("which", attack.found, ids=lambda which: which.name)
async def test_the_attack_fails_and_the_next_worker_serves(zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_fails(zygote, which, tmp_path)


@pytest.mark.parametrize("which", attack.unlocked, ids=lambda which: which.name)
async def test_the_same_attack_succeeds_where_nothing_is_locked(unlocked_zygote: Zygote, which: Attack, tmp_path: Path) -> None:
    await assert_succeeds(unlocked_zygote, which, tmp_path)
