"""Idempotency-Key: what is sent twice is done once."""

import asyncio

import pytest
from starlette.responses import Response

from agentd.api.idempotency import Answers
from agentd.api.problems import Problem

PATH = "/api/v1/agents/cartpole/releases"


async def test_the_same_key_and_body_give_the_same_answer_and_one_release(api) -> None:
    body = {"values": {"gains.kp": 3.0}}
    first = await api.operator.post(PATH, json=body, headers={"Idempotency-Key": "k1"})
    second = await api.operator.post(PATH, json=body, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, first.content) == (second.status_code, second.content) == (201, first.content)
    assert len(api.bench.asked) == 1


async def test_another_body_under_a_used_key_is_refused(api) -> None:
    await api.operator.post(PATH, json={"values": {"gains.kp": 3.0}}, headers={"Idempotency-Key": "k1"})
    answer = await api.operator.post(PATH, json={"values": {"gains.kp": 4.0}}, headers={"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:agentd:reused-idempotency-key")
    assert len(api.bench.asked) == 1


async def test_without_a_key_each_request_counts(api) -> None:
    for _ in range(2):
        await api.operator.post(PATH, json={"values": {"gains.kp": 3.0}})
    assert len(api.bench.asked) == 2


async def test_a_failure_is_not_remembered(api) -> None:
    for _ in range(2):
        answer = await api.operator.post(PATH, json={"values": {"nothing": 3.0}}, headers={"Idempotency-Key": "k1"})
        assert answer.status_code == 422
    good = await api.operator.post(PATH, json={"values": {"gains.kp": 3.0}}, headers={"Idempotency-Key": "k1"})
    assert good.status_code == 201


async def test_requests_at_the_same_time_are_done_once() -> None:
    answers, begun, go = Answers(), [], asyncio.Event()

    async def work() -> Response:
        begun.append(1)
        await go.wait()
        return Response(b"done")

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(answers.once("k", b"body", work)) for _ in range(5)]
        await asyncio.sleep(0)
        go.set()
    assert len(begun) == 1
    assert {task.result().body for task in asked} == {b"done"}


async def test_when_the_first_fails_the_one_that_waited_tries_itself() -> None:
    answers, tries, go = Answers(), [], asyncio.Event()

    async def work() -> Response:
        tries.append(1)
        await go.wait()
        if len(tries) == 1:
            raise Problem(503, "store-unavailable", "full")
        return Response(b"done")

    first = asyncio.create_task(answers.once("k", b"body", work))
    second = asyncio.create_task(answers.once("k", b"body", work))
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(Problem):
        await first
    assert (await second).body == b"done"


async def test_only_so_many_answers_are_remembered() -> None:
    answers = Answers(capacity=3)
    done = []

    async def work() -> Response:
        done.append(1)
        return Response(b"done")

    for number in range(10):
        await answers.once(str(number), b"", work)
    assert len(answers._answers) == 3
    await answers.once("9", b"", work)
    assert len(done) == 10
    await answers.once("0", b"", work)
    assert len(done) == 11


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_has_a_sensible_length(key) -> None:
    async def work() -> Response:
        return Response(b"done")

    with pytest.raises(Problem):
        await Answers().once(key, b"", work)
