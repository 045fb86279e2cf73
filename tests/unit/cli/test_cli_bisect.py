"""`agentd bisect`: the revision that introduced a failure, found by replays in the sandbox; or why that can't be told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from episodes import make_episode
from msgspec.structs import replace

from agentd.records import (
    AgentState,
    Episode,
    Mode,
    Origin,
    Outcome,
    Provenance,
    Revision,
    Source,
    Step,
    make_revision,
)
from agentd.store import SqlStore

CONTROLLER = """\
from agentd.trace import bundle, model, node


@model
class Robot:
    def __init__(self):
        self.gain = node(1.0, trainable=True)
        self.note = node("first", trainable=True)
        self.count = 0

    @bundle(trainable=True)
    def law(self, x, gain):
        return gain * x[0]

    def act(self, observation):
        self.count += 1
        return [self.law(observation, self.gain).data]
"""
RAISING = "def law(self, x, gain):\n    if x[0] > 0.55:\n        raise ValueError(f'no law for {x[0]}')\n    return gain * x[0]\n"
FINE = "def law(self, x, gain):\n    return gain * x[0] + 0.0\n"
SPEC = """\
schema = 1
[agent]
name = "robot"
entrypoint = "controller:Robot"
[environment]
kind = "mqtt"
[environment.mqtt]
broker = "mqtt://127.0.0.1:1"
[environment.safe_action]
value = [0.0]
[environment.action_space]
low = -2.0
high = 2.0
shape = [1]
[sandbox]
min_isolation = 1
"""
START = 1_800_000_000.0


class Past:
    """A store with a line of revisions, each made from the one before, and episodes of the last one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "past.db"
        self.folder = folder / "agents" / "robot"
        self.folder.mkdir(parents=True)
        (self.folder / "agent.toml").write_text(SPEC)
        (self.folder / "controller.py").write_text(CONTROLLER)
        self.source = Source(digest="6" * 64, files={"controller.py": CONTROLLER}, entrypoint="controller:Robot")
        self.line: list[Revision] = []

    async def write(self, *values, episode: Callable[[], Episode], **changes) -> None:
        self.line = [make_revision("robot", self.source.digest, one) for one in values]
        parents = [None, *(one.id for one in self.line)]
        origins = [
            Provenance(revision=one.id, origin=Origin.OPTIMIZER, at=START + 10 * index, parent=parent, who="hybrid", note=f"step {index}")
            for index, (one, parent) in enumerate(zip(self.line, parents, strict=False))
        ]
        state = AgentState(name="robot", source=self.source.digest, stable=self.line[-1].id, mode=Mode.RELEASE)
        async with await SqlStore.open(f"sqlite:///{self.path}") as store:
            await store.commit(self.source, *self.line, *origins, replace(state, **changes))
            await store.add_episode(episode(), None, regime=0)
            await store.flush()

    def episode(self, **changes) -> Episode:
        """What a plant showed: 0.0, 0.1, ... 0.9; acted on by the last revision, as far as a gain says."""
        last = self.line[-1]
        gain = float(last.values.get("gain", 1.0))
        steps = tuple(Step(tick, [tick / 10.0], [gain * tick / 10.0]) for tick in range(10))
        made = make_episode(id="failed", agent="robot", revision=last.id, started_at=START + 10_000, steps=steps, final_observation=[1.0])
        return replace(made, **changes)

    def raised(self, tick=6) -> Episode:
        """The same, ended by an exception."""
        whole = self.episode()
        last = replace(whole.steps[tick], action=[0.0], safe="error")
        return replace(
            whole,
            outcome=Outcome.ABORTED,
            reason="exception",
            error="Traceback\nValueError: no law for 0.6",
            steps=(*whole.steps[:tick], last),
        )


@pytest.fixture
def past(tmp_path) -> Past:
    return Past(tmp_path)


@pytest.fixture
def bisect(lonely, past):
    async def run(*words, folder=True, code=0):
        where = ("--folder", str(past.folder)) if folder else ()
        answer = await lonely("bisect", "failed", "--store", str(past.path), "--json", *where, *words, state=False)
        assert answer.exit_code == code, answer.output
        return json.loads(answer.stdout)

    return run


async def test_the_revision_that_began_to_raise_is_named_with_who_made_it(past, bisect) -> None:
    await past.write({}, {"gain": 1.2}, {"law": RAISING}, {"law": RAISING, "gain": 1.4}, episode=past.raised)
    found = await bisect()
    assert found["introduced"] == [past.line[2].id]
    assert found["good"] == past.line[1].id
    assert found["failure"].startswith("at tick 6: ")
    assert "no law for 0.6" in found["failure"]
    assert found["how"] == "one by one"
    assert found["provenance"][past.line[2].id][0]["note"] == "step 2"
    assert [one["fails"] for one in found["tested"]] == [False, True, True]
    assert any("Other actions would have met other observations" in line for line in found["not_shown"])


