"""Windows: the time in which an episode may be judged after it has ended. No clock and no I/O: times come in, records go out.

    OPEN -> JUDGED -> [WEIGHED ->] ENTERED          by an answer, or by silence once the window has closed

An episode enters each test once, and in its turn: the test of its release when it is judged and all that ended before it in that release
have been weighed, the watch when it is judged and all before it have entered. The order is what keeps the tests honest. If each entered as
soon as somebody answered, a candidate whose users praise at once and complain days later would be promoted on its praise; in order, what
the tests have seen at any moment depends on nobody's speed. Where everybody answers nothing waits for long, and nothing ever waits for
longer than one window.

The clock decides, not whoever looks first: an answer that comes when the window has closed is late, even if nobody has closed it yet.
"""

import itertools
from collections.abc import Iterable, Iterator

import msgspec

from agentd.errors import FeedbackRefused
from agentd.records import Episode, Feedback, Metric, Outcome, PairPlan, Single, Window, WindowState


def begin(
    episode: Episode, plan: PairPlan | None, *, seconds: float, regime: int = 0, feedback: Feedback | None = None, guardrail: str = ""
) -> Window:
    """The window of an episode that has ended. `feedback`: it needs no answer (the policy's own fault), but waits for its turn, too."""
    ended_at = episode.started_at + episode.duration
    window = Window(
        episode=episode.id,
        agent=episode.agent,
        revision=episode.revision,
        role=episode.role,
        purpose=episode.purpose,
        outcome=episode.outcome,
        ended_at=ended_at,
        closes_at=ended_at + seconds,
        regime=regime,
        guardrail=guardrail,
    )
    if plan is not None and plan.probability is not None:
        window = msgspec.structs.replace(window, plan=plan.id, release=plan.release, plant=plan.device, probability=plan.probability)
    return window if feedback is None else _judged(window, feedback)


def answer(window: Window, feedback: Feedback, *, at: float) -> Window:
    """The window with its answer. Raises FeedbackRefused where it has one already, or is closed (`is_closed`)."""
    if window.feedback is not None:
        raise FeedbackRefused(f"episode {window.episode} has its feedback already")
    if is_closed(window, at):
        raise FeedbackRefused(f"the window of episode {window.episode} is closed")
    return _judged(window, feedback)


def _judged(window: Window, feedback: Feedback) -> Window:
    return msgspec.structs.replace(window, state=WindowState.JUDGED, feedback=msgspec.structs.replace(feedback, text=""))


def close(window: Window, metric: Metric, silent_score: float) -> tuple[Window, Feedback]:
    """The window that nobody answered in, judged by `silent_score` (in the range of `metric`), and that feedback."""
    seconds = window.closes_at - window.ended_at
    feedback = Feedback(
        episode=window.episode,
        score=silent_score,
        normalised=metric.normalised(silent_score),
        text=f"Nobody answered within {seconds:g} s.",
        silent=True,
    )
    return _judged(window, feedback), feedback


def is_closed(window: Window, at: float) -> bool:
    """Whether an answer would come too late."""
    return at >= window.closes_at


class Waiting:
    """The windows of one agent that have not entered, oldest first, and whose turn it is."""

    def __init__(self, windows: Iterable[Window] = ()) -> None:
        self._all: dict[str, Window] = {}
        self._unweighed: dict[str, dict[str, None]] = {}
        """By release, the episodes that it has yet to see, in order."""
        for window in windows:
            self.put(window)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Window]:
        return iter(self._all.values())

    def get(self, episode: str) -> Window | None:
        """The window of an episode, if it waits."""
        return self._all.get(episode)

    def put(self, window: Window) -> None:
        """Take a window in as the newest, or in its next state in its old place; one that has entered is let go."""
        if window.state is WindowState.ENTERED:
            self._all.pop(window.episode, None)
        else:
            self._all[window.episode] = window
        if window.release and window.state in _UNWEIGHED:
            self._unweighed.setdefault(window.release, {})[window.episode] = None
        elif window.release in self._unweighed:
            self._unweighed[window.release].pop(window.episode, None)
            if not self._unweighed[window.release]:
                del self._unweighed[window.release]

    def of(self, release: str) -> list[Window]:
        """The windows that a release has yet to see, oldest first."""
        return [self._all[episode] for episode in self._unweighed.get(release, ())]

    def count(self, release: str) -> int:
        """How many these are."""
        return len(self._unweighed.get(release, ()))

    def due(self, at: float) -> Window | None:
        """The next one whose turn it is: the first of a release that is judged or closed, or the first of all."""
        return next((window for window in self._heads() if window.feedback is not None or is_closed(window, at)), None)

    def next_close(self) -> float | None:
        """When it will be somebody's turn even if nobody answers; None where nobody waits."""
        return min((window.closes_at for window in self._heads()), default=None)

    def _heads(self) -> Iterator[Window]:
        for episodes in self._unweighed.values():
            yield self._all[next(iter(episodes))]
        yield from itertools.islice(self._all.values(), 1)


_UNWEIGHED = frozenset({WindowState.OPEN, WindowState.JUDGED})


def evidence(window: Window, *, metrics: Iterable[Metric] = (), at: float) -> Single | None:
    """What a window says of its release's candidate; None for an episode that was run for no release.

    `metrics` are the further ones. Like the score of an aborted episode, those of one that nobody answered are the worst; of a window that
    is not judged yet only the guardrails count (agentd.release.machine.foresee).
    """
    if window.probability is None:
        return None
    feedback = window.feedback
    answered = feedback is not None and not feedback.silent
    return Single(
        id=window.plan,
        release=window.release,
        device=window.plant,
        role=window.role,
        probability=window.probability,
        score=feedback.normalised if feedback is not None and answered else None,
        aborted=window.outcome is Outcome.ABORTED,
        guardrail=window.guardrail,
        at=at,
        metrics={metric.name: _further(metric, window) for metric in metrics},
    )


def _further(metric: Metric, window: Window) -> float:
    feedback = window.feedback
    if feedback is None or feedback.silent or window.outcome is not Outcome.FINISHED:
        return 0.0
    return metric.normalised(feedback.metrics[metric.name])
