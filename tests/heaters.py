"""Heaters behind MQTT, played in the test's own process, and an agent that drives them: the smallest fleet that can be right or wrong."""

import asyncio
import contextlib

from agentd.device import Device

AGENT = """
schema = 1
[agent]
name = "heaters"
entrypoint = "controller:Heater"
mode = "release"
[environment]
kind = "mqtt"
max_steps = 3
episode_interval = 1.5 # of rest, unless there is a pair to run
[environment.mqtt]
deadline_ms = 2000
[environment.safe_action]
value = 0.0
[environment.action_space]
low = -1.0
high = 1.0
[environment.observation_space]
low = -10.0
high = 10.0
shape = [2]
[[metrics]]
name = "score"
range = [0.0, 3.0]
[optimizer]
trigger = "manual"
[release]
ramp = [0.05, 0.25, 0.5]
step_pairs = 1
stratify = ["site"]
max_pairs = 1000
prune = { after_pairs = 1000 }
[watch]
burn_in = 1000
[sandbox]
step_timeout = "10s"
"""

CONTROLLER = '''
from agentd.trace import bundle, model, node

@model
class Heater:
    def __init__(self):
        self.gain = node(0.5, trainable=True)

    def act(self, observation):
        return self.power(observation, self.gain)

    @bundle()
    def power(self, observation, gain):
        """Power by the wanted temperature; a worn heater (second number) makes any other gain than 0.5 much too hot."""
        wanted, worn = observation
        return gain * wanted + 50.0 * worn * (gain - 0.5)
'''


class Heater:
    """A device that is happiest with a power of 1; `worn` from the operator's point of view: not seen before the next observation."""

    def __init__(self, broker: str, name: str, site: str, begin_after: float | None) -> None:
        self.name = name
        self.worn = 0.0
        self.log = []
        self.device = Device(
            broker,
            name,
            agent="heaters",
            on_reset=lambda seed: [1.0, self.worn],
            on_step=lambda action: ([1.0, self.worn], 1.0 - abs(1.0 - action) / 2.0, False, False, {}),
            fallback=0.0,
            action_timeout=20.0 if begin_after is None else 2.0,
            begin_after=begin_after,
            max_steps=3,
            step_interval=0.01,
            log=self.log.append,
            labels={"site": site},
        )

    def ran(self, revision: str) -> bool:
        return any(applied.revision == revision for applied in self.log)

    def sources(self) -> set[str]:
        return {applied.source for applied in self.log}


@contextlib.asynccontextmanager
async def fleet_of(broker, count, *, begin_after=None):
    """So many heaters, a fifth of them in the cellar; and the way to add one."""
    heaters = {}
    async with asyncio.TaskGroup() as tasks:

        def add(name, site):
            heaters[name] = heater = Heater(broker, name, site, begin_after)
            tasks.create_task(heater.device.run(), name=name)

        for number in range(count):
            add(f"heater-{number}", "cellar" if number % 5 == 0 else "roof")
        yield heaters, add
        for heater in heaters.values():
            heater.device.stop()


async def conduct(hosted, count, gain, agent=AGENT, **files):
    """A release on a fleet that is there; its id. `files` are further modules of the agent (`feedback="..."`)."""
    hosted.write_agent("heaters", agent, controller=CONTROLLER, **files)
    await hosted.start()

    async def ready():
        devices = (await hosted.agent("heaters"))["devices"]
        return len(devices) == count and set(devices.values()) == {"ready"}

    await hosted.until(ready)
    return (await hosted.client.submit("heaters", {"gain": gain}))["id"]
