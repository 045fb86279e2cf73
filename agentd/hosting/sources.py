"""An agent's first state, and what becomes of learned values when its author changes the program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentd import codec
from agentd.clock import Clock
from agentd.errors import DecodingError, NotFound
from agentd.hosting.keeper import Keeper
from agentd.opto.decoding import validate_values
from agentd.records import AgentState, Conflict, Event, Origin, Parameter, Provenance, Revision, Source, Value, make_revision
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


@dataclass(frozen=True, slots=True)
class Merge:
    """What becomes of each learned value on a new source: exactly one of these."""

    carried: dict[str, Value]
    """It holds on: path, kind, signature and the default in the source are unchanged, and it keeps the bounds."""
    conflicts: tuple[Conflict, ...]
    """Its author has changed the default that it was learned from: a person says which one holds."""
    adopted: tuple[str, ...]
    """The new source has it as its default: somebody merged what was exported."""
    lapsed: dict[str, str]
    """It can't be a value of the new source, and why."""


def merge(
    values: Mapping[str, Value],
    before: tuple[Parameter, ...],
    after: tuple[Parameter, ...],
    *,
    pending: tuple[Conflict, ...] = (),
    allowed_imports: tuple[str, ...] | None = None,
) -> Merge:
    """The three-way rule (DESIGN section 8) for learned `values` when parameters `before` become those `after`.

    `pending` are conflicts that nobody has settled yet: each is asked again with the default that its value was learned from, so that an
    author who takes a change back gets the learned value back.
    """
    known, now = {parameter.path: parameter for parameter in before}, {parameter.path: parameter for parameter in after}
    learned = {conflict.path: (conflict.base, conflict.learned) for conflict in pending}
    learned |= {path: (known[path].default if path in known else None, value) for path, value in values.items()}
    carried: dict[str, Value] = {}
    conflicts: list[Conflict] = []
    adopted: list[str] = []
    lapsed: dict[str, str] = {}
    for path, (base, value) in sorted(learned.items()):
        old, new = known.get(path), now.get(path)
        if why := _impossible(old, new, value, allowed_imports):
            lapsed[path] = why
        elif new is not None and _same(new.default, value):
            adopted.append(path)
        elif new is not None and _same(new.default, base):
            carried[path] = value
        elif new is not None:
            conflicts.append(Conflict(path=path, base=base, learned=value, source=new.default))
    return Merge(carried, tuple(conflicts), tuple(adopted), lapsed)


def _impossible(old: Parameter | None, new: Parameter | None, value: Value, allowed_imports: tuple[str, ...] | None) -> str:
    """Why `value`, learned for `old`, can't be one of `new`; empty if it can."""
    if new is None:
        return "the new source has no such parameter"
    if old is None:
        return "it is not known what it was learned for"
    if old.kind is not new.kind:
        return f"it was {old.kind} and is {new.kind} now"
    if old.signature != new.signature:
        return f"its signature was {old.signature} and is {new.signature} now"
    try:
        validate_values({new.path: value}, (new,), {}, allowed_imports)
    except DecodingError as error:
        return "; ".join(error.problems.values())
    return ""


def _same(one: Value, other: Value) -> bool:
    return codec.encode(one) == codec.encode(other)


def comparable(one: Source, other: Source) -> bool:
    """Whether scores on the two mean the same: environment and metrics are declared alike. Unknown of what an older agentd stored."""
    return bool(one.sections) and one.sections == other.sections


async def take_up(keeper: Keeper, source: Source, parameters: tuple[Parameter, ...]) -> Revision:
    """Make the new source's revision, with what carries over, the stable one. The caller holds `deciding`."""
    state = keeper.state
    old = await keeper.store.revision(state.stable)
    imports = keeper.spec.sandbox.allowed_imports
    found = merge(old.values, state.parameters, parameters, pending=state.conflicts, allowed_imports=imports)
    revision = make_revision(keeper.name, source.digest, found.carried)
    provenance = Provenance(
        revision=revision.id, origin=Origin.SOURCE, at=keeper.clock.time(), parent=old.id, who="author", note="new source"
    )
    message = f"the source changed: {len(found.carried)} learned values carried over"
    if found.adopted:
        message += f", {len(found.adopted)} are its defaults now"
    if found.lapsed:
        message += f", {len(found.lapsed)} lapsed"
    if found.conflicts:
        message += f", {len(found.conflicts)} in conflict: `agentd rebase {keeper.name}`"
    event = keeper.event(
        "agent.source_changed",
        message,
        revision=revision.id,
        carried=sorted(found.carried),
        conflicts=[conflict.path for conflict in found.conflicts],
        adopted=list(found.adopted),
        lapsed=sorted(found.lapsed),
        why=dict(found.lapsed),
    )
    fresh = watch.inherit(revision.id, state.watch) if state.watch else watch.begin(revision.id)
    changes = {"source": source.digest, "stable": revision.id, "desired": revision.id, "watch": fresh}
    changes |= {"conflicts": found.conflicts, "passed_over": ""}
    keeper.tell(*await keeper.commit(revision, provenance, event, **changes))
    return revision
