"""From an agent's specification to its environment. Only the module of its kind is imported."""
# ruff: noqa: PLC0415 - a runner of Gymnasium environments needs no MQTT, one of MQTT devices no Gymnasium

import random
from pathlib import Path

from agentd.clock import Clock
from agentd.environment_spec import EnvironmentSection
from agentd.environments.contract import Environment
from agentd.environments.spaces import fit
from agentd.errors import PlantError
from agentd.records import Space, Value
from agentd.spec import AgentSpec, EnvironmentKind, parse_duration, space_record


def make_environment(spec: AgentSpec, *, session: str, broker: str | None, clock: Clock, generator: random.Random) -> Environment:
    """The environment that `spec` declares, not yet entered. Raises PlantError when it can't be made.

    `session` is this runner's life; `broker` the daemon's MQTT address, used where the spec names none.
    """
    section = spec.environment
    safe_action = section.safe_action.value if section.safe_action is not None else None
    if section.kind is EnvironmentKind.GYMNASIUM:
        if section.id is None:
            raise PlantError("[environment] id is missing: the name of a Gymnasium environment")
        from agentd.environments.gymnasium import GymnasiumEnvironment

        return GymnasiumEnvironment(
            section.id,
            args=section.args,
            devices=section.devices,
            max_steps=section.max_steps,
            seed_with=section.seed_with,
            safe_action=safe_action,
            clock=clock,
        )
    spaces = (space_record(section.observation_space), space_record(section.action_space))
    if section.kind is EnvironmentKind.HTTP:
        from agentd.environments.http import HttpEnvironment

        return HttpEnvironment(section, spaces, step_timeout=parse_duration(spec.sandbox.step_timeout), clock=clock, generator=generator)
    if section.kind is not EnvironmentKind.MQTT:
        return _of_this_folder(section, spaces, safe_action, clock)
    address = section.mqtt.broker or broker
    if address is None:
        raise PlantError("no MQTT broker: set [environment.mqtt] broker, or the daemon's")
    try:
        safe_action = fit(spaces[1], safe_action)
    except ValueError as error:
        raise PlantError(f"[environment.safe_action] value: {error}") from error
    from agentd.environments.mqtt_link import LinkOptions

    options = LinkOptions(
        agent=spec.agent.name,
        session=session,
        broker=address,
        settings=section.mqtt,
        spaces=spaces,
        safe_action=safe_action,
        clock=clock,
        generator=generator,
    )
    if section.mqtt.mapping is not None:
        from agentd.environments.mapped import MappedEnvironment
        from agentd.environments.mapping import Mapping

        return MappedEnvironment(Mapping(section.mqtt.mapping, spaces[1]), **options)
    from agentd.environments.mqtt import MqttEnvironment

    return MqttEnvironment(**options)


def _of_this_folder(section: EnvironmentSection, spaces: tuple[Space, Space], safe_action: Value, clock: Clock) -> Environment:
    if section.kind is EnvironmentKind.DATASET:
        if section.dataset is None:
            raise PlantError("[environment.dataset] is missing: the file with the cases")
        from agentd.environments.dataset import make_dataset

        return make_dataset(section.dataset, Path(section.folder), devices=section.devices, spaces=spaces, clock=clock)
    if section.entrypoint is None:
        raise PlantError("[environment] entrypoint is missing: a class or a function of the agent's folder")
    from agentd.environments.python import make_python

    return make_python(
        section.entrypoint,
        Path(section.folder),
        args=section.args,
        devices=section.devices,
        spaces=spaces,
        safe_action=safe_action,
        clock=clock,
    )
