"""A data set as an environment: an episode is one case, its observation the input, its action the answer.

The reference goes to feedback.py, in the info of the episode's only step; the policy never gets it. Episodes of pairs are run on the
validation cases, all others on the training cases, so that what is promoted was decided on cases that no optimizer has seen.
The seed picks the case: both halves of a pair meet the same one.
"""

import asyncio
from pathlib import Path

from agentd.cases import Split, read_cases, split
from agentd.clock import Clock
from agentd.environments.contract import Transition
from agentd.environments.inprocess import InProcessDevice, InProcessEnvironment
from agentd.errors import PlantError, SpecError
from agentd.records import Purpose, Space, Value
from agentd.spec import DatasetSection


class DatasetDevice(InProcessDevice):
    """Asks one case after the other."""

    def __init__(self, id: str, cases: Split, clock: Clock) -> None:  # noqa: A002 - the contract's name
        super().__init__(id)
        self._cases = cases
        self._clock = clock
        self._turn = 0
        self._case = cases.deciding[0]

    async def reset(self, episode: str, seed: int | None, max_steps: int, purpose: Purpose = Purpose.NORMAL) -> Transition:  # noqa: ARG002 - a case has one step
        """Ask the case that `seed` picks, or the next one in turn."""
        cases = self._cases.deciding if purpose is Purpose.PAIR else self._cases.train
        self._turn += 1
        self._case = cases[(self._turn if seed is None else seed) % len(cases)]
        return Transition(observation=self._case.input, received_at=self._clock.monotonic())

    async def step(self, action: Value, *, revision: str, safe: bool) -> Transition:  # noqa: ARG002 - the answer ends the episode, whatever it is
        """Take the answer. There is no observation after it."""
        await asyncio.sleep(0)  # other devices, the daemon and the clock get their turn
        info = {"case": self._case.id, "reference": self._case.reference}
        return Transition(observation=None, terminated=True, info=info, tick=1, received_at=self._clock.monotonic())


def make_dataset(section: DatasetSection, folder: Path, *, devices: int, spaces: tuple[Space, Space], clock: Clock) -> InProcessEnvironment:
    """`devices` readers of the data set in `folder`, named `reader-1`, ... Raises PlantError when it can't be read."""
    try:
        cases = read_cases(folder / section.path, input_key=section.input, reference_key=section.reference)
    except SpecError as error:
        raise PlantError(f"the data set can't be read: {error}") from error
    parts = split(cases, section.validation)
    readers = [DatasetDevice(f"reader-{number}", parts, clock) for number in range(1, devices + 1)]
    return InProcessEnvironment(readers, spaces, None)
