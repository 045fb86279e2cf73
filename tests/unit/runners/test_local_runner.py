"""A runner on Gymnasium, through the daemon's handle: real processes, real sandbox."""

import asyncio
import os
import resource
import signal
import time

import msgspec
import pytest
from daemons import Daemon
from processes import alive

from agentd.environment_spec import EnvironmentSection
from agentd.errors import Fenced, LoadError, PlantError, RunnerError, SandboxError
from agentd.records import Outcome, PairPlan, Purpose, Role
from agentd.runners.launch import fingerprint
from agentd.runners.local import Counted, Finished, Happened, Log, Lost
from agentd.spec import AgentSpec

BALANCE = """
    class Controller:
        def reset(self, seed):
            print("here we go")

        def act(self, observation):
            x, v, angle, spin = observation
            return 1 if angle + 0.5 * spin + 0.05 * x + 0.1 * v > 0 else 0
"""
SLOW_BALANCE = """
    class Controller:
        def reset(self, seed):
            print("slowly")

        def act(self, observation):
            x, v, angle, spin = observation
            sum(range(2_000_000))
            return 1 if angle + 0.5 * spin + 0.05 * x + 0.1 * v > 0 else 0
"""
RAISES_AT_TICK_7 = """
    class Controller:
        def reset(self, seed):
            self.tick = 0

        def act(self, observation):
            self.tick += 1
            if self.tick == 8:
                raise ZeroDivisionError("seven was too many")
            return self.tick % 2
"""
HANGS_AT_TICK_3 = """
    class Controller:
        def reset(self, seed):
            self.tick = 0

        def act(self, observation):
            self.tick += 1
            while self.tick == 4:
                pass
            return self.tick % 2
"""
WRONG_AT_TICK_3 = """
    class Controller:
        def reset(self, seed):
            self.tick = 0

        def act(self, observation):
            self.tick += 1
            return 99 if self.tick == 4 else self.tick % 2
"""
SLOW = """
    class Controller:
        def reset(self, seed):
            print("slowly")

        def act(self, observation):
            return sum(0.0 for _ in range(200_000))
"""
RAISES_IN_RESET = """
    class Controller:
        def reset(self, seed):
            raise RuntimeError("no")

        def act(self, observation):
            return 0
"""
ANSWERS = """
    class Controller:
        def act(self, observation):
            return {answer}
"""
BRAKED = """
    def brake(observation):
        return [{torque}]

    class Controller:
        def act(self, observation):
            return "no torque"
"""


async def told(runner, kind, where=lambda _: True):
    """The next message of a kind; episodes are acknowledged on the way."""
    while True:
        message = await runner.next()
        if isinstance(message, Lost):
            raise ConnectionError(message.reason)
        if isinstance(message, Finished):
            await runner.acknowledge(message.episode.id)
        if isinstance(message, kind) and where(message):
            return message


async def episode(runner, where=lambda _: True):
    return (await told(runner, Finished, lambda message: where(message.episode))).episode


async def event(runner, kind):
    return (await told(runner, Happened, lambda message: message.event.kind == kind)).event


async def served(runners, spec, program, **options):
    """A runner that serves a program as its stable revision."""
    runner = await runners.start(spec, **options)
    source, revision = program
    await runner.load(source, revision)
    await runner.route(revision.id)
    return runner


def plan(stable, candidate, *, order=(Role.CANDIDATE, Role.STABLE), device="sim-1", seed=42):
    return PairPlan(
        id="pair-1", release="r", agent="cartpole", device=device, order=order, reference=stable.id, candidate=candidate.id, seed=seed
    )


@pytest.mark.parametrize("options", [{}, {"forkserver": None}], ids=["forked", "a program of its own"])
async def test_a_stable_revision_runs_episode_after_episode(runners, make_spec, make_program, options):
    runner = await served(runners, make_spec(), make_program(BALANCE), **options)
    first, second = await episode(runner), await episode(runner)
    assert (first.outcome, first.role, first.purpose) == (Outcome.FINISHED, Role.STABLE, Purpose.NORMAL)
    assert [step.tick for step in first.steps] == list(range(50))
    assert first.steps[-1].truncated
    assert first.seed != second.seed
    assert first.safe_actions == 0
    assert first.trace
    assert first.session == runner.session
    assert not runner.adopted


