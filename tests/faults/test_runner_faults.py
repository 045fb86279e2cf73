"""A robot behind a real broker, driven by a real runner, while everything around it breaks.

The robot is a process of its own and keeps its own log of what it applied at each tick. That log, not ours, is the witness: at every tick
the plant got an action, the safe action, or the robot's own fallback.
"""

import asyncio
import contextlib
import json
import os
import signal

import aiomqtt
import pytest
from daemons import Daemon, of, serve
from witness import BALANCE, Robot

from agentd.records import Outcome, PairPlan, Purpose, Role

SLOW_AT_TICK_5 = """
    import time

    class Controller:
        def reset(self, seed):
            self.tick = 0

        def act(self, observation):
            self.tick += 1
            if self.tick == 5:
                began = time.monotonic()
                while time.monotonic() < began + 0.15:
                    pass
            x, v, angle, spin = observation
            return 1 if angle + 0.5 * spin + 0.05 * x + 0.1 * v > 0 else 0
"""


def is_midway(plant) -> bool:
    """Whether most of an episode is still to come: between two of them a robot waits for a command, and needs no action."""
    applied = plant.applied()
    return bool(applied) and 5 < applied[-1]["step"] < 50


@pytest.fixture
def mqtt_spec(make_spec):
    def make(deadline_ms=100.0, **sections):
        environment = {
            "kind": "mqtt",
            "max_steps": 100,
            "mqtt": {"deadline_ms": deadline_ms, "observation_timeout": 2.0},
            "observation_space": {"low": -100.0, "high": 100.0, "shape": [4]},
            "action_space": {"discrete": 2},
            "safe_action": {"value": 0},
        }
        return make_spec(environment=environment, sandbox={"step_timeout": "1s", "allowed_imports": ["math", "time"]}, **sections)

    return make


@pytest.fixture
async def plant(tmp_path, mosquitto):
    async with Robot(tmp_path / "robot.jsonl", mosquitto.url, "--max-steps", "100") as robot:
        yield robot


async def test_the_robot_and_the_runner_tell_the_same_story(runners, mqtt_spec, mosquitto, plant, make_program, until):
    daemon = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) >= 2)
    plant.prove()
    episode = of(daemon, outcome=Outcome.FINISHED)[1]
    lines = plant.episodes()[episode.id]
    assert [(line["step"], line["action"], line["source"] == "action") for line in lines] == [
        (step.tick, step.action, step.safe is None) for step in episode.steps
    ]
    assert {line["revision"] for line in lines if line["source"] == "action"} == {episode.revision}
    assert daemon.devices == {"robot-1": "ready"}
    await daemon.aclose()


async def test_a_worker_that_is_killed_costs_one_safe_tick_and_stable_recovers(runners, mqtt_spec, mosquitto, plant, make_program, until):
    program = make_program(BALANCE)
    daemon = await serve(runners, mqtt_spec(), mosquitto, program)
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    for _ in range(3):
        known = len(of(daemon, outcome=Outcome.FINISHED))
        os.kill(policy_worker(daemon.runner.pid), signal.SIGKILL)
        await until(lambda known=known: len(of(daemon, outcome=Outcome.FINISHED)) > known)
    await until(lambda: of(daemon, outcome=Outcome.ABORTED) and of(daemon, purpose=Purpose.RECOVERY))
    aborted = of(daemon, outcome=Outcome.ABORTED)[0]
    assert aborted.role is Role.STABLE
    assert aborted.reason == "died"
    assert "worker.died" in daemon.kinds()
    plant.prove()
    assert plant.sources()["fallback"] == 0  # the runner itself answered at every tick
    await daemon.aclose()


async def test_a_killed_zygote_is_started_again_and_stable_with_it(runners, mqtt_spec, mosquitto, plant, make_program, until):
    import psutil

    daemon = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    zygote = psutil.Process(daemon.runner.pid).children()[0]
    zygote.kill()
    known = len(of(daemon, outcome=Outcome.FINISHED))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) > known + 1)
    assert {"worker.died", "worker.zygote_died"} <= daemon.kinds()
    plant.prove()
    assert plant.sources()["fallback"] == 0
    await daemon.aclose()


