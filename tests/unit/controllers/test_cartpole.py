"""The shipped cart-pole controller, the changes that break it, and what its feedback says."""

import re
import statistics

import gymnasium
import msgspec
import numpy as np
import pytest
from worlds import RETUNED

from agentd.environments.changes import CARTPOLE_CHANGES, CHANGES, ChangingPlant
from agentd.ready import find
from agentd.records import Kind
from agentd.spec import load_agent
from agentd.trace import Node
from agentd.trace.parameters import assign, describe, find_parameters


@pytest.fixture
def program(bench):
    return bench.load("cartpole", "controller").CartPole()


def acting(program):
    def act(seen):
        chosen = program.act(seen)
        return chosen.data if isinstance(chosen, Node) else chosen

    return act


class TestTheShippedNumbers:
    def test_balance_every_episode_with_a_score_that_hardly_varies(self, cartpole, program):
        episodes = cartpole.episodes(acting(program), seeds=range(20))
        scores = [cartpole.explain(episode)[0] for episode in episodes]
        assert {len(episode.steps) for episode in episodes} == {200}
        assert statistics.mean(scores) > 0.95
        assert statistics.stdev(scores) < 0.03

    @pytest.mark.parametrize("world", CARTPOLE_CHANGES)
    def test_are_broken_by_each_change(self, cartpole, program, world):
        assert statistics.mean(cartpole.scores(acting(program), world)) < 0.3

    @pytest.mark.parametrize("world", CARTPOLE_CHANGES)
    def test_can_be_replaced_by_others_in_the_same_law_after_each_change(self, cartpole, retuned_code, world):
        assert statistics.mean(cartpole.scores(retuned_code(world), world)) > 0.9


