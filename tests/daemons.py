"""A daemon for tests of one runner: it takes in what the runner tells, and nothing more."""

import asyncio
import collections

from agentd.runners.local import Counted, DevicesChanged, Finished, Happened, Lost


class Daemon:
    """Reads and acknowledges what a runner tells, in the background."""

    def __init__(self, runner) -> None:
        self.runner = runner
        self.episodes = []
        self.events = []
        self.counts = collections.Counter()
        self.devices = {}
        self.unreachable = ""
        self.lost = None
        self._task = asyncio.create_task(self._read())

    async def _read(self):
        while self.lost is None:
            match await self.runner.next():
                case Finished(episode=episode):
                    self.episodes.append(episode)
                    await self.runner.acknowledge(episode.id)
                case Happened(event=event):
                    self.events.append(event)
                case Counted(deltas=deltas):
                    self.counts.update(deltas)
                case DevicesChanged(devices=devices, unreachable=unreachable):
                    self.unreachable = unreachable
                    self.devices = {device.id: device.status for device in devices}
                case Lost(reason=reason):
                    self.lost = reason

    def kinds(self):
        return {event.kind for event in self.events}

    async def aclose(self):
        await self.runner.abandon()
        await self._task


async def serve(runners, spec, broker, program, **options):
    runner = await runners.start(spec, broker=broker.url, **options)
    await runner.load(*program)
    await runner.route(program[1].id)
    return Daemon(runner)


def of(daemon, **wanted):
    return [one for one in daemon.episodes if all(getattr(one, name) == value for name, value in wanted.items())]
