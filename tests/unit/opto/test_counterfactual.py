"""The daemon's side of replay: what is refused before it is loaded, what is said of what differs, and that every worker is retired."""

import asyncio

import pytest
from episodes import make_episode

from agentd.errors import PolicyError, RunnerError
from agentd.hosting.counterfactual import STEPS, Replay
from agentd.opto.contract import Screening
from agentd.records import Kind, Parameter, Source, Step
from agentd.runners.local import ScreenReport

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0, bounds=(-10.0, 10.0))
SOURCE = Source(digest="d", files={}, entrypoint="controller:Robot")


class Runner:
    """Answers as a runner does, and remembers what it has loaded."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.loaded = {}
        self.shown = []

    async def load(self, source, revision):
        assert source is SOURCE
        self.loaded[revision.id] = revision

    async def screen(self, revision, episodes):
        assert revision in self.loaded
        self.shown.extend(episodes)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def retire(self, revision):
        del self.loaded[revision]


def episode(name="e1", ticks=3):
    steps = tuple(Step(tick, [0.1 * tick], 1) for tick in range(ticks))
    return make_episode(id=name, agent="robot", revision="r0", session="s", steps=steps)


@pytest.fixture
def replay(make_context):
    def make(runner, *episodes):
        return Replay(runner, SOURCE, make_context(GAIN), episodes or (episode(),))

    return make


async def test_what_differs_is_told_case_by_case_with_what_was_seen_and_done(replay):
    runner = Runner(ScreenReport(ticks=3, differing=1, changed={2: 0}), ScreenReport(ticks=3))
    screening = await replay(runner, episode(), episode("e2"))({"gain": 2.0})
    assert screening == Screening(
        report="Case 1: 1 of 3 actions differ. The first:\n- tick 2, observation [0.2]: 0 instead of 1\n"
        "Case 2: the same action at each of 3 ticks.",
        ticks=6,
        differing=1,
    )
    assert runner.loaded == {}


async def test_values_that_ask_a_model_something_else_act_otherwise_in_a_way_that_is_not_known(replay):
    asks = ScreenReport(unrecorded=1, first_unrecorded="tick 0: a model is asked what is not recorded: 'Who?'")
    screening = await replay(Runner(asks, ScreenReport(ticks=3)), episode(), episode("e2"))({"gain": 2.0})
    assert (screening.ok, screening.ticks, screening.differing) == (True, 4, 1), "not the same as what runs, for all that is known"
    assert screening.report.startswith("Case 1: it asks a model something else (tick 0: a model is asked what is not recorded: 'Who?')")


@pytest.mark.parametrize("values", [{"gain": 99.0}, {"gone": 1.0}, {"gain": "fast"}, {"gain": float("nan")}])
async def test_values_that_break_the_rules_are_refused_before_anything_is_loaded(replay, values):
    runner = Runner()
    screening = await replay(runner)(values)
    assert not screening.ok
    assert next(iter(values)) in screening.reason
    assert runner.shown == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (PolicyError("Traceback\n  much\nIndexError: out of range"), "PolicyError: IndexError: out of range"),
        (ScreenReport(ticks=1, error="PolicyError: Traceback\nKeyError: 'lean'"), "KeyError: 'lean'"),
        (ScreenReport(ticks=3, invalid=1, first_invalid="episode e1, tick 0: 5 is above 1"), "limits: episode e1, tick 0: 5 is above 1"),
    ],
)
async def test_a_program_that_fails_in_replay_is_refused_in_a_line_and_its_worker_retired(replay, answer, reason):
    runner = Runner(answer)
    screening = await replay(runner)({"gain": 2.0})
    assert not screening.ok
    assert screening.reason.endswith(reason)
    assert runner.loaded == {}


async def test_while_the_runner_is_lost_nothing_is_known_and_nothing_held_against_the_values(replay):
    assert await replay(Runner(RunnerError("the runner is lost")))({"gain": 2.0}) == Screening()


async def test_a_long_episode_is_replayed_in_part(replay):
    runner = Runner(ScreenReport(ticks=STEPS))
    await replay(runner, episode(ticks=STEPS + 100))({"gain": 2.0})
    assert len(runner.shown[0].steps) == STEPS


async def test_of_a_slow_program_what_was_seen_in_time_is_told_and_its_worker_is_ended(make_context):
    runner = Runner(ScreenReport(ticks=3, differing=1, changed={0: 0}))
    screen = runner.screen

    async def slower_and_slower(revision, episodes):
        if not runner.answers:
            await asyncio.get_running_loop().create_future()
        return await screen(revision, episodes)

    runner.screen = slower_and_slower
    screening = await Replay(runner, SOURCE, make_context(GAIN), (episode(), episode("e2")), seconds=0.05)({"gain": 2.0})
    assert (screening.ok, screening.ticks, screening.differing) == (True, 3, 1)
    assert "Case 2" not in screening.report
    assert runner.loaded == {}


async def test_each_replay_has_a_worker_of_its_own_that_no_release_can_meet(replay):
    runner = Runner(*[ScreenReport(ticks=3)] * 2)
    screen, seen = replay(runner), []
    load = runner.load

    async def noted(source, revision):
        seen.append(revision)
        await load(source, revision)

    runner.load = noted
    for _ in range(2):
        await screen({"gain": 2.0})
    assert [revision.values for revision in seen] == [{"gain": 2.0}] * 2
    assert len({revision.id for revision in seen}) == 2
    assert all(revision.id.startswith("replay-") for revision in seen)