async def test_people_read_the_name_the_replays_and_what_they_do_not_show(past, lonely) -> None:
    await past.write({}, {"law": RAISING}, episode=past.raised)
    answer = await lonely("bisect", "fail", "--store", str(past.path), "--folder", str(past.folder), state=False)
    assert answer.exit_code == 0
    for told in (f"introduced by {past.line[1].id}", "by hybrid (optimizer) step 1", "searched one by one", "Times are not replayed"):
        assert told in answer.stdout, told


async def test_a_long_line_in_which_nothing_is_taken_back_is_searched_by_halves(past, bisect) -> None:
    values = [{"gain": 1.0 + index / 100} | ({"law": RAISING} if index >= 23 else {}) for index in range(40)]
    await past.write(*values, episode=past.raised)
    found = await bisect()
    assert found["introduced"] == [past.line[23].id]
    assert found["how"].startswith("by halves")
    assert len(found["tested"]) <= 8


async def test_a_line_in_which_a_change_was_taken_back_is_searched_one_by_one_from_the_failing_end(past, bisect) -> None:
    raising = {2, 3, 7, 8, 9}
    values = [{"gain": 1.0 + index / 100} | ({"law": RAISING} if index in raising else {}) for index in range(10)]
    await past.write(*values, episode=past.raised)
    found = await bisect()
    assert found["introduced"] == [past.line[7].id]
    assert found["how"] == "one by one: law was changed and changed back, so that failing may come and go"


async def test_an_action_outside_of_the_limits_is_traced_to_the_first_revision_that_gives_one(past, bisect) -> None:
    def refused() -> Episode:
        steps = past.episode().steps
        return past.episode(steps=tuple(replace(step, action=[0.0], safe="invalid") if step.action[0] > 2.0 else step for step in steps))

    await past.write({}, {"gain": 2.0}, {"gain": 3.0}, {"gain": 4.0}, episode=refused)
    found = await bisect()
    assert found["introduced"] == [past.line[2].id]
    assert found["failure"].startswith("at tick 6: the action ")
    unknown = await bisect(folder=False, code=1)
    assert "name it with --folder" in unknown["reason"]


async def test_where_nothing_is_raised_a_revision_fails_that_acts_more_like_the_failing_one_than_like_the_last_good(past, bisect) -> None:
    values = [{}, {"gain": 1.1}, {"gain": 1.2}, {"gain": -1.0}, {"gain": -1.1}]
    good = make_revision("robot", past.source.digest, {"gain": 1.1}).id
    await past.write(*values, episode=past.episode, last_good=good)
    found = await bisect()
    assert found["introduced"] == [past.line[3].id]
    assert [one["revision"] for one in found["tested"]][-1] == past.line[4].id
    assert past.line[0].id not in {one["revision"] for one in found["tested"]}
    named = await bisect("--good", past.line[0].id[:8])
    assert named["introduced"] == [past.line[3].id]


async def test_a_failing_revision_that_acts_like_the_good_one_is_not_to_blame(past, bisect) -> None:
    await past.write({}, {"note": "second"}, {"note": "third"}, episode=past.episode)
    found = await bisect(code=1)
    assert found["introduced"] == []
    assert "what changed is the plant or the world" in found["reason"]


async def test_a_failure_that_was_always_there_is_said_to_be_so(past, bisect) -> None:
    await past.write({"law": RAISING}, {"law": RAISING, "gain": 1.1}, episode=past.raised)
    found = await bisect()
    assert found["introduced"] == [past.line[0].id]
    assert "since the oldest" in found["reason"]


async def test_revisions_that_can_not_be_replayed_leave_several_under_suspicion(past, bisect) -> None:
    broken = {"law": "def law(self, x, gain):\n    return gain * x[0]\n", "nowhere": 1.0}
    await past.write({}, broken, {"law": RAISING}, episode=past.raised)
    found = await bisect()
    assert found["introduced"] == [past.line[1].id, past.line[2].id]
    assert [one["fails"] for one in found["tested"]] == [False, None, True]
    assert "does not load" in found["tested"][1]["words"]


