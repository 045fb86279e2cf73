"""A callable of the agent's folder as an environment."""

import random
import sys
import textwrap

import pytest

from agentd.clock import SystemClock
from agentd.environments import make_environment
from agentd.errors import PlantError, SpecError
from agentd.spec import AgentSpec, load_agent


@pytest.fixture
def make(tmp_path):
    """An environment from the text of plant.py."""

    def make(text, name="Plant", **environment):
        (tmp_path / "plant.py").write_text(textwrap.dedent(text))
        tables = {"kind": "python", "entrypoint": f"plant:{name}", "safe_action": {"value": 0}, "folder": str(tmp_path)}
        spec = AgentSpec.model_validate({"agent": {"name": "a", "entrypoint": "p:P"}, "environment": tables | environment})
        return make_environment(spec, session="s", broker=None, clock=SystemClock(), generator=random.Random(1))

    yield make
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


async def device_of(environment):
    return (await anext(environment.changes())).device


COUNTER = """
    class Plant:
        def __init__(self, start=0):
            self.start = start
        def reset(self, seed):
            self.n = self.start + (seed or 0)
            return self.n
        def step(self, action):
            self.n += action
            return self.n, 0.5, self.n >= 10, {"n": self.n, "words": ["a", object()], "thing": object()}
"""


async def test_a_class_with_reset_and_step_is_a_plant(make):
    device = await device_of(make(COUNTER, args={"start": 2}))
    assert (await device.reset("e", 5, 100)).observation == 7
    first = await device.step(1, revision="r", safe=False)
    assert (first.observation, first.reward, first.last, first.tick) == (8, 0.5, False, 1)
    assert first.info == {"n": 8, "words": ["a"]}, "only what can cross a border"
    assert (await device.step(5, revision="r", safe=False)).terminated


async def test_an_episode_is_cut_at_max_steps(make):
    device = await device_of(make(COUNTER))
    await device.reset("e", 0, 2)
    assert not (await device.step(0, revision="r", safe=False)).last
    assert (await device.step(0, revision="r", safe=False)).truncated


async def test_gymnasiums_forms_and_coroutines_are_understood(make):
    device = await device_of(
        make("""
        class Plant:
            async def reset(self, seed):
                return (1.0, 2.0), {"seed": seed}
            async def step(self, action):
                return [3.0], 1, False, True, {"a": 1}
        """)
    )
    first = await device.reset("e", 4, 10)
    assert (first.observation, first.info) == ([1.0, 2.0], {"seed": 4})
    after = await device.step(0, revision="r", safe=False)
    assert (after.reward, after.terminated, after.truncated, after.info) == (1.0, False, True, {"a": 1})


@pytest.mark.parametrize("body", ["return -abs(action - wanted)", "return -abs(action - wanted), {'wanted': wanted}"])
async def test_a_function_of_the_action_is_an_episode_of_one_step(make, body):
    device = await device_of(make(f"def worth(action, wanted):\n    {body}", "worth", args={"wanted": 3}))
    assert (await device.reset("e", 1, 10)).observation == {}
    after = await device.step(1, revision="r", safe=False)
    assert (after.reward, after.terminated) == (-2.0, True)


async def test_copies_have_plants_of_their_own(make):
    environment = make(COUNTER, devices=2)
    changes = environment.changes()
    one, two = (await anext(changes)).device, (await anext(changes)).device
    await one.reset("e", 1, 10)
    await two.reset("e", 5, 10)
    assert (await one.step(0, revision="r", safe=False)).observation == 1
    assert (one.id, two.id) == ("sim-1", "sim-2")


async def test_a_plant_is_closed_with_its_environment(make, tmp_path):
    environment = make(f"""
        class Plant:
            def reset(self, seed): return 0
            def step(self, action): return 0, 0, True
            def close(self): open({str(tmp_path / "closed")!r}, "w").close()
    """)
    async with environment:
        pass
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class Plant: pass", "has no reset and no step"),
        ("Plant = 3", "is neither a class nor a function"),
        ("def other(action): pass", "can't be loaded: AttributeError"),
        ("1 / 0", "can't be loaded: ZeroDivisionError"),
        ("class Plant:\n    def __init__(self): raise ValueError('no')", "can't be made: ValueError"),
    ],
)
def test_a_plant_that_can_not_be_made_is_said(make, text, expected):
    with pytest.raises(PlantError, match=expected):
        make(text)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("raise KeyError('x')", "step raised KeyError"),
        ("return 3", r"step should return \(observation, reward, terminated\)"),
        ("return 1, 2, False, 4", r"step should return"),
        ("return 1, 'much', False", "the reward should be a number, not 'much'"),
    ],
)
async def test_a_plant_that_raises_or_answers_nonsense_is_its_own_fault(make, step, expected):
    device = await device_of(make(f"class Plant:\n    def reset(self, seed): return 0\n    def step(self, action): {step}"))
    await device.reset("e", 1, 10)
    with pytest.raises(PlantError, match=expected):
        await device.step(0, revision="r", safe=False)


async def test_a_file_with_the_name_of_an_installed_module_takes_nobodys_place(make, tmp_path):
    import json

    (tmp_path / "json.py").write_text("broken = True")
    environment = make("import json\nclass Plant:\n    def reset(self, seed): return json.dumps(1)\n    def step(self, action): pass")
    assert (await (await device_of(environment)).reset("e", 1, 1)).observation == "1"
    assert sys.modules["json"] is json


def test_agent_toml_says_what_is_missing(tmp_path):
    (tmp_path / "agent.toml").write_text(
        '[agent]\nname = "a"\nentrypoint = "p:P"\n[environment]\nkind = "python"\nentrypoint = "plant:Plnt"'
    )
    (tmp_path / "p.py").write_text("class P: pass")
    (tmp_path / "plant.py").write_text("class Plant: pass")
    with pytest.raises(SpecError) as caught:
        load_agent(tmp_path)
    assert {mistake.key: mistake.expected for mistake in caught.value.mistakes} == {
        "environment.safe_action": 'required for kind "python" without an action_space: { value = the action when the policy has none }',
        "environment.entrypoint": 'plant.py has no "Plnt" (a class or a function); did you mean "Plant"?',
    }