def policy_worker(runner: int) -> int:
    """The youngest process below the runner: the zygote's last fork. Raises ValueError while there is none."""
    import psutil

    return max(psutil.Process(runner).children(recursive=True), key=lambda process: process.pid).pid


async def test_a_late_answer_is_never_applied(runners, mqtt_spec, mosquitto, plant, make_program, until):
    daemon = await serve(runners, mqtt_spec(deadline_ms=20.0), mosquitto, make_program(SLOW_AT_TICK_5))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) >= 2)
    episode = of(daemon, outcome=Outcome.FINISHED)[0]
    assert episode.role is Role.STABLE
    assert episode.deadline_misses >= 1
    assert episode.steps[4].safe == "late"
    plant.prove()
    lines = plant.episodes()[episode.id]
    assert lines[4]["source"] == "safe"
    assert {line["source"] for line in lines} == {"action", "safe"}
    assert daemon.counts["deadline_misses"] >= 0
    await daemon.aclose()


async def test_a_candidate_that_misses_too_many_deadlines_is_aborted(runners, mqtt_spec, mosquitto, plant, make_program, until):
    program, candidate = make_program(BALANCE), make_program(SLOW_AT_TICK_5.replace("== 5", ">= 5"))
    spec = mqtt_spec(deadline_ms=20.0, guardrails={"deadline_misses_per_episode": 2})
    daemon = await serve(runners, spec, mosquitto, program)
    await until(lambda: daemon.devices.get("robot-1") == "ready")
    await daemon.runner.load(*candidate)
    order = (Role.CANDIDATE, Role.STABLE)
    plan = PairPlan(
        id="p", release="r", agent="cartpole", device="robot-1", order=order, reference=program[1].id, candidate=candidate[1].id, seed=3
    )
    await daemon.runner.pair(plan, 60.0)
    await until(lambda: of(daemon, outcome=Outcome.ABORTED) and of(daemon, purpose=Purpose.RECOVERY) and len(of(daemon, pair="p")) == 2)
    aborted = of(daemon, outcome=Outcome.ABORTED)[0]
    assert (aborted.reason, aborted.deadline_misses) == ("deadline", 3)
    recorded = (of(daemon, purpose=Purpose.RECOVERY)[0],)
    assert "deadline of 20 ms" in (await daemon.runner.screen(candidate[1].id, recorded)).late, "screening would have stopped it"
    plant.prove()
    assert plant.sources()["fallback"] == 0
    await daemon.aclose()


async def test_a_broker_that_is_killed_comes_back_to_a_plant_that_never_stood_still(
    runners, mqtt_spec, mosquitto, plant, make_program, until
):
    spec = mqtt_spec()
    daemon = await serve(runners, spec, mosquitto, make_program(BALANCE))
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    for _ in range(2):
        assert not daemon.unreachable
        known = len(of(daemon, outcome=Outcome.FINISHED))
        await until(lambda: is_midway(plant))
        mosquitto.kill()
        fallbacks = plant.sources()["fallback"]
        await until(lambda fallbacks=fallbacks: plant.sources()["fallback"] > fallbacks)
        await until(lambda: daemon.unreachable)
        mosquitto.start()
        await until(lambda known=known: len(of(daemon, outcome=Outcome.FINISHED)) > known + 1)
    plant.prove()
    assert {"broker.disconnected", "broker.connected", "device.left", "device.joined"} <= daemon.kinds()
    assert all(one.outcome in (Outcome.FINISHED, Outcome.LOST) for one in daemon.episodes)
    mosquitto.kill()
    await until(lambda: daemon.unreachable)
    heir = Daemon(await runners.start(spec, broker=mosquitto.url))
    await until(lambda: heir.unreachable)
    await daemon.aclose()
    await heir.aclose()


