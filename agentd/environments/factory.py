"""From an agent's specification to its environment."""

import random

from agentd.clock import Clock
from agentd.environments.contract import Environment
from agentd.environments.gymnasium import GymnasiumEnvironment
from agentd.environments.mqtt import MqttEnvironment
from agentd.environments.spaces import fit
from agentd.errors import PlantError
from agentd.spec import AgentSpec, EnvironmentKind, space_record


def make_environment(spec: AgentSpec, *, session: str, broker: str | None, clock: Clock, generator: random.Random) -> Environment:
    """The environment that `spec` declares, not yet entered. Raises PlantError when it can't be made.

    `session` is this runner's life; `broker` the daemon's MQTT address, used where the spec names none.
    """
    section = spec.environment
    safe_action = section.safe_action.value if section.safe_action is not None else None
    if section.kind is EnvironmentKind.GYMNASIUM:
        if section.id is None:
            raise PlantError("[environment] id is missing: the name of a Gymnasium environment")
        return GymnasiumEnvironment(
            section.id, args=section.args, devices=section.devices, max_steps=section.max_steps, safe_action=safe_action, clock=clock
        )
    address = section.mqtt.broker or broker
    if address is None:
        raise PlantError("no MQTT broker: set [environment.mqtt] broker, or the daemon's")
    action_space = space_record(section.action_space)
    try:
        safe_action = fit(action_space, safe_action)
    except ValueError as error:
        raise PlantError(f"[environment.safe_action] value: {error}") from error
    return MqttEnvironment(
        agent=spec.agent.name,
        session=session,
        broker=address,
        settings=section.mqtt,
        spaces=(space_record(section.observation_space), action_space),
        safe_action=safe_action,
        clock=clock,
        generator=generator,
    )