async def test_an_exception_that_does_not_come_again_is_not_blamed_on_anybody(past, bisect) -> None:
    await past.write({}, {"law": FINE}, episode=past.raised)
    found = await bisect(code=1)
    assert "doesn't raise in the replay" in found["reason"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outcome": Outcome.LOST, "reason": "silent"}, "the plant was lost (silent)"),
        ({"outcome": Outcome.ABORTED, "reason": "deadline"}, "a replay doesn't show times"),
        ({"steps": ()}, "no recorded steps"),
        ({"steps": (Step(0, [0.0], [0.0], safe="paused"),)}, "in no tick of the episode was the policy asked"),
        ({"steps": (Step(0, {"$type": "ndarray", "shape": [9]}, [0.0]),)}, "not recorded whole"),
    ],
)
async def test_what_a_replay_can_not_show_is_refused_with_the_reason(past, bisect, changes, said) -> None:
    await past.write({}, {"gain": 2.0}, episode=lambda: past.episode(**changes))
    assert said in (await bisect(code=1))["reason"]


async def test_a_revision_that_does_not_repeat_itself_is_told_to_be_taken_with_care(past, bisect) -> None:
    def lucky() -> Episode:
        *steps, last = past.episode().steps
        return past.episode(steps=(*steps, replace(last, action=[0.123])))

    await past.write({}, {"gain": -1.0}, episode=lucky)
    found = await bisect()
    assert any("In 1 of 10 ticks the failing revision itself acts otherwise than recorded" in line for line in found["not_shown"])


async def test_a_program_that_hangs_is_killed_and_its_end_is_the_failure(past, bisect) -> None:
    hanging = "def law(self, x, gain):\n    while x[0] > 0.3:\n        pass\n    return gain * x[0]\n"

    def killed() -> Episode:
        episode = past.raised(4)
        *steps, last = episode.steps
        return replace(episode, reason="timeout", error="WorkerTimeout", steps=(*steps, replace(last, safe="dead")))

    await past.write({}, {"gain": 1.5}, {"law": hanging}, episode=killed)
    found = await bisect()
    assert found["introduced"] == [past.line[2].id]
    assert "at tick 4: WorkerTimeout" in found["failure"]


async def test_wrong_usage_is_told(past, lonely) -> None:
    await past.write({}, {"gain": 2.0}, episode=past.episode)
    stranger = make_revision("robot", past.source.digest, {"gain": 77.0})
    async with await SqlStore.open(f"sqlite:///{past.path}") as store:
        await store.commit(stranger)
    (past.folder.parent / "other").mkdir()
    (past.folder.parent / "other" / "agent.toml").write_text(SPEC.replace('"robot"', '"other"'))
    (past.folder.parent / "other" / "controller.py").write_text(CONTROLLER)
    for words, said in (
        (("bisect", "nothing"), "there is no episode 'nothing'"),
        (("bisect", "failed", "--good", "ffff"), "there is no revision 'ffff'"),
        (("bisect", "failed", "--good", stranger.id[:8]), "does not come from"),
        (("bisect", "failed", "--folder", str(past.folder.parent / "other")), "is of the agent other, not of robot"),
    ):
        folder = () if "--folder" in words else ("--folder", str(past.folder))
        answer = await lonely(*words, "--store", str(past.path), *folder, state=False)
        assert answer.exit_code == 2, answer.output
        assert said in answer.stderr


@pytest.fixture
def replay(lonely, past):
    async def run(*words, code=0):
        answer = await lonely("replay", "failed", "--store", str(past.path), *words, state=False)
        assert answer.exit_code == code, answer.output
        return answer.stdout

    return run


async def test_a_replay_through_the_revision_that_ran_acts_as_recorded(past, replay) -> None:
    await past.write({}, {"gain": 2.0}, episode=past.episode)
    found = json.loads(await replay("--json", "--folder", str(past.folder)))
    assert (found["same"], found["comparison"]["compared"], found["revision"]) == (True, 10, past.line[1].id)
    assert "limits were not checked" in await replay()


async def test_a_replay_through_another_revision_tells_where_it_differs_leaves_the_limits_and_raises(past, replay) -> None:
    await past.write({}, {"gain": 3.0}, {"law": RAISING}, {"gain": 1.5}, episode=past.episode)
    folder = ("--folder", str(past.folder))
    found = json.loads(await replay("--json", *folder, "--revision", past.line[1].id[:12], code=1))
    assert (found["comparison"]["differing"], found["comparison"]["differences"][0]["tick"]) == (9, 1)
    assert found["invalid"].startswith("at tick 7: ")
    told = await replay(*folder, "--revision", past.line[2].id, code=1)
    assert "it fails at tick 6" in told
    assert "no law for 0.6" in told


async def test_a_replay_of_what_is_not_there_is_wrong_usage(past, replay, lonely) -> None:
    await past.write({}, episode=lambda: past.episode(steps=()))
    await replay(code=2)
    await replay("--revision", "beef", code=2)
    assert (await lonely("replay", "nothing", "--store", str(past.path), state=False)).exit_code == 2