async def test_equal_seeds_make_equal_episodes(runners, make_spec, make_program):
    once = await episode(await served(runners, make_spec(), make_program(BALANCE), seed=7))
    other = make_spec(agent={"name": "again", "entrypoint": "controller:Controller"})
    again = await episode(await served(runners, other, make_program(BALANCE, agent="again"), seed=7))
    assert once.seed == again.seed
    assert [step.observation for step in once.steps] == [step.observation for step in again.steps]


async def test_what_a_program_prints_and_what_was_counted_is_told(runners, make_spec, make_program):
    runner = await served(runners, make_spec(), make_program(BALANCE))
    assert "here we go" in (await told(runner, Log)).lines
    deltas = (await told(runner, Counted)).deltas
    assert sum(count for name, count in deltas.items() if name.startswith("step_duration.stable.")) > 0


async def test_a_program_that_raises_while_it_is_loaded_says_where(runners, make_spec, make_program):
    runner = await runners.start(make_spec())
    with pytest.raises(LoadError) as raised:
        await runner.load(*make_program("import math\nraise ValueError('not today')"))
    assert "not today" in raised.value.traceback


async def test_a_revision_that_is_not_loaded_can_not_be_routed(runners, make_spec, make_program):
    runner = await runners.start(make_spec())
    with pytest.raises(RunnerError, match="not loaded"):
        await runner.route(make_program(BALANCE)[1].id)


async def test_the_stable_revision_can_not_be_retired(runners, make_spec, make_program):
    program = make_program(BALANCE)
    runner = await served(runners, make_spec(), program)
    with pytest.raises(RunnerError, match="stable"):
        await runner.retire(program[1].id)


async def test_a_candidate_that_is_retired_in_the_middle_of_an_episode_ends_it_in_good_order(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(SLOW_BALANCE)
    runner = await served(runners, make_spec(sandbox={"step_timeout": "30s"}), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1]))
    await told(runner, Log, lambda message: "slowly" in message.lines)
    await runner.cancel_pairs()
    await runner.retire(candidate[1].id)
    cut_short = await episode(runner, lambda one: one.role is Role.CANDIDATE)
    assert (cut_short.outcome, len(cut_short.steps), cut_short.safe_actions) == (Outcome.FINISHED, 50, 0)
    with pytest.raises(RunnerError, match="not loaded"):
        await runner.route(candidate[1].id)


@pytest.mark.parametrize("order", [(Role.CANDIDATE, Role.STABLE), (Role.STABLE, Role.CANDIDATE)])
async def test_a_pair_runs_in_the_order_of_its_plan_with_one_seed(runners, make_spec, make_program, order):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1], order=order))
    halves = [await episode(runner, lambda one: one.purpose is Purpose.PAIR) for _ in range(2)]
    assert tuple(half.role for half in halves) == order
    assert {half.seed for half in halves} == {42}
    assert {half.pair for half in halves} == {"pair-1"}
    assert {half.role: half.revision for half in halves} == {Role.STABLE: program[1].id, Role.CANDIDATE: candidate[1].id}
    assert halves[0].steps[0].observation == halves[1].steps[0].observation


async def test_a_candidate_that_raises_is_aborted_at_that_tick_and_stable_goes_on(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(RAISES_AT_TICK_7)
    runner = await served(runners, make_spec(), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1]))
    aborted = await episode(runner, lambda one: one.outcome is Outcome.ABORTED)
    assert (aborted.role, aborted.reason, len(aborted.steps)) == (Role.CANDIDATE, "exception", 8)
    assert "seven was too many" in aborted.error
    assert [step.safe for step in aborted.steps] == [None] * 7 + ["error"]
    recovery = await episode(runner, lambda one: one.purpose is Purpose.RECOVERY)
    assert (recovery.role, recovery.revision, recovery.pair) == (Role.STABLE, program[1].id, None)
    assert recovery.steps[0].observation == aborted.final_observation  # the same episode of the plant
    assert len(aborted.steps) + len(recovery.steps) <= 50
    second_half = await episode(runner, lambda one: one.purpose is Purpose.PAIR)
    assert (second_half.role, second_half.outcome) == (Role.STABLE, Outcome.FINISHED)


