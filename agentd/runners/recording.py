"""What the runner writes down of an episode while it lasts."""

import msgspec

from agentd.clock import Clock
from agentd.environments import Transition
from agentd.records import Episode, Exchange, Outcome, Purpose, Role, Step, Value

MAX_ERROR = 4000
MAX_EXCHANGED = 4 * 1024 * 1024
"""Characters of what was asked of models in an episode."""
IDLE = frozenset({"paused", "latched"})
"""Safe actions that say nothing of the revision that was to drive."""


class Recording:
    """An episode in the making. Steps are numbered from the recording's first observation."""

    def __init__(
        self,
        id: str,  # noqa: A002 - the record's name
        *,
        agent: str,
        device: str,
        revision: str,
        role: Role,
        purpose: Purpose,
        session: str,
        clock: Clock,
        seed: int | None = None,
        pair: str | None = None,
        instruction: str = "",
    ) -> None:
        self.id = id
        self.device = device
        self.revision = revision
        self.role = role
        self.purpose = purpose
        self.pair = pair
        self.seed = seed
        self.instruction = instruction
        self.misses = 0
        self.reason = ""
        self.error = ""
        self.state: Value = None
        self._agent = agent
        self._session = session
        self._clock = clock
        self._started_at = clock.time()
        self._began = clock.monotonic()
        self._duration = 0.0
        self._steps: list[Step] = []
        self._open: tuple[Value, int, Value, str | None, float, tuple[Exchange, ...]] | None = None
        """Observation, tick, action, safe, latency and exchanges of the answer of which nothing has come yet."""
        self._exchanged = 0
        self._final: Value = None
        self._driven = False
        self.has_acted = False
        """Whether the policy gave any of its actions."""

    def answered(
        self, observation: Transition, tick: int, action: Value, safe: str | None, latency: float, asked: tuple[Exchange, ...] = ()
    ) -> None:
        """Note what was answered to an observation, before it is known what comes of it. `latency` in seconds.

        `asked`: of models, meanwhile.
        """
        self._settle()
        self._driven = self._driven or safe not in IDLE
        self.has_acted = self.has_acted or safe is None
        self._open = (observation.observation, tick, action, safe, latency, self._bounded(asked) if asked else ())

    def followed(self, transition: Transition) -> None:
        """Note what came of the last answer."""
        self._settle(transition)
        self._final = transition.observation

    def _settle(self, transition: Transition | None = None) -> None:
        """Turn the last answer into a step, with what came of it if anything did."""
        if self._open is None:
            return
        (observation, tick, action, safe, latency, asked), self._open = self._open, None
        if transition is None:
            self._steps.append(Step(tick=tick, observation=observation, action=action, safe=safe, latency=latency, exchanges=asked))
            return
        self._steps.append(
            Step(
                tick=tick,
                observation=observation,
                action=action,
                reward=transition.reward,
                terminated=transition.terminated,
                truncated=transition.truncated,
                info=transition.info,
                safe="fallback" if transition.fallback else safe,
                latency=latency,
                exchanges=asked,
            )
        )

    def _bounded(self, asked: tuple[Exchange, ...]) -> tuple[Exchange, ...]:
        """The exchanges as they are, as long as the episode has room for them; then what they cost, without their words."""
        kept = []
        for exchange in asked:
            self._exchanged += len(exchange.answer) + sum(len(text) for _, text in exchange.messages)
            whole = self._exchanged <= MAX_EXCHANGED
            kept.append(exchange if whole else msgspec.structs.replace(exchange, key="", messages=(), answer=""))
        return tuple(kept)

    @property
    def ticks(self) -> int:
        """How many observations have been answered."""
        return len(self._steps) + (self._open is not None)

    @property
    def is_idle(self) -> bool:
        """Whether nobody was asked at any of its ticks."""
        return not self._driven

    @property
    def final_observation(self) -> Value:
        """The last observation so far."""
        return self._final

    def blame(self, reason: str, error: str) -> None:
        """Note the first thing that went wrong, and its words."""
        if not self.reason:
            self.reason, self.error = reason, error[-MAX_ERROR:]

    def stop(self) -> None:
        """The episode is over; what is left to do for its record is not part of it."""
        self._settle()
        self._duration = self._clock.monotonic() - self._began

    def close(self, outcome: Outcome, trace: bytes | None = None) -> Episode:
        """The finished record of what was stopped."""
        return Episode(
            id=self.id,
            agent=self._agent,
            device=self.device,
            revision=self.revision,
            role=self.role,
            purpose=self.purpose,
            outcome=outcome,
            started_at=self._started_at,
            duration=self._duration,
            steps=tuple(self._steps),
            final_observation=self._final,
            seed=self.seed,
            pair=self.pair,
            reason=self.reason,
            error=self.error,
            instruction=self.instruction,
            session=self._session,
            deadline_misses=self.misses,
            trace=trace,
            state=self.state,
        )
