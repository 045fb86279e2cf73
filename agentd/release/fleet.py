"""Which devices of a fleet a release may touch: whole ones, in the steps of its ramp, the same ones for its whole life.

A step exposes a share of the devices that are ready. Which ones is drawn by the release's id, evenly over the groups of devices that have
the same values for the labels of `stratify`. A step is over once each exposed device that is there has given `step_pairs` pairs; the next
one comes only while the mean difference is not below what pruning asks for. A device that was exposed stays so, also when it leaves and
comes back; one that joins is drawn like the others, with the next step. The devices that are not exposed never enter a test.

A guardrail on one device says little about the others: that device goes back to stable alone. On a second one, or where no other is
exposed that could show the contrary, it is the candidate, and the release ends (agentd.release.machine).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from agentd.records import Exposure, Goal, Release, ReleaseSettings

Labels = Mapping[str, str]


def exposed(release: Release) -> tuple[str, ...]:
    """The devices that may run pairs, whether they are there or not."""
    return tuple(device for device, exposure in release.fleet.items() if not exposure.withdrawn)


def withdrawn(release: Release) -> tuple[str, ...]:
    """The devices that went back to stable alone."""
    return tuple(device for device, exposure in release.fleet.items() if exposure.withdrawn)


def is_covered(release: Release) -> bool:
    """Whether the last step is over, so that a promotion doesn't leap from a few devices to all. True where no fleet is known."""
    return not release.fleet or release.step >= len(_ramp(release.settings))


def widen(release: Release, ready: Mapping[str, Labels], *, over: bool = False) -> Release:
    """The release with the devices that it may touch now: the same object unless a step begins or the last one is over.

    With `over` an operator says that the step is over, whatever it has shown.

    `ready` are the devices that are there, with their labels. Before a step is over nobody takes the place of a device that left or was
    withdrawn, unless none is there any more: a candidate that drives devices away shall not be given more of them.
    """
    gone = set(withdrawn(release))
    staying = exposed(release)
    present = [device for device in staying if device in ready]
    usable = {device: labels for device, labels in ready.items() if device not in gone}
    if not usable or (present and not over and not _is_over(release, present)):
        return release
    size = len(usable.keys() | set(staying))
    counts = [max(1, int(share * size + 1e-9)) for share in _ramp(release.settings)]  # 0.29 * 100 is a hair less than 29
    wanted = next((count for count in counts if count > len(present)), len(present))
    added = _drawn(release, usable, wanted - len(present))
    reached = len(present) + len(added)
    step = max((index for index, count in enumerate(counts) if count <= reached), default=0)
    if not added:
        step = len(counts) if step == len(counts) - 1 else max(step, release.step)
        return release if step == release.step else msgspec.structs.replace(release, step=step)
    fleet = release.fleet | {device: Exposure(step=step) for device in added}
    return msgspec.structs.replace(release, step=step, fleet=fleet)


def count_pair(release: Release, device: str) -> dict[str, Exposure]:
    """The fleet after one more pair, or single episode, on `device`."""
    known = release.fleet.get(device)
    if known is None:
        return release.fleet
    return release.fleet | {device: msgspec.structs.replace(known, pairs=known.pairs + 1)}


def goes_alone(release: Release, device: str) -> bool:
    """Whether a violated guardrail is the device's own affair: another one is exposed, and none but this one was withdrawn before."""
    others = [exposure for other, exposure in release.fleet.items() if other != device]
    return device in release.fleet and bool(others) and not any(exposure.withdrawn for exposure in others)


def withdraw(release: Release, device: str, guardrail: str) -> Release:
    """The release without `device`, which goes back to stable at once."""
    fleet = release.fleet | {device: msgspec.structs.replace(release.fleet[device], withdrawn=guardrail)}
    return msgspec.structs.replace(release, fleet=fleet)


def summary(release: Release) -> str:
    """Where on its ramp the release is, for people: "step 2 of 3: 5 devices, 1 withdrawn"; empty before a device was exposed."""
    if not release.fleet:
        return ""
    steps, there, gone = len(_ramp(release.settings)), len(exposed(release)), len(withdrawn(release))
    done = "its only step done" if steps == 1 else f"all {steps} steps done"
    where = done if release.step >= steps else f"step {release.step + 1} of {steps}"
    return f"{where}: {there} device{'' if there == 1 else 's'}" + (f", {gone} withdrawn" if gone else "")


def prune_below(settings: ReleaseSettings) -> float:
    """The mean difference below which a candidate is hopeless, and is shown to no further device."""
    return settings.prune_below - (settings.margin if settings.goal is Goal.NO_WORSE else 0.0)


def _ramp(settings: ReleaseSettings) -> tuple[float, ...]:
    return settings.ramp or (0.0,)  # one step, one device


def _is_over(release: Release, present: Iterable[str]) -> bool:
    """Whether the devices that are there have shown enough for more of them to follow."""
    difference = release.difference
    promising = difference is None or difference >= prune_below(release.settings)
    return promising and all(release.fleet[device].pairs >= release.settings.step_pairs for device in present)


def _drawn(release: Release, ready: Mapping[str, Labels], count: int) -> list[str]:
    """`count` devices that were not exposed yet, each from the group that has the smallest share of its devices exposed."""

    def chance(name: object) -> bytes:
        return hashlib.sha256(f"{release.id}/{name}".encode()).digest()

    group = {device: tuple(labels.get(label, "") for label in release.settings.stratify) for device, labels in ready.items()}
    size = Counter(group.values())
    taken = Counter(group[device] for device in release.fleet if device in group)
    left = sorted((device for device in ready if device not in release.fleet), key=chance)
    drawn: list[str] = []
    while left and len(drawn) < count:
        best = min({group[device] for device in left}, key=lambda name: ((taken[name] + 0.5) / size[name], chance(name)))
        device = next(device for device in left if group[device] == best)
        left.remove(device)
        drawn.append(device)
        taken[best] += 1
    return drawn