class TestTheProgram:
    def test_has_its_law_as_the_only_parameter(self, program):
        (path,) = find_parameters(program)
        parameter = describe(path, find_parameters(program)[path])
        assert (path, parameter.kind) == ("act", Kind.CODE)
        assert "lean = 0.5 * position" in parameter.default
        assert "def act(self, observation" in parameter.signature

    @pytest.mark.parametrize("world", CARTPOLE_CHANGES)
    def test_recovers_when_the_optimizer_assigns_other_numbers(self, cartpole, program, retuned_code, world):
        assign(find_parameters(program)["act"], retuned_code(world))
        assert statistics.mean(cartpole.scores(acting(program), world, seeds=range(5))) > 0.9

    def test_acts_alike_on_lists_and_on_arrays(self, program):
        act = acting(program)
        for readings in np.random.default_rng(1).normal(scale=0.1, size=(20, 4)).astype(np.float32):
            assert act(readings) == act([float(value) for value in readings])

    def test_ships_with_a_specification_without_mistakes(self):
        spec, source = load_agent(find("cartpole"))
        assert spec.agent.name == "cartpole"
        assert set(source.files) == {"controller.py", "feedback.py"}

    def test_runs_in_gymnasium_after_the_change_that_its_readme_tells(self, tmp_path):
        folder = find("cartpole")
        (readme_section,) = re.findall(r"```toml\n(\[environment\]\n.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        written = (folder / "agent.toml").read_text()
        changed = re.sub(r"\[environment\]\nkind = \"mqtt\".*\n", readme_section, written)
        assert changed != written
        for path in folder.glob("*.py"):
            (tmp_path / path.name).write_text(path.read_text())
        (tmp_path / "agent.toml").write_text(changed)
        spec, _ = load_agent(tmp_path)
        assert (spec.environment.kind, spec.environment.id) == ("gymnasium", "CartPole-v1")


class TestChanges:
    def test_are_listed_for_the_plant_that_they_are_about(self):
        assert CHANGES == {"CartPole-v1": CARTPOLE_CHANGES}
        assert set(CARTPOLE_CHANGES) == set(RETUNED) - {None}

    def test_happen_between_two_steps_of_an_episode(self):
        plant = ChangingPlant(gymnasium.make("CartPole-v1"), CARTPOLE_CHANGES)
        plant.reset(1)
        before, *_ = plant.step(1)
        assert plant.change("flip-motor") is CARTPOLE_CHANGES["flip-motor"]
        after, *_ = plant.step(1)
        assert before[1] > 0  # pushed to the right
        assert after[1] < before[1]  # and back

    def test_that_happen_twice_to_a_sensor_or_motor_are_undone(self):
        twice = ChangingPlant(gymnasium.make("CartPole-v1"), CARTPOLE_CHANGES)
        for name in ("flip-gyro", "flip-gyro", "flip-motor", "flip-motor"):
            twice.change(name)
        never = gymnasium.make("CartPole-v1")
        assert np.array_equal(twice.reset(3), never.reset(seed=3)[0])
        assert np.array_equal(twice.step(1)[0], never.step(1)[0])

    def test_that_are_unknown_change_nothing(self):
        plant = ChangingPlant(gymnasium.make("CartPole-v1"), CARTPOLE_CHANGES)
        with pytest.raises(KeyError):
            plant.change("earthquake")

    @pytest.mark.parametrize("world", CARTPOLE_CHANGES)
    def test_keep_the_readings_inside_the_declared_space(self, cartpole, shipped_code, world):
        space = load_agent(find("cartpole"))[0].environment.observation_space
        for episode in cartpole.episodes(shipped_code, world):
            readings = np.array([*(step.observation for step in episode.steps), episode.final_observation])
            assert (readings >= space.low).all()
            assert (readings <= space.high).all()


class TestTheScore:
    def test_falls_with_the_distance_from_the_centre(self, cartpole, shipped_code):
        off_centre = shipped_code.replace("lean = ", "position -= 0.8\n    lean = ")
        pairs = zip(cartpole.scores(shipped_code), cartpole.scores(off_centre), strict=True)
        assert all(centred > shifted + 0.05 for centred, shifted in pairs)

    def test_falls_with_pushes_that_do_not_cancel_out(self, cartpole, shipped_code):
        (episode,) = cartpole.episodes(shipped_code, seeds=[1])
        one_sided = msgspec.structs.replace(
            episode, steps=tuple(msgspec.structs.replace(step, action=int(step.tick % 20 < 10)) for step in episode.steps)
        )
        assert cartpole.explain(one_sided)[0] < cartpole.explain(episode)[0] - 0.08

    def test_stays_in_its_range_whatever_acts(self, cartpole):
        generator = np.random.default_rng(7)
        actors = [lambda _: 0, lambda _: 1, lambda _: int(generator.integers(2)), lambda seen: int(seen[2] > 0)]
        scores = [score for act in actors for score in cartpole.scores(act)]
        assert all(0.0 <= score <= 1.0 for score in scores)

    def test_is_zero_for_an_episode_without_a_step(self, cartpole, shipped_code):
        (episode,) = cartpole.episodes(shipped_code, seeds=[1])
        assert cartpole.explain(msgspec.structs.replace(episode, steps=())) == (0.0, "There was no step to judge.")


class TestTheWords:
    def said(self, cartpole, code, world=None, seed=3):
        (episode,) = cartpole.episodes(code, world, seeds=[seed])
        return cartpole.explain(episode)[1]

    def test_of_a_balanced_episode_tell_where_the_cart_was(self, cartpole, shipped_code):
        assert self.said(cartpole, shipped_code).startswith("Balanced for all 200 steps. The cart was -0.02 m from the centre on average")

    def test_after_the_motor_was_turned_tell_that_pushes_go_with_the_lean_and_make_it_grow(self, cartpole, shipped_code):
        said = self.said(cartpole, shipped_code, "flip-motor")
        assert "Fell to the right at step 9 of 200" in said
        assert "for the last 9 ticks the push had the sign of the lean" in said
        assert "changed by +0.32 rad/s per push to the right" in said

    def test_after_a_sensor_was_turned_tell_that_the_sensors_contradict_each_other(self, cartpole, shipped_code):
        for world in ("flip-gyro", "flip-angle"):
            disagreeing, ticks = re.search(r"In (\d+) of (\d+) ticks", self.said(cartpole, shipped_code, world)).groups()
            assert disagreeing == ticks
        assert "In 0 of 58 ticks" in self.said(cartpole, shipped_code, "long-pole")

    def test_count_only_the_last_ticks_in_which_nothing_changed(self, cartpole):
        always_right = self.said(cartpole, lambda _: 1)
        assert "Fell to the left" in always_right
        ticks = int(re.search(r"for the last (\d+) ticks the push had the opposite sign to the lean", always_right)[1])
        assert 0 < ticks < 12

    def test_name_the_end_of_the_track(self, cartpole, shipped_code):
        drifting = shipped_code.replace("lean = ", "position = -3.0\n    lean = ")
        assert self.said(cartpole, drifting).startswith("Ran off the right end of the track at step")

    def test_count_the_ticks_with_the_safe_action(self, cartpole, shipped_code):
        (episode,) = cartpole.episodes(shipped_code, seeds=[1])
        steps = (*(msgspec.structs.replace(step, safe="deadline") for step in episode.steps[:3]), *episode.steps[3:])
        assert "In 3 of 200 ticks the plant got the safe action" in cartpole.explain(msgspec.structs.replace(episode, steps=steps))[1]
