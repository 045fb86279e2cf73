"""The embedded broker of `agentd demo`: `python -m agentd.environments.broker [--host 127.0.0.1] [--port 0]`. It prints its port.

amqtt, MQTT 3.1.1 only, for one machine: no authentication, so it listens on the loopback. Real fleets get a real broker (deploy/).
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from typing import Any

import uvloop


def _bind(host: str, port: int) -> socket.socket:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return probe.dup()


async def serve(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, or until whoever reads the standard output is gone."""
    from amqtt.broker import Broker  # noqa: PLC0415 - after logging is quiet

    with contextlib.closing(_bind(host, port)) as chosen:
        port = chosen.getsockname()[1]
    configuration: dict[str, Any] = {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        # none of amqtt's default plugins: they log each packet and publish statistics
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(configuration)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await broker.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    try:
        await _until_stopped(stop)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await broker.shutdown()


async def _until_stopped(stop: asyncio.Event) -> None:
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:  # a demo that was killed must not leave its broker behind
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await stop.wait()


def main() -> None:
    """Run the broker."""
    parser = argparse.ArgumentParser(prog="python -m agentd.environments.broker", description="The demo's embedded MQTT broker.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose; the port is printed")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # amqtt formats several messages per packet even when nobody listens
    uvloop.run(serve(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
