"""Events as a list and as a stream, over a real socket: nothing that is in the log is lost or told twice."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from api_bench import NOW

from agentd.api import context as context_module
from agentd.api.server import serve
from agentd.api.tokens import Role
from agentd.errors import AgentdError
from agentd.records import Event

PATH = "/api/v1/events"


@asynccontextmanager
async def client(api):
    token = api.tokens._tokens[Role.VIEWER]
    async with (
        serve(api.app, "127.0.0.1", 0) as address,
        httpx.AsyncClient(base_url=address.url, headers={"authorization": f"Bearer {token}"}, timeout=20, trust_env=False) as found,
    ):
        yield found


@asynccontextmanager
async def stream(found, **headers):
    parameters = headers.pop("params", {})
    async with found.stream("GET", PATH, headers={"accept": "text/event-stream", **headers}, params=parameters) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Frames(answer.aiter_lines())


class Frames:
    def __init__(self, lines) -> None:
        self.lines = lines

    async def next(self):
        """(id, event) of the next frame that is no comment."""
        identity, data = None, None
        async with asyncio.timeout(20):
            async for line in self.lines:
                if line.startswith("id: "):
                    identity = int(line[4:])
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                elif line == "" and data is not None:
                    return identity, data
        raise AssertionError("the stream ended")

    async def opened(self):
        async with asyncio.timeout(20):
            async for line in self.lines:
                if line.startswith(":"):
                    return


def event(message: str, kind: str = "test.said", agent: str = "cartpole") -> Event:
    return Event(kind=kind, at=NOW, agent=agent, message=message)


async def commit(api, *events: Event) -> None:
    for committed in await api.store.commit(*events):
        api.bus.publish(committed)


async def test_the_list_gives_the_latest_or_what_comes_behind_a_place(api) -> None:
    latest = (await api.viewer.get(PATH, params={"limit": 2})).json()["items"]
    assert [item["message"] for item in latest] == ["pair 3", "pair 4"]
    page = (await api.viewer.get(PATH, params={"after": 0, "limit": 2})).json()
    assert [item["seq"] for item in page["items"]] == [1, 2]
    page = (await api.viewer.get(PATH, params={"after": page["next"], "kind": "release."})).json()
    assert [item["message"] for item in page["items"]] == ["pair 1", "pair 2", "pair 3", "pair 4"]


async def test_a_stream_begins_now_and_tells_what_is_committed_and_what_passes(api) -> None:
    async with client(api) as found, stream(found) as frames:
        await frames.opened()
        await commit(api, event("one"))
        api.bus.publish(event("passing"))
        await commit(api, event("two"))
        told = [await frames.next() for _ in range(3)]
    assert [data["message"] for _, data in told] == ["one", "passing", "two"]
    assert told[1][0] is None
    assert told[0][0] + 1 == told[2][0]


async def test_who_comes_back_gets_what_was_missed_by_the_last_event_id(api) -> None:
    async with client(api) as found:
        async with stream(found) as frames:
            await frames.opened()
            await commit(api, event("one"))
            last, _ = await frames.next()
        await commit(api, event("missed 1"), event("missed 2"))
        async with stream(found, **{"Last-Event-ID": str(last)}) as frames:
            told = [(await frames.next())[1]["message"] for _ in range(2)]
            await commit(api, event("new"))
            told.append((await frames.next())[1]["message"])
    assert told == ["missed 1", "missed 2", "new"]


async def test_events_that_are_told_out_of_order_are_sent_in_order(api) -> None:
    async with client(api) as found, stream(found) as frames:
        await frames.opened()
        first = await api.store.commit(event("first"))
        second = await api.store.commit(event("second"))
        for committed in (*second, *first):
            api.bus.publish(committed)
        await commit(api, event("third"))
        assert [(await frames.next())[1]["message"] for _ in range(3)] == ["first", "second", "third"]


async def test_a_reader_slower_than_the_bus_loses_nothing_that_is_in_the_log(api, monkeypatch) -> None:
    monkeypatch.setattr("agentd.api.events.CAPACITY", 2)
    async with client(api) as found, stream(found) as frames:
        await frames.opened()
        events = await api.store.commit(*[event(f"number {number}") for number in range(500)])
        for committed in events:
            api.bus.publish(committed)
        told = [(await frames.next())[1]["message"] for _ in range(500)]
    assert told == [f"number {number}" for number in range(500)]


async def test_a_stream_can_be_about_one_agent_or_some_kinds(api) -> None:
    async with client(api) as found, stream(found, params={"agent": "cartpole", "kind": "test."}) as frames:
        await frames.opened()
        await commit(api, event("other agent", agent="pendulum"), event("other kind", kind="watch.alarm"), event("mine"))
        api.bus.publish(event("passing, of another", agent="pendulum"))
        api.bus.publish(event("passing, mine"))
        assert [(await frames.next())[1]["message"] for _ in range(2)] == ["mine", "passing, mine"]


async def test_a_text_with_line_ends_can_not_forge_an_event(api) -> None:
    forged = 'x\n\nid: 999999\ndata: {"kind": "release.promoted"}\n\n'
    async with client(api) as found, stream(found) as frames:
        await frames.opened()
        await commit(api, event(forged), event("after"))
        assert (await frames.next())[1]["message"] == forged
        assert (await frames.next())[1]["message"] == "after"


async def test_only_so_many_streams_are_open_at_once_and_closed_ones_make_room(api, monkeypatch, until) -> None:
    monkeypatch.setattr("agentd.api.events.MAX_STREAMS", 1)
    assert context_module.MAX_STREAMS > 1
    async with client(api) as found:
        async with stream(found) as frames:
            await frames.opened()
            assert (await found.get(PATH, headers={"accept": "text/event-stream"})).status_code == 503
        await until(lambda: api.app.state.context.streams == 0)
        async with stream(found) as frames:
            await frames.opened()
    await until(lambda: api.bus.subscribers == 0)


async def test_an_open_stream_does_not_keep_the_server_from_ending(api) -> None:
    async with asyncio.timeout(20):
        async with client(api) as found, stream(found) as frames:
            await frames.opened()
            await api.bus.aclose()


async def test_a_port_in_use_is_said_with_the_way_out(api) -> None:
    async with serve(api.app, "127.0.0.1", 0) as address:
        with pytest.raises(AgentdError, match="AGENTD_HTTP_PORT"):
            async with serve(api.app, "127.0.0.1", address.port):
                pass
