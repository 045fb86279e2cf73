"""The store against a model: whatever is committed, in whatever order, with closing and reopening in between, is read back."""

import asyncio
import tempfile

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from agentd.errors import NotFound, StoreError
from agentd.records import Episode, Event, Pair, Phase, Role, Usage
from agentd.store import SqlStore
from agentd.testing.store.examples import SOURCE, agent_state, episode, feedback, proposal, release, revision

agents = st.sampled_from(["a", "b"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class StoreMachine(RuleBasedStateMachine):
    """Every rule does the same to the store and to dicts in memory, the model."""

    revisions = Bundle("revisions")
    releases = Bundle("releases")

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:///{self.folder.name}/agentd.db"
        self.runner = asyncio.Runner()
        self.store = self.run(SqlStore.open(self.url))
        self.run(self.store.commit(SOURCE))
        self.model_agents = {}
        self.model_revisions = {}
        self.model_releases = {}
        self.model_pairs = {}
        self.model_proposals = {}
        self.model_episodes = {}
        self.model_events = []
        self.model_usage = []

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def teardown(self):
        if hasattr(self, "store"):
            self.run(self.store.aclose())
            self.runner.close()
            self.folder.cleanup()

    @rule(target=revisions, agent=agents, gain=st.integers(0, 5))
    def commit_a_revision(self, agent, gain):
        made = revision(float(gain), agent)
        self.run(self.store.commit(made))
        self.model_revisions.setdefault(made.id, made)
        return made

    @rule(stable=revisions, regime=st.integers(0, 3))
    def commit_an_agent(self, stable, regime):
        state = agent_state(stable, regime=regime)
        self.run(self.store.commit(state))
        self.model_agents[state.name] = state

    @rule(target=releases, candidate=revisions, reference=revisions, number=st.integers(0, 4), phase=st.sampled_from(Phase))
    def commit_a_release_with_its_proposal_and_event(self, candidate, reference, number, phase):
        canary = release(f"r{number}", candidate, reference, phase, proposal=f"p{number}")
        wanted = proposal(f"p{number}", reference, float(number))
        told = Event(kind=f"release.{phase}", at=1.0, agent=canary.agent)
        # The place in a list is that of the first commit, also when the record changes.
        (placed,) = self.run(self.store.commit(told, canary, wanted))
        self.model_events.append(placed)
        self.model_releases[canary.id] = canary
        self.model_proposals[wanted.id] = wanted
        return canary

    @rule(of=releases, number=st.integers(0, 4), score=st.floats(0, 1))
    def commit_a_pair(self, of, number, score):
        pair = Pair(id=f"{of.id}-{number}", release=of.id, device="d", reference=score, candidate=0.5)
        self.run(self.store.commit(pair))
        self.model_pairs[pair.id] = pair

    @rule(
        kinds=st.lists(st.sampled_from(["x.a", "x.b", "y"]), max_size=3),
        agent=agents,
        data=st.dictionaries(st.text(max_size=5), plain, max_size=3),
    )
    def commit_events_and_usage(self, kinds, agent, data):
        row = Usage(agent=agent, purpose="propose", model="m", outcome="ok", at=float(len(kinds)))
        placed = self.run(self.store.commit(row, *(Event(kind=kind, at=1.0, agent=agent, data=data) for kind in kinds)))
        self.model_usage.append(row)
        self.model_events.extend(placed)

    @rule(gain=st.integers(0, 5), stable=revisions)
    def a_commit_that_refers_to_nothing_changes_nothing(self, gain, stable):
        unknown = release("dangling", revision(1000.0 + gain), stable)
        try:
            self.run(self.store.commit(Event(kind="never", at=1.0), agent_state(stable, regime=99), unknown))
        except StoreError:
            return
        raise AssertionError("a dangling reference was accepted")

    @rule(
        of=revisions,
        number=st.integers(0, 5),
        observation=plain,
        trace=st.none() | st.binary(max_size=2000),
        score=st.none() | st.floats(0, 1),
    )
    def add_an_episode(self, of, number, observation, trace, score):
        ran = episode(f"e{number}", of, final_observation=observation, trace=trace, role=Role.CANDIDATE)
        told = None if score is None else feedback(ran.id, score)
        self.run(self.store.add_episode(ran, told, regime=number))
        _, earlier_trace, earlier_told = self.model_episodes.get(ran.id, (None, None, None))
        self.model_episodes[ran.id] = (ran, trace if trace is not None else earlier_trace, told or earlier_told)

    @rule()
    def close_and_open(self):
        self.run(self.store.aclose())
        self.store = self.run(SqlStore.open(self.url))

    @invariant()
    def everything_is_read_back(self):
        if hasattr(self, "store"):
            self.run(self._compare())

    async def _compare(self):
        store = self.store
        assert {state.name: state for state in await store.agents()} == self.model_agents
        for name in ("a", "b"):
            made = [one for one in self.model_revisions.values() if one.agent == name]
            assert list(reversed(await store.revisions(name))) == made
            wanted = {key: one for key, one in self.model_proposals.items() if one.agent == name}
            assert {one.id: one for one in await store.proposals(name)} == wanted
            found = {one.id: one for one in await store.releases(name)}
            assert found == {key: one for key, one in self.model_releases.items() if one.agent == name}
            assert await store.usage(name) == tuple(row for row in self.model_usage if row.agent == name)
            assert await store.events(name) == tuple(event for event in self.model_events if event.agent == name)
            fates = {entry.proposal: entry.fate for entry in await store.memory(name, 100) if entry.proposal}
            expected = {one.id: self.model_releases[f"r{one.id[1:]}"].phase for one in self.model_proposals.values() if one.agent == name}
            assert fates == expected
        for key in self.model_releases:
            assert {pair.id: pair for pair in await store.pairs(key)} == {k: v for k, v in self.model_pairs.items() if v.release == key}
        assert await store.events() == tuple(self.model_events)
        report = await store.verify_chain()
        assert (report.intact, report.events) == (True, len(self.model_events))
        await store.flush()
        for key, (ran, trace, told) in self.model_episodes.items():
            stored: Episode = await store.episode(key)
            assert stored == msgspec.structs.replace(ran, trace=None)
            assert await store.trace(key) == trace
            assert await store.feedback(key) == told
        try:
            await store.release("dangling")
        except NotFound:
            pass
        else:
            raise AssertionError("half a commit was written")


TestStoreAgainstItsModel = StoreMachine.TestCase
TestStoreAgainstItsModel.settings = settings(
    max_examples=settings.default.max_examples // 6,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
