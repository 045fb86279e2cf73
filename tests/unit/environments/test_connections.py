"""How a connection sends, and what it leaves behind: nothing, however it ends."""

import asyncio
import socket
import threading

from agentd.device.connection import Client, Inbox, connected, connection_arguments


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


async def test_a_message_is_sent_at_once_or_right_after_what_is_being_handled_or_as_the_socket_takes_it(mosquitto, until):
    heard = []

    def hear(message):
        heard.append(str(message.topic))
        if heard == ["asked"]:
            client._client.publish("answered")
            client.flush()  # paho is in the middle of something, and would wait for itself

    client = Client(**connection_arguments(mosquitto.url), queue_type=Inbox.type_for(hear))
    async with connected(client):
        await client.subscribe([("asked", 0), ("answered", 0)])
        client._client.publish("asked")
        client.flush()
        assert not client._client.want_write()
        await until(lambda: heard == ["asked", "answered"])
        mosquitto.freeze()
        publishing = asyncio.create_task(client.publish("large", bytes(8_000_000), qos=1, timeout=20))
        await until(client._client.want_write)
        mosquitto.thaw()
        await publishing
