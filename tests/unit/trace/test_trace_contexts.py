"""One graph per context: unrelated tasks, threads and blocks never meet; what an episode starts joins it; a graph ends with its episode."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentd.errors import TraceError
from agentd.trace import GRAPH, Graph, bundle, node, stop_tracing, submit
from agentd.trace.export import export


def test_a_graph_holds_what_is_made_within_its_block_only():
    outside = node(1)
    with Graph() as graph:
        inside = outside + 1
        assert GRAPH.current is graph
    after = inside + 1
    assert list(graph) == [inside]
    assert graph.nodes[0] is inside
    assert after not in graph.nodes or graph.nodes[-1] is not after
    assert GRAPH.current is None


def test_nested_blocks_keep_their_nodes_apart_and_a_graph_can_be_entered_again():
    with Graph() as outer:
        node(1)
        with Graph() as inner:
            node(2)
            with outer:
                node(3)
        node(4)
    assert [other.data for other in outer] == [1, 3, 4]
    assert [other.data for other in inner] == [2]


def test_an_error_ends_the_block_too():
    with pytest.raises(RuntimeError), Graph():
        raise RuntimeError
    assert GRAPH.current is None


def test_parameters_belong_to_no_graph():
    with Graph() as graph:
        node(1, trainable=True)
    assert len(graph) == 0


def test_unrelated_threads_never_meet(forced_switching):
    def episode(number):
        with Graph() as graph:
            x = node(number)
            for _ in range(200):
                x = x + 1
            return graph, x

    with ThreadPoolExecutor(8) as pool:
        for number, (graph, x) in enumerate(pool.map(episode, range(16))):
            assert len(graph) == 201
            assert x.data == number + 200
            assert [other.name for other in graph][-1] == "add:199"


def test_threads_that_share_a_parameter_lose_none_of_each_other_s_feedback(forced_switching):
    for _ in range(150):
        shared = node(1.0, trainable=True)
        outputs = [shared + number for number in range(4)]
        barrier = threading.Barrier(len(outputs))

        def give(output, barrier=barrier):
            barrier.wait()
            output.backward("feedback")

        threads = [threading.Thread(target=give, args=(output,)) for output in outputs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(map(len, shared.feedback.values())) == len(outputs)


async def test_unrelated_tasks_never_meet():
    async def episode(number):
        with Graph() as graph:
            x = node(number)
            for _ in range(50):
                x = x + 1
                await asyncio.sleep(0)
            return [other.data for other in graph]

    for number, values in enumerate(await asyncio.gather(*(episode(number) for number in range(8)))):
        assert values == list(range(number, number + 51))


async def test_tasks_and_threads_started_in_an_episode_join_it():
    def in_thread(x):
        return x + 1

    with Graph() as graph:
        x = node(1)
        made = await asyncio.to_thread(in_thread, x)
        task = asyncio.create_task(asyncio.to_thread(in_thread, made))
        last = await task
    assert [other.data for other in graph] == [1, 2, 3]
    assert last.parents[0] is made


def test_submit_takes_the_graph_into_a_pool_of_bare_threads():
    with ThreadPoolExecutor(1) as pool, Graph() as graph:
        x = node(1)
        assert submit(pool, lambda value, by: value + by, x, by=2).result().data == 3
        pool.submit(lambda: x + 10).result()
    assert [other.data for other in graph] == [1, 3]


async def test_async_bundles_stand_in_the_graph_where_they_were_called_not_where_they_ended():
    @bundle()
    async def slow(x, delay):
        for _ in range(delay):
            await asyncio.sleep(0)
        return x

    with Graph() as graph:
        first, second, third = await asyncio.gather(slow(1, 9), slow(2, 5), slow(3, 1))
    assert [other.data for other in graph] == [1, 2, 3]
    assert (first.name, second.name, third.name) == ("slow:0", "slow:1", "slow:2")


def test_an_export_is_the_same_however_its_threads_raced(forced_switching):
    def work(start):
        x = start
        for number in range(30):
            x = x * 2 % 97 + number
        return x

    def episode():
        with Graph() as graph, ThreadPoolExecutor(4) as pool:
            start = node(3, name="start")
            parts = [submit(pool, work, start + number) for number in range(4)]
            total = node(0, name="total")
            for part in parts:
                total = total + part.result()
        return export(graph, total)

    first = episode()
    assert all(episode() == first for _ in range(5))


async def test_a_bundle_that_waits_does_not_see_the_reads_of_another_task():
    secret = node(7)

    @bundle()
    async def waits(x):
        await asyncio.sleep(0)
        return x

    async def reads():
        for _ in range(5):
            assert secret.data == 7
            await asyncio.sleep(0)

    made, _ = await asyncio.gather(waits(node(1)), reads())
    assert made.hidden == ()


async def test_tracing_is_stopped_for_one_context_only():
    stopped, go_on = asyncio.Event(), asyncio.Event()

    async def stops():
        with stop_tracing():
            stopped.set()
            await go_on.wait()
            return GRAPH.TRACE

    task = asyncio.create_task(stops())
    await stopped.wait()
    assert GRAPH.TRACE
    assert (node(1) + 1).parents
    go_on.set()
    assert await task is False


def test_stop_tracing_survives_errors_and_works_as_a_decorator():
    with pytest.raises(RuntimeError), stop_tracing():
        raise RuntimeError
    assert GRAPH.TRACE

    @stop_tracing()
    def quiet(depth):
        return (GRAPH.TRACE, quiet(depth - 1) if depth else None)

    assert quiet(2) == (False, (False, (False, None)))
    assert GRAPH.TRACE


def test_a_graph_and_its_nodes_are_freed_with_their_last_user_without_the_collector():
    gc.disable()
    try:
        parameter = node(1.0, trainable=True)
        with Graph() as graph:
            x = parameter * 2
            for _ in range(100):
                x = x + 1
            first = weakref.ref(graph.nodes[0])
        whole = weakref.ref(graph)
        del graph
        assert whole() is None
        assert first() is not None
        del x
        assert first() is None
    finally:
        gc.enable()


def test_a_cleared_graph_lets_go_of_the_past_of_a_node_that_is_kept():
    with Graph() as graph:
        x = node(1)
        past = weakref.ref(x)
        kept = x + 1
        del x
    graph.clear()
    assert past() is None
    assert (kept.data, kept.parents, len(graph)) == (2, [], 0)


def test_a_chain_of_a_hundred_thousand_nodes_is_freed_without_recursion():
    x = node(0)
    for _ in range(100_000):
        x = x + 1
    first = weakref.ref(x)
    del x
    assert first() is None


def test_outside_an_episode_the_facade_sees_what_is_alive():
    x = node(1) + 1
    assert any(other is x for other in GRAPH)
    assert len(GRAPH) >= 2
    assert any(other.is_root for other in GRAPH.roots)
    assert "root" in str(GRAPH)
    wanted = node(1, name="never_asked_for")
    assert GRAPH.get("never_asked_for:0") is wanted
    with pytest.raises(KeyError):
        GRAPH.get("nobody:0")
    GRAPH.clear()
    assert GRAPH


def test_opaque_operations_are_made_on_the_graph_from_anywhere():
    graph = Graph()
    start = graph.message("environment_reset", {}, [0.0], "A new episode.")
    step = graph.message("environment_step", {"observation": start, "action": 1}, [1.0])
    assert step.inputs["observation"] is start
    assert step.inputs["action"].data == 1
    assert start.description == "[environment_reset] A new episode."
    assert list(graph) == [start, step]
    with pytest.raises(TraceError, match="node already"):
        graph.message("environment_step", {}, node(1))


def test_a_thread_that_knows_no_graph_traces_into_none():
    found = []
    with Graph():
        thread = threading.Thread(target=lambda: found.append(GRAPH.current))
        thread.start()
        thread.join()
    assert found == [None]