async def test_a_broker_that_freezes_costs_fallbacks_and_no_late_action(runners, mqtt_spec, mosquitto, plant, make_program, until):
    daemon = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    await until(lambda: is_midway(plant))
    mosquitto.freeze()
    await until(lambda: plant.sources()["fallback"] >= 3)
    mosquitto.thaw()
    known = len(of(daemon, outcome=Outcome.FINISHED))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) > known + 1)
    plant.prove()
    assert all(line["waited"] < 0.5 for line in plant.applied() if line["source"] != "fallback")
    await daemon.aclose()


async def test_garbage_on_its_topics_stops_nobody(runners, mqtt_spec, mosquitto, plant, make_program, until):
    daemon = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    topic = "agentd/v1/devices/robot-1"
    real = {"session": "x", "episode": "e", "step": 0, "observation": [0, 0, 0, 0]}
    garbage = [
        b"", b"\xff\xfe", b"not json", b"[]", b"{}", b'"x"', b"null", b"1e999", b"[" * 5000, b'{"session":1}', b"x" * 100_000,
        json.dumps(real).encode(),
        json.dumps(real | {"step": -1}).encode(),
        json.dumps(real | {"step": 10**30}).encode(),
        json.dumps(real | {"observation": "NaN"}).encode(),
        json.dumps(real | {"observation": [[[1]]]}).encode(),
    ]  # fmt: skip
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        for payload in garbage:
            for kind in ("up/observation", "up/heartbeat", "up/response", "down/action", "down/command"):
                await client.publish(f"{topic}/{kind}", payload)
            await client.publish("agentd/v1/devices/liar/up/status", payload)
            await client.publish("agentd/v1/devices/liar/up/observation", payload)
    known = len(of(daemon, outcome=Outcome.FINISHED))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) > known + 1)
    await until(lambda: daemon.counts["dropped.malformed"] > 0 and daemon.counts["dropped.older_session"] > 0)
    assert daemon.counts["dropped.too_large"] > 0
    plant.prove()
    assert not of(daemon, outcome=Outcome.ABORTED)
    await daemon.aclose()


async def test_the_runner_controls_on_without_its_daemon_and_a_newer_one_adopts_it(
    runners, mqtt_spec, mosquitto, plant, make_program, until
):
    first = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: of(first, outcome=Outcome.FINISHED))
    await first.aclose()
    applied = len(plant.applied())
    await until(lambda: len(plant.applied()) > applied + 300)
    second = Daemon(await runners.start(mqtt_spec(), broker=mosquitto.url))
    assert second.runner.adopted, second.runner.replaced
    assert second.runner.spooled >= 2
    assert second.runner.session == first.runner.session
    await until(lambda: len(second.episodes) > second.runner.spooled)
    plant.prove()
    assert plant.sources()["fallback"] == 0
    await second.aclose()


async def test_a_lease_that_runs_out_in_a_pair_ends_it_at_the_boundary(runners, mqtt_spec, mosquitto, plant, make_program, until):
    program, candidate = make_program(BALANCE), make_program(BALANCE, {"note": "same"})
    candidate = make_program(BALANCE + "\n    # another")
    daemon = await serve(runners, mqtt_spec(), mosquitto, program)
    await until(lambda: daemon.devices.get("robot-1") == "ready")
    await daemon.runner.load(*candidate)
    plans = [
        PairPlan(
            id=f"p{number}",
            release="r",
            agent="cartpole",
            device="robot-1",
            order=(Role.CANDIDATE, Role.STABLE),
            reference=program[1].id,
            candidate=candidate[1].id,
        )
        for number in range(40)
    ]
    for plan in plans:
        await daemon.runner.pair(plan, 60.0)
    await until(lambda: any(one.role is Role.CANDIDATE for one in daemon.episodes))
    await daemon.runner.renew(0.5)
    await until(lambda: "runner.lease_expired" in daemon.kinds())
    dropped = {event.data["pair"] for event in daemon.events if event.kind == "runner.pair_dropped"}
    known = len(daemon.episodes)
    await until(lambda: len(daemon.episodes) > known + 3)
    served = [one for one in daemon.episodes if one.role is Role.CANDIDATE]
    assert all(one.outcome is Outcome.FINISHED for one in served)  # none was cut
    whole = {one.pair for one in of(daemon, purpose=Purpose.PAIR, role=Role.STABLE)}
    assert dropped | whole == {plan.id for plan in plans}
    expired = next(event for event in daemon.events if event.kind == "runner.lease_expired")
    assert max(one.started_at for one in served) < expired.at < daemon.episodes[-1].started_at
    plant.prove()
    await daemon.aclose()


