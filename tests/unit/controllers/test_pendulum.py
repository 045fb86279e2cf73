"""The shipped pendulum controller in Gymnasium, and what its feedback says."""

import statistics

import gymnasium
import msgspec
import numpy as np
import pytest

from agentd.ready import find
from agentd.records import Kind
from agentd.spec import load_agent
from agentd.trace import Node
from agentd.trace.parameters import assign, describe, find_parameters


@pytest.fixture(scope="module")
def explain(bench):
    return bench.load("pendulum", "feedback").explain


@pytest.fixture
def program(bench):
    return bench.load("pendulum", "controller").Pendulum()


def play(bench, act, seeds):
    env = gymnasium.make("Pendulum-v1")

    def torque(seen):
        chosen = act(seen)
        return np.float32(chosen.data if isinstance(chosen, Node) else chosen)

    return [bench.run(env, torque, seed=seed, max_steps=200) for seed in seeds]


def test_it_swings_up_from_anywhere_and_stays(bench, explain, program):
    episodes = play(bench, program.act, range(15))
    scores = [explain(episode)[0] for episode in episodes]
    assert statistics.mean(scores) > 0.92
    assert statistics.stdev(scores) < 0.05
    for episode in episodes:
        assert all(step.observation[0] > 0.98 for step in episode.steps[100:])


@pytest.mark.parametrize(("path", "value"), [("energy_gain", -1.0), ("angle_gain", -10.0), ("rate_gain", -2.0), ("reach", 0.0)])
def test_each_number_matters(bench, explain, program, path, value):
    assign(find_parameters(program)[path], value)
    assert statistics.mean(explain(episode)[0] for episode in play(bench, program.act, range(10))) < 0.8


def test_its_four_numbers_are_trainable_within_bounds_and_its_law_is_not(program):
    parameters = {path: describe(path, parameter) for path, parameter in find_parameters(program).items()}
    assert set(parameters) == {"energy_gain", "angle_gain", "rate_gain", "reach"}
    assert {parameter.kind for parameter in parameters.values()} == {Kind.NUMBER}
    for parameter in parameters.values():
        low, high = parameter.bounds
        assert low <= parameter.default <= high
        assert parameter.description


def test_the_torque_stays_within_the_motors_limit(bench, program):
    actions = [step.action[0] for episode in play(bench, program.act, range(5)) for step in episode.steps]
    assert max(actions) <= 2.0
    assert min(actions) >= -2.0


def test_the_score_stays_in_its_range_whatever_acts(bench, explain):
    generator = np.random.default_rng(3)
    for act in (lambda _: [0.0], lambda _: [2.0], lambda _: generator.uniform(-2, 2, 1)):
        assert all(0.0 <= explain(episode)[0] <= 1.0 for episode in play(bench, act, range(5)))


def test_the_words_tell_when_it_arrived(bench, explain, program):
    (episode,) = play(bench, program.act, [2])
    assert explain(episode)[1].startswith("Upright from step 23 on; the angle was 0.4 degrees off on average")


def test_the_words_of_a_failed_swing_up_tell_how_far_it_came_and_whether_the_torque_went_with_the_motion(bench, explain, program):
    assign(find_parameters(program)["energy_gain"], -1.0)
    (episode,) = play(bench, program.act, [2])
    said = explain(episode)[1]
    assert said.startswith("Never stayed upright; came as close as ")
    assert "In 0 % of the ticks away from upright the torque had the sign of the angular velocity." in said


def test_the_words_count_the_ticks_with_the_safe_action(bench, explain, program):
    (episode,) = play(bench, program.act, [2])
    steps = tuple(msgspec.structs.replace(step, safe="deadline" if step.tick < 2 else None) for step in episode.steps)
    assert explain(msgspec.structs.replace(episode, steps=steps))[1].endswith(
        "In 2 of 200 ticks the plant got the safe action instead of the policy's."
    )


def test_an_episode_without_a_step_is_worth_nothing(bench, explain, program):
    (episode,) = play(bench, program.act, [2])
    assert explain(msgspec.structs.replace(episode, steps=()))[0] == 0.0


def test_it_ships_with_a_specification_without_mistakes():
    spec, _ = load_agent(find("pendulum"))
    assert (spec.agent.name, spec.environment.kind) == ("pendulum", "gymnasium")
