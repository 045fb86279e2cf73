"""Notices an agent that is up and of no use: no action of it is accepted, its plant waits for a person, or nothing can be judged."""

from collections import Counter
from collections.abc import Container

from agentd.records import Episode, Feedback, Outcome, Role

FAILING_AFTER = 5
"""Episodes in a row."""
NOBODYS = frozenset({"paused", "latched", "dead_man"})
"""Safe actions at ticks at which no policy was asked for one."""
MAX_WORDS = 300


class Failing:
    """Weighs the stable episodes of one agent, in the order in which they are taken in. One good episode ends each trouble."""

    def __init__(self) -> None:
        self._latched: dict[str, str] = {}
        """By device whose safe action has latched, an episode that shows it."""
        self._refused = self._unjudged = 0
        self._refusal = self._failure = ""

    @property
    def trouble(self) -> str:
        """What makes the agent useless, and where to look; empty while nothing does."""
        found = []
        if self._latched:
            devices, episode = ", ".join(sorted(self._latched)), next(reversed(self._latched.values()))
            found.append(f"the safe action of {devices} has latched, until `agentd resume`: `agentd show {episode}`")
        if self._refused >= FAILING_AFTER:
            found.append(f"no action was accepted in its last {self._refused} episodes, the plant gets the safe one: {self._refusal}")
        if self._unjudged >= FAILING_AFTER:
            found.append(f"none of its last {self._unjudged} episodes could be judged, nothing is learned: {self._failure}")
        return "; ".join(found)

    def keep(self, devices: Container[str]) -> None:
        """These are ready: a plant that is gone waits for nobody."""
        self._latched = {device: episode for device, episode in self._latched.items() if device in devices}

    def weigh(self, episode: Episode, feedback: Feedback | None) -> None:
        """Count an episode; one without feedback may still be judged.

        A lost one says nothing of the agent, nor does one in which no policy was asked for an action; but where that was so because the
        safe action has latched, the plant waits for a person.
        """
        if episode.steps and all(step.safe == "latched" for step in episode.steps):
            self._latched.setdefault(episode.device, episode.id)
        elif episode.steps:
            self._latched.pop(episode.device, None)
        if episode.role is not Role.STABLE or episode.outcome is Outcome.LOST:
            return
        reasons = Counter(step.safe for step in episode.steps if step.safe is not None)
        if len(episode.steps) > reasons.total():
            self._refused = 0
        elif episode.outcome is Outcome.ABORTED or reasons.keys() - NOBODYS:
            self._refused += 1
            self._refusal = f"{_why(episode, reasons)}; `agentd show {episode.id}`"
        if feedback is not None and not feedback.failed:
            self._unjudged = 0
        elif feedback is not None:
            self._unjudged += 1
            self._failure = f"{_last_line(feedback.failed)}; `agentd show {episode.id}`"


def _why(episode: Episode, reasons: Counter[str]) -> str:
    counted = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or episode.reason
    words = _last_line(episode.error)
    return f"{counted} ({words})" if words else counted


def _last_line(text: str) -> str:
    """Of a traceback that is the error."""
    lines = text.strip().splitlines()
    return lines[-1].strip()[:MAX_WORDS] if lines else ""
