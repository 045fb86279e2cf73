"""Times and paces of `[environment]`: what doesn't fit together is told, and where."""

import pytest

from agentd.errors import SpecError
from agentd.runners.control import _policy_deadline
from agentd.spec import AgentSpec, load_agent

AGENT = """
schema = 1
[agent]
name = "arm"
entrypoint = "controller:Arm"
[environment]
kind = "mqtt"
action_space = {{ low = -1.0, high = 1.0 }}
{environment}
[environment.mqtt]
{mqtt}
[environment.safe_action]
value = 0.0
{safe_action}
"""
PROGRAM = "class Arm:\n    def act(self, observation):\n        return 0.0\n\ndef brake(observation):\n    return 0.0\n"


@pytest.fixture
def load(tmp_path):
    def load(environment="", mqtt="", safe_action=""):
        (tmp_path / "controller.py").write_text(PROGRAM)
        (tmp_path / "agent.toml").write_text(AGENT.format(environment=environment, mqtt=mqtt, safe_action=safe_action))
        return load_agent(tmp_path)[0]

    return load


@pytest.mark.parametrize(
    ("tables", "key", "words"),
    [
        ({"mqtt": 'pace = "device"\nrate_hz = 50'}, "environment.mqtt.rate_hz", "not together with pace"),
        ({"mqtt": "rate_hz = 50\ndeadline_ms = 21"}, "environment.mqtt.deadline_ms", "a tick, which is 20 ms"),
        ({"mqtt": "dead_man_ms = 6000"}, "environment.mqtt.dead_man_ms", "not be longer than observation_timeout"),
        ({"mqtt": "episode_ticks = 500", "environment": "max_steps = 500"}, "environment.max_steps", "has no last step"),
        ({"mqtt": "deadline_ms = 3", "safe_action": 'entrypoint = "controller:brake"'}, "environment.safe_action.deadline_ms", "half of"),
        ({"safe_action": 'entrypoint = "controller:halt"'}, "environment.safe_action.entrypoint", "halt"),
        ({"mqtt": "episode_ticks = 0"}, "environment.mqtt.episode_ticks", "1"),
    ],
)
def test_what_does_not_fit_together_is_told_with_its_key(load, tables, key, words):
    with pytest.raises(SpecError) as raised:
        load(**tables)
    [mistake] = raised.value.mistakes
    assert mistake.key == key
    assert words in mistake.expected


@pytest.mark.parametrize(
    ("tables", "milliseconds"),
    [
        ({}, 50.0),
        ({"mqtt": "rate_hz = 100"}, 10.0),
        ({"mqtt": "rate_hz = 100\ndeadline_ms = 8"}, 8.0),
        ({"mqtt": "deadline_ms = 10", "safe_action": 'entrypoint = "controller:brake"'}, 8.0),
        ({"mqtt": "rate_hz = 100", "safe_action": 'entrypoint = "controller:brake"\ndeadline_ms = 4'}, 6.0),
    ],
)
def test_a_policy_gets_what_the_tick_and_the_brake_leave_it(load, tables, milliseconds):
    assert _policy_deadline(load(**tables)) == pytest.approx(milliseconds / 1000.0)


def test_a_runner_reads_what_the_daemon_read(load):
    spec = load(mqtt="rate_hz = 100\nepisode_ticks = 50\nrealtime = true", safe_action='entrypoint = "controller:brake"')
    assert AgentSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
