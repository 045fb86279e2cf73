"""A plant that is never reset: its episodes are stretches of its life, and no change of policy may be felt between two ticks.

The policy counts: each action is the one before plus one. So the plant's own log shows at once what a switch did to it: nothing, if the
state was handed over; a jump, if it wasn't.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal

import aiomqtt
import pytest
from daemons import of, serve

from agentd.device import Applied, Device
from agentd.records import Outcome, PairPlan, Purpose, Role

TICKS = 20
COUNTER = """
    class Controller:
        def __init__(self):
            self.count = 0.0

        def reset(self, seed):
            self.count = 0.0

        def act(self, observation):
            self.count += 1.0
            return self.count

        def state(self):
            return {"count": self.count}

        def load_state(self, state):
            self.count = state["count"]
"""
DECEIVER = COUNTER.replace('return {"count": self.count}', 'return {"count": 5000.0}')
REFUSER = COUNTER.replace('self.count = state["count"]', 'raise KeyError("integral")')
UNHURRIED = COUNTER.replace("self.count = 0.0\n\n        def act", "sum(range(500_000))\n\n        def act")
LEISURELY = COUNTER.replace("self.count = 0.0\n\n        def act", "sum(range(50_000_000))\n\n        def act")
INFINITE = COUNTER.replace('return {"count": self.count}', 'return {"count": float("inf")}')
RAISER = COUNTER.replace("return self.count\n", "raise ArithmeticError\n", 1)
FORGETFUL = COUNTER.partition("        def state")[0]
UNWILLING = COUNTER.replace("self.count = 0.0\n\n        def act", 'raise LookupError("no gains")\n\n        def act')
STUCK = COUNTER.replace("self.count = 0.0\n\n        def act", "while True:\n                pass\n\n        def act")
CANDIDATES = {"deceiver": DECEIVER, "infinite": INFINITE, "refuser": REFUSER, "raiser": RAISER}


class Plant:
    """Takes what it gets, for ever, and remembers it."""

    def __init__(self, url: str, **options) -> None:
        self.applied: list[Applied] = []
        self.resets = 0
        self._device = Device(
            url,
            "plant",
            agent="cartpole",
            on_reset=self._on_reset,
            on_step=lambda action: (float(action), 0.0, False, False, {}),
            fallback=-1.0,
            log=self.applied.append,
            **{"action_timeout": 0.5, "step_interval": 0.004, "seedable": False} | options,
        )

    def _on_reset(self, _seed):
        self.resets += 1
        return 0.0

    async def __aenter__(self):
        self._task = asyncio.create_task(self._device.run())
        return self

    async def __aexit__(self, *exception):
        self._device.stop()
        await self._task

    def jumps(self, since=0):
        """Ticks whose action is not the one before plus one."""
        pairs = itertools.pairwise(line.action for line in self.applied[since:])
        return [(since + tick, before, after) for tick, (before, after) in enumerate(pairs) if after != before + 1]

    def revisions(self, since=0):
        return {line.revision for line in self.applied[since:] if line.source == "action"}

    def prove(self):
        """One action for each tick of a life without a reset, and never its own fallback."""
        assert self.resets == 1
        assert [line.step for line in self.applied] == list(range(len(self.applied)))
        assert "fallback" not in {line.source for line in self.applied}


@pytest.fixture
def endless(make_spec):
    def make(recovery="resume", **mqtt):
        environment = {
            "kind": "mqtt",
            "mqtt": {"deadline_ms": 250.0, "episode_ticks": TICKS} | mqtt,
            "observation_space": {"low": -1e9, "high": 1e9},
            "action_space": {"low": -1e9, "high": 1e9},
            "safe_action": {"value": -7.0, "recovery": recovery},
        }
        return make_spec(environment=environment, sandbox={"step_timeout": "1s"})

    return make


@pytest.fixture
async def plant(mosquitto):
    async with Plant(mosquitto.url) as plant:
        yield plant


def plan(stable, candidate, name="p1", order=(Role.CANDIDATE, Role.STABLE)):
    return PairPlan(id=name, release="r", agent="cartpole", device="plant", order=order, reference=stable[1].id, candidate=candidate[1].id)


async def test_a_life_is_cut_in_episodes_that_nobody_feels_and_left_at_the_end_of_one(
    runners, endless, mosquitto, plant, make_program, until
):
    daemon = await serve(runners, endless(), mosquitto, make_program(COUNTER))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED)) >= 4)
    plant.prove()
    assert plant.jumps() == []
    whole = of(daemon, outcome=Outcome.FINISHED)
    assert {len(episode.steps) for episode in whole} == {TICKS}
    assert all(episode.trace for episode in whole)
    assert whole[1].steps[0].observation == whole[0].final_observation
    assert [step.tick for step in whole[1].steps] == list(range(TICKS))
    assert whole[1].state == {"count": whole[0].steps[-1].action}
    report = await daemon.runner.screen(whole[0].revision, tuple(whole[:3]))  # a replay begins where the episode did
    assert (report.ticks, report.differing, report.errors) == (3 * TICKS, 0, 0)
    await daemon.runner.drain(10.0)
    await until(lambda: daemon.lost)
    assert {episode.outcome for episode in daemon.episodes} == {Outcome.FINISHED}
    assert {len(episode.steps) for episode in daemon.episodes} == {TICKS}
    await until(lambda: plant.applied[-1].source == "fallback")
    assert [line.source for line in plant.applied if line.source != "fallback"][-1] == "safe"
    assert [name for name in daemon.counts if name.startswith("lost.") or name == "safe_actions.fallback"] == []
    await daemon.aclose()


async def test_promotion_pairs_and_rollback_hand_the_state_on(runners, endless, mosquitto, plant, make_program, until):
    old, new = make_program(COUNTER), make_program(UNHURRIED)
    daemon = await serve(runners, endless(deadline_ms=2000.0), mosquitto, old)
    await until(lambda: len(daemon.episodes) >= 2)
    await daemon.runner.load(*new)

    await daemon.runner.pair(plan(old, new), 60.0)  # a candidate goes on from stable's state
    await until(lambda: len(of(daemon, pair="p1")) == 2)
    halves = {episode.role: episode for episode in of(daemon, pair="p1")}
    candidate, stable = halves[Role.CANDIDATE], halves[Role.STABLE]
    assert {len(half.steps) for half in halves.values()} == {TICKS}
    assert candidate.steps[0].action == candidate.steps[0].observation + 1
    assert stable.steps[0].action == candidate.steps[0].action  # and stable from where it was: a candidate hands nothing over

    before = len(plant.applied)
    for revision in (new[1].id, old[1].id, new[1].id, old[1].id):
        known = len(plant.applied)
        await daemon.runner.route(revision)
        asked = len(plant.applied)
        await until(lambda revision=revision, known=known: revision in plant.revisions(known) and len(plant.applied) > known + TICKS)
        first = next(tick for tick, line in enumerate(plant.applied) if tick >= known and line.revision == revision)
        assert first <= asked + 1  # it begins for several ticks, and this plant's next one can wait for it
    assert plant.jumps(before) == []
    assert "switched" in {episode.reason for episode in daemon.episodes}  # it did not wait for the end of the stretch
    plant.prove()
    await until(lambda: daemon.counts["handovers.loaded"] >= 5)
    assert daemon.counts["safe_actions.dead"] == 0
    await daemon.aclose()


async def test_whatever_a_candidate_does_stable_goes_on_as_it_was(runners, endless, mosquitto, plant, make_program, until):
    stable = make_program(COUNTER)
    candidates = {name: make_program(text) for name, text in CANDIDATES.items()}
    daemon = await serve(runners, endless(), mosquitto, stable)
    for name, candidate in candidates.items():
        await daemon.runner.load(*candidate)
        await daemon.runner.pair(plan(stable, candidate, name=name), 60.0)
        await until(lambda name=name: len(of(daemon, pair=name)) == 2 and daemon.episodes[-1].pair is None)
    for name in candidates:
        before = of(daemon, pair=name, role=Role.CANDIDATE)[0]
        after = of(daemon, pair=name, role=Role.STABLE)[0]
        assert (after.outcome, len(after.steps)) == (Outcome.FINISHED, TICKS)
        if before.steps and name != "raiser":
            assert after.steps[0].action == before.steps[0].action  # what the candidate counted is its own
    refused = of(daemon, pair="refuser", role=Role.CANDIDATE)[0]
    assert (refused.outcome, refused.reason, refused.steps) == (Outcome.ABORTED, "exception", ())
    assert "integral" in refused.error
    raised = of(daemon, pair="raiser", role=Role.CANDIDATE)[0]
    assert (raised.outcome, raised.reason, [step.safe for step in raised.steps]) == (Outcome.ABORTED, "exception", ["error"])
    assert max(line.action for line in plant.applied) < 5000.0
    actions = [line.action for line in plant.applied]
    tick = actions.index(-7.0)
    assert actions[tick + 1] == actions[tick - 1] + 1  # one safe action, then stable goes on counting where it was
    plant.prove()
    await daemon.aclose()


async def test_a_promoted_revision_that_gets_no_state_begins_afresh(runners, endless, mosquitto, plant, make_program, until):
    first, refuser, infinite, last = (make_program(text) for text in (COUNTER, REFUSER, INFINITE, LEISURELY))
    daemon = await serve(runners, endless(), mosquitto, first)
    await until(lambda: len(plant.applied) > 1)
    for program in (refuser, infinite, last):
        await daemon.runner.load(*program)
        known = len(plant.applied)
        await daemon.runner.route(program[1].id)
        await until(lambda program=program, known=known: program[1].id in plant.revisions(known) and len(plant.applied) > known + TICKS)
    assert [after for _, _, after in plant.jumps()] == [1.0, 1.0]  # the refuser, and whoever came after infinity
    await until(lambda: daemon.counts["handovers.refused"] == daemon.counts["handovers.unusable"] == daemon.counts["handovers.loaded"] == 1)
    assert {"handover.refused", "handover.unusable"} <= daemon.kinds()
    plant.prove()  # the last one began for longer than the plant would have waited
    await daemon.aclose()


async def test_what_is_rolled_back_can_not_stay_by_a_state_that_its_successor_hangs_on(
    runners, endless, mosquitto, plant, make_program, until
):
    good = make_program(
        COUNTER.replace("self.count = state", 'while state["count"] == 5000.0:\n                pass\n            self.count = state')
    )
    bad = make_program(DECEIVER)
    daemon = await serve(runners, endless(), mosquitto, good)
    await until(lambda: plant.applied)
    await daemon.runner.load(*bad)
    await daemon.runner.route(bad[1].id)
    await until(lambda: bad[1].id in plant.revisions())
    known = len(plant.applied)
    await daemon.runner.route(good[1].id)
    await until(lambda: good[1].id in plant.revisions(known))
    [(_, _, after)] = plant.jumps()
    assert after == 1.0
    await until(lambda: "handover.refused" in daemon.kinds())
    [refused] = of(daemon, revision=good[1].id, outcome=Outcome.ABORTED)
    assert refused.reason == "timeout"
    plant.prove()
    await daemon.aclose()


async def test_a_paused_plant_gets_the_safe_action_and_goes_on_as_it_was(runners, endless, mosquitto, plant, make_program, until):
    daemon = await serve(runners, endless(), mosquitto, make_program(COUNTER))
    await until(lambda: daemon.episodes)
    await daemon.runner.pause()
    await until(lambda: plant.applied[-1].source == "safe" and of(daemon, reason="idle"))
    await daemon.runner.resume()
    await until(lambda: plant.applied[-1].source == "action")
    counted = [line.action for line in plant.applied if line.source == "action"]
    assert counted == [float(number + 1) for number in range(len(counted))]
    assert {episode.outcome for episode in of(daemon, reason="idle")} == {Outcome.LOST}
    plant.prove()
    await daemon.aclose()


async def test_a_pause_in_the_first_stretch_of_a_life_is_no_reason_to_begin_afresh(runners, endless, mosquitto, make_program, until):
    async with Plant(mosquitto.url, step_interval=0.001) as plant:
        daemon = await serve(runners, endless(episode_ticks=200), mosquitto, make_program(FORGETFUL))
        await until(lambda: plant.applied)
        await daemon.runner.pause()
        await until(lambda: plant.applied[-1].source == "safe")
        await daemon.runner.resume()
        await until(lambda: plant.applied[-1].source == "action")
        counted = [line.action for line in plant.applied if line.source == "action"]
        assert counted == [float(number + 1) for number in range(len(counted))]
        await daemon.aclose()


async def test_a_life_that_the_plant_begins_by_itself_is_a_new_one_for_its_policy(runners, endless, mosquitto, make_program, until):
    topic = "agentd/v1/devices/bare"
    daemon = await serve(runners, endless(), mosquitto, make_program(FORGETFUL))
    async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
        await client.subscribe(f"{topic}/down/+")
        await client.publish(f"{topic}/up/status", json.dumps({"status": "ready", "session": "s", "agent": "cartpole"}))

        async def answer(episode, step):
            seen = {"session": "s", "episode": episode, "step": step, "observation": 0.0}
            await client.publish(f"{topic}/up/observation", json.dumps(seen))
            return await heard("action")

        async def heard(kind):
            async with asyncio.timeout(10):
                while not (message := await anext(client.messages)).topic.matches(f"+/+/+/+/down/{kind}"):
                    pass
            return json.loads(message.payload)

        commanded = (await heard("command"))["episode"]
        lived = [(await answer(commanded, step))["action"] for step in range(TICKS + 3)]
        assert lived == [float(number + 1) for number in range(len(lived))]
        assert [(await answer("its own", step))["action"] for step in range(3)] == [1.0, 2.0, 3.0]
    await until(lambda: "superseded" in {episode.reason for episode in daemon.episodes})
    await daemon.aclose()


async def test_a_revision_that_never_can_take_over_is_tried_once_a_stretch_and_nothing_grows_meanwhile(
    runners, endless, mosquitto, plant, make_program, until
):
    first, unwilling = make_program(COUNTER), make_program(UNWILLING)
    daemon = await serve(runners, endless(), mosquitto, first)
    await daemon.runner.load(*unwilling)
    await until(lambda: daemon.episodes)
    known = len(plant.applied)
    await daemon.runner.route(unwilling[1].id)
    await until(lambda: len(plant.applied) > known + 6 * TICKS)
    await until(lambda: len(of(daemon, revision=first[1].id, purpose=Purpose.RECOVERY)) >= 3)
    tried = len(of(daemon, revision=unwilling[1].id))
    assert 2 <= tried <= len(plant.applied[known:]) / TICKS + 2
    assert {episode.outcome for episode in of(daemon, revision=unwilling[1].id)} == {Outcome.ABORTED}
    assert {len(episode.steps) for episode in of(daemon, revision=first[1].id)} == {TICKS}
    assert plant.jumps() == []
    plant.prove()
    await daemon.aclose()


async def test_a_switch_waits_neither_for_one_that_was_called_off_nor_for_the_stretch_after_its_worker_was_killed(
    runners, endless, mosquitto, plant, make_program, until
):
    import psutil

    first, stuck, last = (make_program(text) for text in (COUNTER, STUCK, LEISURELY))
    spec = endless(episode_ticks=100_000)
    spec = spec.model_copy(update={"sandbox": spec.sandbox.model_copy(update={"load_timeout": "60s"})})
    daemon = await serve(runners, spec, mosquitto, first)
    processes = psutil.Process(daemon.runner.pid)
    await daemon.runner.load(*stuck)
    before = {child.pid for child in processes.children(recursive=True)}
    await daemon.runner.load(*last)
    [worker] = {child.pid for child in processes.children(recursive=True)} - before
    await until(lambda: plant.applied)
    await daemon.runner.route(stuck[1].id)
    known = len(plant.applied)
    await until(lambda: len(plant.applied) > known + 2)  # it is being made ready, and never will be
    await daemon.runner.route(last[1].id)
    known = len(plant.applied)
    await until(lambda: len(plant.applied) > known + 2)  # so is this one, for a second
    os.kill(worker, signal.SIGKILL)
    await until(lambda: last[1].id in plant.revisions())
    assert [event.data["revision"] for event in daemon.events if event.kind == "worker.died"] == [last[1].id]
    assert plant.jumps() == []
    plant.prove()
    await daemon.aclose()


async def test_a_latched_safe_action_stays_until_an_operator_resumes(runners, endless, mosquitto, plant, make_program, until):
    late_once = COUNTER.replace("self.count += 1.0", "self.count += 1.0\n            if self.count == 30.0:\n                return None")
    daemon = await serve(runners, endless(recovery="latch"), mosquitto, make_program(late_once))
    await until(lambda: len(of(daemon, reason="idle")) >= 2)
    known = len(plant.applied)
    assert plant.applied[-1].source == "safe"
    await daemon.runner.resume()
    await until(lambda: "action" in {line.source for line in plant.applied[known:]})
    plant.prove()
    await daemon.aclose()


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_workers_killed_at_random_between_switches_leave_no_tick_without_an_action(
    runners, endless, mosquitto, plant, make_program, until, kills
):
    import psutil

    programs = [make_program(COUNTER), make_program(COUNTER + "\n    # another")]
    daemon = await serve(runners, endless(), mosquitto, programs[0])
    await daemon.runner.load(*programs[1])
    await until(lambda: daemon.episodes)
    generator = random.Random(kills)
    for number in range(kills):
        await asyncio.sleep(generator.uniform(0.0, 0.2))
        processes = psutil.Process(daemon.runner.pid).children(recursive=True)
        if number % 2:
            await daemon.runner.pair(plan(*programs, name=f"p{number}"), 60.0)
        else:
            await daemon.runner.route(programs[number // 2 % 2][1].id)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(generator.choice(processes).pid, signal.SIGKILL)
    known = len(of(daemon, outcome=Outcome.FINISHED, purpose=Purpose.NORMAL))
    await until(lambda: len(of(daemon, outcome=Outcome.FINISHED, purpose=Purpose.NORMAL)) > known + 1, limit=120.0)
    plant.prove()
    await daemon.aclose()


@pytest.mark.long
async def test_a_killed_runner_costs_fallbacks_and_the_next_one_takes_the_plant_over(runners, endless, mosquitto, make_program, until):
    async with Plant(mosquitto.url, action_timeout=0.1) as plant:
        program = make_program(COUNTER)
        first = await serve(runners, endless(), mosquitto, program)
        await until(lambda: first.episodes)
        os.kill(first.runner.pid, signal.SIGKILL)
        await until(lambda: first.lost and plant.applied[-1].source == "fallback")
        second = await serve(runners, endless(), mosquitto, program)
        await until(lambda: len(of(second, outcome=Outcome.FINISHED)) >= 2)
        assert plant.resets == 2  # a runner that knows nothing of the plant's life begins a new one
        await first.aclose()
        await second.aclose()