async def test_a_runner_that_is_killed_leaves_the_robot_to_its_fallback_and_a_new_one_takes_over(
    runners, mqtt_spec, mosquitto, plant, make_program, until
):
    program = make_program(BALANCE)
    first = await serve(runners, mqtt_spec(), mosquitto, program)
    said = []
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe([("agentd/v1/agents/cartpole/status", 1), ("agentd/v1/devices/+/down/heartbeat", 0)])
        async with asyncio.timeout(10):
            while not any("seq" in message for message in said):
                said.append(json.loads((await anext(client.messages)).payload))
        assert said[-1]["session"] == first.runner.session  # its heartbeat
        await until(lambda: of(first, outcome=Outcome.FINISHED))
        await until(lambda: is_midway(plant))
        os.kill(first.runner.pid, signal.SIGKILL)
        await until(lambda: first.lost)
        await until(lambda: plant.sources()["fallback"] > 0)
        async with asyncio.timeout(10):
            while {"status": "lost", "session": first.runner.session} not in said:  # its last will, for whoever listens
                said.append(json.loads((await anext(client.messages)).payload))
    second = await serve(runners, mqtt_spec(), mosquitto, program)
    assert second.runner.session != first.runner.session
    await until(lambda: len(of(second, outcome=Outcome.FINISHED)) >= 2)
    plant.prove()
    await first.aclose()
    await second.aclose()


async def test_a_drained_runner_says_stopped_after_its_last_action(runners, mqtt_spec, mosquitto, plant, make_program, until):
    daemon = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    await daemon.runner.drain(10.0)
    await until(lambda: daemon.lost)
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe("agentd/v1/agents/cartpole/status")
        async with asyncio.timeout(10):
            message = await anext(client.messages)
    assert json.loads(message.payload) == {"status": "stopped", "session": daemon.runner.session}
    plant.prove()
    assert plant.sources()["fallback"] == 0
    await daemon.aclose()


async def test_an_episode_that_the_robot_begins_by_itself_is_driven_by_stable(tmp_path, runners, mqtt_spec, mosquitto, make_program, until):
    async with Robot(tmp_path / "robot.jsonl", mosquitto.url, "--max-steps", "100", "--begin-after", "0.2") as robot:
        runner = await runners.start(mqtt_spec(), broker=mosquitto.url)
        await runner.load(*(program := make_program(BALANCE)))
        await runner.pause()
        await runner.route(program[1].id)
        daemon = Daemon(runner)
        await until(lambda: of(daemon, purpose=Purpose.UNSOLICITED, outcome=Outcome.FINISHED))
        paused = of(daemon, purpose=Purpose.UNSOLICITED)[0]
        assert {step.safe for step in paused.steps} <= {"paused", "fallback"}
        robot.prove()
        await daemon.aclose()


@pytest.mark.long
async def test_many_kills_at_random_leave_no_tick_without_an_action(runners, mqtt_spec, mosquitto, plant, make_program, until):
    import random

    daemon = await serve(runners, mqtt_spec(), mosquitto, make_program(BALANCE))
    await until(lambda: of(daemon, outcome=Outcome.FINISHED))
    generator = random.Random(1)
    for _ in range(200):
        await asyncio.sleep(generator.uniform(0.0, 0.2))
        with contextlib.suppress(ValueError, ProcessLookupError):  # nothing is left to kill, for a moment
            os.kill(policy_worker(daemon.runner.pid), signal.SIGKILL)  # a worker, or the zygote if it has none
    known = len(of(daemon, outcome=Outcome.FINISHED))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) > known + 1)
    plant.prove()
    await daemon.aclose()
