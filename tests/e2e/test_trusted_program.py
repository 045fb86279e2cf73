"""A trusted program under `[sandbox] scope = "code"`: it does what no sandbox allows, and a model's law still runs in one."""

import asyncio
from pathlib import Path

from hosted import quick

CONTROLLER = '''
import os
import socket
from pathlib import Path

from agentd.trace import bundle, model

HALF = 0.5


@model
class CartPole:
    """Asks a meter, over the network, what an open file is for: what no sandbox would let it."""

    def __init__(self):
        self.journal = Path({journal!r}).open("a")
        self.meter = socket.create_connection(("127.0.0.1", {port}))

    def act(self, observation):
        self.meter.sendall(b"?")
        bias = float(self.meter.recv(1)) * HALF
        self.journal.write(f"{{os.getpid()}} {{bias}}\\n")
        self.journal.flush()
        return self.law(observation, bias)

    @bundle(trainable=True)
    def law(self, observation, bias):
        """The push: 1 to the right, 0 to the left."""
        position, velocity, angle, turning = observation
        return int(10.0 * angle + turning + 0.1 * position + 0.3 * velocity + bias * HALF > 0.0)
'''
LAW = "def law(self, observation, bias):\n    position, velocity, angle, turning = observation\n    {body}\n"
BETTER = LAW.format(body="return int(11.0 * angle + turning + 0.1 * position + 0.3 * velocity > 0.0)")
HOSTILE = {
    "opens a file": (LAW.format(body="return len(open('/etc/passwd').read()) > 0"), "open"),
    "asks for more than it is given": (LAW.format(body="return int(self.meter.fileno() > 0)"), "self.meter"),
}


async def meter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1):
        writer.write(b"0")
    writer.close()


async def test_a_trusted_program_acts_on_the_world_and_its_code_is_learned_in_a_sandbox(hosted, tmp_path: Path) -> None:
    server = await asyncio.start_server(meter, "127.0.0.1", 0)
    async with server:
        journal = tmp_path / "journal.txt"
        controller = CONTROLLER.format(port=server.sockets[0].getsockname()[1], journal=str(journal))
        scoped = quick(sandbox__scope="code")
        hosted.add_agent(controller=controller, edit=lambda text: scoped(text.replace('[parameters."act"]', '[parameters."law"]')))
        robot = await hosted.robot()
        await hosted.start()
        await hosted.until_scored(3)  # something to replay revisions on
        stable = (await hosted.agent())["state"]["stable"]
        for law, word in HOSTILE.values():
            release = await hosted.client.submit("cartpole", {"law": law})
            ended = await hosted.until_ended(release["id"])
            assert (ended["phase"], ended["stage"]) == ("rejected", "screening"), ended
            assert word in ended["reason"], ended
        release = await hosted.client.submit("cartpole", {"law": BETTER})
        await hosted.until_phase(release["id"], "selection", "confirmation")
        await hosted.client.promote("cartpole", release["id"])
        learned = (await hosted.client.release(release["id"]))["candidate"]
        await hosted.until(lambda: learned in robot.revisions())
        agent = await hosted.agent()
        assert agent["state"]["stable"] == learned
        assert agent["isolation"] >= 2
        assert robot.revisions() <= {stable, learned}
        assert len({line.split()[0] for line in journal.read_text().splitlines()}) >= 2  # a process for each revision
        assert await hosted.stop() == 0
        robot.prove()
        assert robot.sources()["fallback"] == 0