async def test_a_candidate_that_hangs_is_killed_and_stable_goes_on(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(HANGS_AT_TICK_3)
    runner = await served(runners, make_spec(sandbox={"step_timeout": "200ms"}), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1]))
    aborted = await episode(runner, lambda one: one.outcome is Outcome.ABORTED)
    assert (aborted.role, aborted.reason, len(aborted.steps)) == (Role.CANDIDATE, "timeout", 4)
    assert aborted.steps[-1].safe == "dead"
    assert (await episode(runner, lambda one: one.purpose is Purpose.RECOVERY)).outcome is Outcome.FINISHED


async def test_a_candidate_whose_action_the_plant_must_not_get_is_aborted(runners, make_spec, make_program):
    program = make_program(BALANCE)
    runner = await served(runners, make_spec(), program)
    for answer in ("None", "float('nan')", "7", "'left'", "[1, 0]", "observation"):
        source, candidate = make_program(ANSWERS.format(answer=answer))
        await runner.load(source, candidate)
        await runner.pair(msgspec.structs.replace(plan(program[1], candidate), id=answer))
        aborted = await episode(runner, lambda one, wanted=candidate.id: one.revision == wanted)
        assert (aborted.outcome, len(aborted.steps), aborted.role) == (Outcome.ABORTED, 1, Role.CANDIDATE), answer
        assert aborted.steps[0].safe in {"invalid", "error"}, answer
    assert aborted.steps[0].action == 0


async def test_a_stable_revision_with_invalid_actions_is_answered_for_and_goes_on(runners, make_spec, make_program):
    runner = await served(runners, make_spec(), make_program(ANSWERS.format(answer="5")))
    finished = await episode(runner)
    assert finished.outcome is Outcome.FINISHED
    assert {step.safe for step in finished.steps} == {"invalid"}
    assert "5 is not one of 0..1" in finished.error


async def test_a_latched_safe_action_stays_to_the_end_of_the_episode(runners, make_spec, make_program):
    environment = {"kind": "gymnasium", "id": "CartPole-v1", "max_steps": 50, "safe_action": {"value": 1, "recovery": "latch"}}
    runner = await served(runners, make_spec(environment=environment), make_program(WRONG_AT_TICK_3))
    finished = await episode(runner)
    assert [step.safe for step in finished.steps[:5]] == [None, None, None, "invalid", "latched"]
    assert {step.safe for step in finished.steps[4:]} == {"latched"}
    assert {step.action for step in finished.steps[3:]} == {1}


async def test_a_trace_that_died_with_its_process_is_counted(runners, make_spec, make_program, until):
    daemon = Daemon(await served(runners, make_spec(sandbox={"step_timeout": "200ms"}), make_program(HANGS_AT_TICK_3)))
    await until(lambda: daemon.counts["lost.traces"])
    await until(lambda: any(one.outcome is Outcome.ABORTED for one in daemon.episodes))
    await daemon.aclose()


async def test_the_safe_action_latches_also_where_the_policy_died_of_its_tick(runners, make_spec, make_program):
    environment = {"kind": "gymnasium", "id": "CartPole-v1", "max_steps": 50, "safe_action": {"value": 1, "recovery": "latch"}}
    spec = make_spec(environment=environment, sandbox={"step_timeout": "200ms"})
    runner = await served(runners, spec, make_program(HANGS_AT_TICK_3))
    assert (await episode(runner, lambda one: one.outcome is Outcome.ABORTED)).steps[-1].safe == "dead"
    recovery = await episode(runner, lambda one: one.purpose is Purpose.RECOVERY)
    assert {step.safe for step in recovery.steps} == {"latched"}


