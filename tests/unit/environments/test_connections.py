"""What a connection leaves behind: nothing, however it ends."""

import asyncio
import socket
import threading

from agentd.device.connection import Client, connected


async def test_a_connection_that_opens_after_it_was_given_up_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as broker:
        client = Client("127.0.0.1", broker.getsockname()[1], timeout=5)
        connect, asked, go_on = client._client.connect, threading.Event(), threading.Event()

        def connect_late(*arguments):
            asked.set()
            go_on.wait()
            return connect(*arguments)

        client._client.connect = connect_late

        async def use():
            async with connected(client):
                pass

        task = asyncio.create_task(use())
        await asyncio.to_thread(asked.wait)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        go_on.set()
        accepted, _ = await asyncio.to_thread(broker.accept)
        with accepted:
            accepted.settimeout(20)
            while await asyncio.to_thread(accepted.recv, 1000):
                pass  # until the other side has closed
