"""The runner's side of the conversation with its daemon."""

import asyncio

from agentd.runners.link import DaemonLink
from agentd.runners.messages import Done, Failed, FromRunner, Hello, Pause, Resume, Welcome, frame, read_frame
from agentd.runners.spool import Spool
from agentd.sandbox import Isolation


async def handle(message):
    if isinstance(message, Pause):
        raise KeyError("a fault of ours")
    return Done(request=message.request)


def welcome(hello):
    return Welcome(request=hello.request, session="s", pid=1, isolation=Isolation(2), fingerprint="f")


async def test_a_request_that_meets_a_fault_of_the_runner_is_answered_and_the_conversation_goes_on(tmp_path, capsys):
    spool = Spool()
    async with DaemonLink(tmp_path / "socket", spool, welcome=welcome, handle=handle), asyncio.timeout(10):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        for number, message in enumerate((Hello(epoch=1), Pause(request=1), Resume(request=2))):
            writer.write(frame(message))
            answer = await read_frame(reader, FromRunner)
            assert answer.request == number
            assert isinstance(answer, (Welcome, Failed, Done)[number])
            if isinstance(answer, Failed):
                assert (answer.kind, answer.message) == ("RunnerError", "Pause failed by a fault of agentd: KeyError('a fault of ours')")
        writer.close()
    assert "in handle" in capsys.readouterr().err