async def test_the_function_that_brakes_is_of_the_source_that_serves(runners, make_spec, make_program):
    safe_action = {"value": [0.0], "entrypoint": "controller:brake", "deadline_ms": 1000.0}
    spec = make_spec(environment={"kind": "gymnasium", "id": "Pendulum-v1", "max_steps": 5, "safe_action": safe_action})
    served_source, other = (make_program(BRAKED.format(torque=torque)) for torque in (0.5, 1.5))
    runner = await served(runners, spec, served_source)
    await runner.load(*other)  # as for comparing with what served earlier
    for revision, torque in ((served_source[1].id, 0.5), (other[1].id, 1.5)):
        await runner.route(revision)
        begun = time.time()
        braked = await episode(runner, lambda found, since=begun, by=revision: found.started_at > since and found.revision == by)
        assert {step.action[0] for step in braked.steps} == {torque}


async def test_a_revision_whose_brake_can_not_be_had_is_not_switched_to_and_what_serves_goes_on(runners, make_spec, make_program):
    safe_action = {"value": [0.0], "entrypoint": "controller:brake", "deadline_ms": 1000.0}
    spec = make_spec(environment={"kind": "gymnasium", "id": "Pendulum-v1", "max_steps": 5, "safe_action": safe_action})
    serving, other = (make_program(BRAKED.format(torque=torque)) for torque in (0.5, 1.5))
    runner = await served(runners, spec, serving)
    await runner.load(*other)
    least, most = resource.prlimit(runner.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(runner.pid, resource.RLIMIT_NOFILE, (3, most))
    with pytest.raises(SandboxError, match="Too many open files"):
        await runner.route(other[1].id)
    resource.prlimit(runner.pid, resource.RLIMIT_NOFILE, (least, most))
    refused = time.time()
    assert (await episode(runner, lambda found: found.started_at > refused)).revision == serving[1].id
    await runner.route(other[1].id)
    braked = await episode(runner, lambda found: found.revision == other[1].id)
    assert {step.action[0] for step in braked.steps} == {1.5}


async def test_without_a_latch_the_policy_goes_on_at_the_next_tick(runners, make_spec, make_program):
    runner = await served(runners, make_spec(), make_program(WRONG_AT_TICK_3))
    finished = await episode(runner)
    assert [step.safe for step in finished.steps[:6]] == [None, None, None, "invalid", None, None]


async def test_a_pair_that_is_paused_in_the_middle_is_dropped_by_name(runners, make_spec, make_program):
    program, candidate = make_program(SLOW), make_program(ANSWERS.format(answer=1))
    environment = {"kind": "gymnasium", "id": "Pendulum-v1", "max_steps": 500, "episode_interval": 3600.0}
    runner = await served(runners, make_spec(environment=environment), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1], order=(Role.STABLE, Role.CANDIDATE)), 60.0)
    await told(runner, Log)  # the first half has begun
    await runner.pause()
    dropped = await event(runner, "runner.pair_dropped")
    assert dropped.data["pair"] == "pair-1"


async def test_a_rest_between_episodes_is_kept_but_no_pair_waits_for_it(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    environment = {"kind": "gymnasium", "id": "CartPole-v1", "max_steps": 10, "episode_interval": 3600.0}
    runner = await served(runners, make_spec(environment=environment), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1]), 60.0)
    halves = [await episode(runner) for _ in range(2)]
    assert {half.purpose for half in halves} == {Purpose.PAIR}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await episode(runner)


async def test_a_policy_that_can_not_even_begin_scores_an_aborted_episode_without_steps(runners, make_spec, make_program):
    runner = await served(runners, make_spec(), make_program(RAISES_IN_RESET))
    aborted = await episode(runner)
    assert (aborted.outcome, aborted.reason, aborted.steps) == (Outcome.ABORTED, "exception", ())


async def test_pairs_end_with_their_lease_and_stable_goes_on(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), program)
    await runner.load(*candidate)
    await runner.pause()
    await runner.pair(plan(program[1], candidate[1]), lease=0.2)
    expired = await event(runner, "runner.lease_expired")
    assert expired.data["pairs"] == ["pair-1"]
    assert (await event(runner, "runner.pair_dropped")).data["pair"] == "pair-1"
    await runner.resume()
    after = [await episode(runner) for _ in range(3)]
    assert {one.purpose for one in after} <= {Purpose.NORMAL}


