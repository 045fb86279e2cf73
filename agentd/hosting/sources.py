"""An agent's first state, and what becomes of learned values when its author changes the program."""

from collections.abc import Callable, Mapping

from agentd.clock import Clock
from agentd.errors import NotFound
from agentd.hosting.keeper import Keeper
from agentd.records import AgentState, Event, Origin, Parameter, Provenance, Revision, Source, Value, make_revision
from agentd.release import watch
from agentd.spec import AgentSpec
from agentd.store.contract import Store


async def known_or_first(spec: AgentSpec, source: Source, store: Store, clock: Clock, publish: Callable[[Event], None]) -> AgentState:
    """The agent's committed state; for a new agent its first, which is committed here."""
    name, now = spec.agent.name, clock.time()
    await store.commit(source)  # also a barrier: what an earlier life has begun to write is written before anything is read
    try:
        return await store.agent(name)
    except NotFound:
        first = make_revision(name, source.digest, {})
    state = AgentState(
        name=name,
        source=source.digest,
        stable=first.id,
        desired=first.id,
        mode=spec.agent.mode,
        watch=watch.begin(first.id),
        updated_at=now,
    )
    provenance = Provenance(revision=first.id, origin=Origin.SOURCE, at=now, who="author")
    event = Event(kind="agent.added", at=now, agent=name, message=f"{name} is new", data={"revision": first.id})
    for committed in await store.commit(first, provenance, state, event):
        publish(committed)
    return state


def carried_over(
    values: Mapping[str, Value], before: tuple[Parameter, ...], after: tuple[Parameter, ...]
) -> tuple[dict[str, Value], list[str]]:
    """Learned values that a new source takes over, and the paths of those that it doesn't.

    A value carries over where path, kind, signature and the default in the source are unchanged (DESIGN section 8).
    """
    now = {parameter.path: parameter for parameter in after}
    known = {parameter.path: parameter for parameter in before}
    carried: dict[str, Value] = {}
    lapsed: list[str] = []
    for path, value in values.items():
        old, new = known.get(path), now.get(path)
        if old is not None and new is not None and _form(old) == _form(new):
            carried[path] = value
        else:
            lapsed.append(path)
    return carried, sorted(lapsed)


def _form(parameter: Parameter) -> tuple[object, ...]:
    return parameter.kind, parameter.signature, parameter.default


async def take_up(keeper: Keeper, source: Source, parameters: tuple[Parameter, ...]) -> Revision:
    """Make the new source's revision, with what carries over, the stable one. The caller holds `deciding`."""
    state = keeper.state
    old = await keeper.store.revision(state.stable)
    carried, lapsed = carried_over(old.values, state.parameters, parameters)
    revision = make_revision(keeper.name, source.digest, carried)
    provenance = Provenance(
        revision=revision.id, origin=Origin.SOURCE, at=keeper.clock.time(), parent=old.id, who="author", note="new source"
    )
    message = f"the source changed: {len(carried)} learned values carried over, {len(lapsed)} lapsed"
    event = keeper.event("agent.source_changed", message, revision=revision.id, carried=sorted(carried), lapsed=lapsed)
    fresh = watch.inherit(revision.id, state.watch) if state.watch else watch.begin(revision.id)
    changes = {"source": source.digest, "stable": revision.id, "desired": revision.id, "watch": fresh}
    keeper.tell(*await keeper.commit(revision, provenance, event, **changes))
    return revision
