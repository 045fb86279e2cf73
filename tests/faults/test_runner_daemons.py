"""Daemons that are slow, mad or many: none of them reaches the control path."""

import asyncio

import pytest

from agentd import codec
from agentd.records import Outcome
from agentd.runners.local import Finished, Lost
from agentd.runners.messages import FromRunner, Hello, Route, Welcome, frame, read_frame
from agentd.runners.paths import RunnerPaths, short

FLAT = """
    class Controller:
        def act(self, observation):
            return 1
"""


@pytest.fixture
async def runner(runners, make_spec, make_program):
    runner = await runners.start(make_spec())
    program = make_program(FLAT)
    await runner.load(*program)
    await runner.route(program[1].id)
    return runner


async def connect(runners):
    with short(RunnerPaths.under(runners.state, "cartpole").socket) as path:
        return await asyncio.open_unix_connection(path)


async def some_episodes(runner, count=3):
    found = []
    while len(found) < count:
        match await runner.next():
            case Finished(episode=episode):
                found.append(episode)
                await runner.acknowledge(episode.id)
            case Lost(reason=reason):
                raise ConnectionError(reason)
    return found


async def close(writer):
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x04spam",
        b"\x00\x00\x10\x00cut off",
        frame(Route(revision="x")),
        frame(Hello(epoch=99, version=1000)),
    ],
    ids=["nothing", "http", "huge", "no messagepack", "cut off", "no hello", "another version"],
)
async def test_words_that_no_daemon_says_change_nothing(runner, runners, words):
    _, writer = await connect(runners)
    writer.write(words)
    await writer.drain()
    await asyncio.sleep(0.1)
    await close(writer)
    assert all(episode.outcome is Outcome.FINISHED for episode in await some_episodes(runner))


async def test_a_daemon_that_does_not_read_stops_nothing(runner, runners, make_spec):
    await runner.abandon()
    reader, writer = await connect(runners)
    writer.write(frame(Hello(epoch=2)))
    welcome = await read_frame(reader, FromRunner)
    assert isinstance(welcome, Welcome)
    await asyncio.sleep(2.0)  # nothing is read from here on
    memory = resident(welcome.pid)
    await asyncio.sleep(2.0)
    assert resident(welcome.pid) < memory + 100 * 2**20
    await close(writer)
    next_one = await runners.start(make_spec(), epoch=3)
    assert next_one.adopted, next_one.replaced
    assert next_one.spooled > welcome.spooled
    assert all(episode.outcome is Outcome.FINISHED for episode in await some_episodes(next_one))


def resident(pid):
    import psutil

    return psutil.Process(pid).memory_info().rss


async def test_a_daemon_that_reconnects_a_hundred_times_leaks_nothing(runner, runners):
    import psutil

    await runner.abandon()
    process = psutil.Process(runner.pid)
    before = process.num_fds()
    for number in range(100):
        reader, writer = await connect(runners)
        writer.write(frame(Hello(epoch=2 + number)))
        assert isinstance(codec.decode(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")), FromRunner), Welcome)
        await close(writer)
    await asyncio.sleep(0.2)
    assert process.num_fds() <= before