async def test_a_renewed_lease_keeps_its_pairs(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), program)
    await runner.load(*candidate)
    await runner.pause()
    await runner.pair(plan(program[1], candidate[1]), lease=1.5)
    for _ in range(8):
        await runner.renew(1.5)
        await asyncio.sleep(0.25)
    await runner.renew(60.0)
    await runner.resume()
    assert (await episode(runner, lambda one: one.purpose is Purpose.PAIR)).pair == "pair-1"


async def test_cancelled_pairs_are_named_and_never_run(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), program)
    await runner.load(*candidate)
    await runner.pause()
    await runner.pair(plan(program[1], candidate[1]))
    assert await runner.cancel_pairs() == ("pair-1",)
    await runner.resume()
    assert {(await episode(runner)).purpose for _ in range(3)} <= {Purpose.NORMAL}


async def test_a_pair_on_a_device_that_is_not_there_is_dropped_at_once(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), program)
    await runner.load(*candidate)
    await runner.pair(plan(program[1], candidate[1], device="sim-99"))
    dropped = await event(runner, "runner.pair_dropped")
    assert (dropped.data["pair"], dropped.data["device"]) == ("pair-1", "sim-99")


async def test_a_paused_runner_begins_no_episode_until_it_is_resumed(runners, make_spec, make_program):
    runner = await runners.start(make_spec())
    program = make_program(BALANCE)
    await runner.load(*program)
    await runner.pause()
    await runner.route(program[1].id)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await episode(runner)
    await runner.resume()
    assert (await episode(runner)).outcome is Outcome.FINISHED


async def test_a_new_route_takes_effect_at_an_episode_boundary(runners, make_spec, make_program):
    old, new = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), old)
    await episode(runner)
    await runner.load(*new)
    await runner.route(new[1].id)
    swapped = await episode(runner, lambda one: one.revision == new[1].id)
    assert {step.action for step in swapped.steps} == {1}


async def test_several_copies_run_side_by_side(runners, make_spec, make_program):
    spec = make_spec(environment={"kind": "gymnasium", "id": "CartPole-v1", "max_steps": 20, "devices": 3})
    runner = await served(runners, spec, make_program(BALANCE))
    seen = set()
    while seen != {"sim-1", "sim-2", "sim-3"}:
        seen.add((await episode(runner)).device)


async def test_screening_compares_actions_without_touching_a_plant(runners, make_spec, make_program):
    program, candidate = make_program(BALANCE), make_program(ANSWERS.format(answer=1))
    runner = await served(runners, make_spec(), program)
    recorded = await episode(runner)
    await runner.load(*candidate)
    same = await runner.screen(program[1].id, (recorded,))
    other = await runner.screen(candidate[1].id, (recorded,))
    assert (same.ticks, same.differing, same.invalid, same.error) == (50, 0, 0, "")
    assert other.differing == sum(step.action != 1 for step in recorded.steps)


async def test_screening_shows_the_first_exception_and_what_is_invalid(runners, make_spec, make_program):
    program = make_program(BALANCE)
    runner = await served(runners, make_spec(), program)
    recorded = await episode(runner)
    raising, invalid = make_program(RAISES_AT_TICK_7), make_program(ANSWERS.format(answer=9))
    await runner.load(*raising)
    await runner.load(*invalid)
    report = await runner.screen(raising[1].id, (recorded,))
    assert report.error.startswith("PolicyError")
    assert "seven was too many" in report.traceback
    assert (await runner.screen(invalid[1].id, (recorded,))).invalid == 50


async def test_a_runner_goes_on_without_its_daemon_and_hands_its_episodes_over(runners, make_spec, make_program, until):
    program = make_program(BALANCE)
    first = await served(runners, make_spec(), program)
    await first.abandon()
    await asyncio.sleep(0.5)
    second = await runners.start(make_spec())
    assert second.adopted, second.replaced
    assert (second.session, second.stable) == (first.session, program[1].id)
    assert second.loaded == (program[1].id,)
    assert second.spooled > 1
    spooled = [await episode(second) for _ in range(second.spooled)]
    assert len({one.id for one in spooled}) == len(spooled)


