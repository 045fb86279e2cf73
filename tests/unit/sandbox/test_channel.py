"""The channel to a worker, where its timing is not the worker's."""

import asyncio
import socket
import time

import uvloop

from agentd import codec
from agentd.sandbox.channel import Channel
from agentd.sandbox.wire import Answer


def test_an_answer_that_came_while_the_runner_was_stopped_is_no_time_out():
    async def ask_and_be_stopped():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wakes, wake = socket.socketpair()
        with ours, theirs, wakes, wake:
            ours.settimeout(0.0)

            def end(error):
                channel.close(error)

            channel = Channel(ours, end)
            asked = loop.create_future()

            def stopped():
                loop.remove_reader(wakes)
                number = channel.next_number()
                asked.set_result(channel.call(number, b"question", 0.02))
                theirs.send(codec.encode(Answer(number, 7)))
                until = time.monotonic() + 0.05
                while time.monotonic() < until:
                    pass  # nothing of this process runs, as under SIGSTOP

            loop.add_reader(wakes, stopped)
            wake.send(b"x")
            assert await (await asked) == 7

    uvloop.run(ask_and_be_stopped())  # the loop of runners: after its sockets' callbacks it calls timers, and looks at sockets again later