async def test_what_was_not_acknowledged_is_told_again(runners, make_spec, make_program):
    first = await served(runners, make_spec(), make_program(BALANCE))
    message = await first.next()
    while not isinstance(message, Finished):
        message = await first.next()
    await first.abandon()
    second = await runners.start(make_spec())
    assert (await episode(second)).id == message.episode.id


async def test_an_older_daemon_is_refused_and_a_newer_one_takes_over(runners, make_spec, make_program):
    first = await runners.start(make_spec(), epoch=5)
    with pytest.raises(Fenced):
        await runners.start(make_spec(), epoch=4)
    second = await runners.start(make_spec(), epoch=6)
    assert second.session == first.session
    while not isinstance(message := await first.next(), Lost):
        pass
    assert "epoch 6" in message.reason
    with pytest.raises(RunnerError):
        await first.pause()


async def test_a_runner_is_adopted_by_a_later_agentd_whose_environments_have_one_more_key(runners, make_spec):
    class LaterEnvironment(EnvironmentSection):
        settle: float = 0.25

    class LaterSpec(AgentSpec):
        environment: LaterEnvironment

    first = await runners.start(make_spec())
    await first.abandon()
    declared = make_spec().model_dump(by_alias=True, exclude_defaults=True)
    second = await runners.start(LaterSpec.model_validate(declared))
    assert (second.adopted, second.pid) == (True, first.pid), second.replaced
    used = fingerprint(LaterSpec.model_validate(declared | {"environment": declared["environment"] | {"settle": 1.0}}), None)
    assert used != fingerprint(make_spec(), None)


async def test_a_runner_whose_specification_changed_is_replaced(runners, make_spec):
    first = await runners.start(make_spec())
    second = await runners.start(make_spec(guardrails={"deadline_misses_per_episode": 9}))
    assert "another specification" in second.replaced
    assert second.pid != first.pid


async def test_a_runner_that_hangs_is_replaced(runners, make_spec):
    first = await runners.start(make_spec())
    os.kill(first.pid, signal.SIGSTOP)
    second = await runners.start(make_spec())
    assert "doesn't answer" in second.replaced
    assert second.session != first.session


async def test_draining_finishes_the_episode_hands_it_over_and_ends_the_process(runners, make_spec, make_program, until):
    runner = await served(runners, make_spec(), make_program(BALANCE))
    draining = asyncio.create_task(runner.drain(10.0))
    seen = []
    while not isinstance(message := await runner.next(), Lost):
        if isinstance(message, Finished):
            seen.append(message.episode)
            await runner.acknowledge(message.episode.id)
    await draining
    assert {one.outcome for one in seen} == {Outcome.FINISHED}
    await until(lambda: not alive(runner.pid))
    assert not (runners.state / "runners" / "cartpole.sock").exists()


async def test_sigterm_drains_a_runner(runners, make_spec, make_program, until):
    runner = await served(runners, make_spec(), make_program(BALANCE))
    os.kill(runner.pid, signal.SIGTERM)
    while not isinstance(message := await runner.next(), Lost):
        if isinstance(message, Finished):
            assert message.episode.outcome is Outcome.FINISHED
            await runner.acknowledge(message.episode.id)
    await until(lambda: not alive(runner.pid))


async def test_limits_that_do_not_fit_the_plants_actions_are_said_before_it_is_driven(runners, make_spec):
    with pytest.raises(PlantError, match="2 ends in low or high, where an action has 1 components"):
        await runners.start(make_spec(guardrails={"action_limits": {"low": [0, 0]}}))


async def test_an_environment_that_does_not_exist_is_said_by_name(runners, make_spec):
    spec = make_spec(environment={"kind": "gymnasium", "id": "NoSuchPlant-v1"})
    with pytest.raises(PlantError, match="NoSuchPlant-v1"):
        await runners.start(spec)


async def test_a_long_state_path_still_fits_into_a_socket_address(runners, make_spec, make_program, tmp_path):
    runners.state = tmp_path / ("long" * 20) / ("longer" * 20)
    runners.state.mkdir(parents=True)
    runner = await served(runners, make_spec(), make_program(BALANCE))
    assert (await episode(runner)).outcome is Outcome.FINISHED
