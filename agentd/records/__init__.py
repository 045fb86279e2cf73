"""Frozen records that cross borders: processes, the store, HTTP. No live handle is ever among them.

Times are Unix seconds, durations seconds, scores in the agent's declared range unless a name says `normalised` ([0, 1], 1 is best).
Fields are only ever added, with a default: an older record must stay readable.
"""

from agentd.records.agents import AgentState, Conflict, Hold, Mode, Watch, WatchSettings
from agentd.records.base import Record, Value
from agentd.records.episodes import (
    MODELS_LOST,
    Answered,
    Episode,
    EpisodeSummary,
    Exchange,
    Feedback,
    Metric,
    Outcome,
    Purpose,
    Role,
    Space,
    Step,
)
from agentd.records.events import Event
from agentd.records.evidence import Pair, PairPlan, Single
from agentd.records.optimizing import MemoryEntry, Problem, Proposal, Usage
from agentd.records.releases import (
    Change,
    Exposure,
    Goal,
    MetricRule,
    Phase,
    Release,
    ReleaseKind,
    ReleaseSettings,
    Screening,
    Test,
    Verdict,
)
from agentd.records.revisions import Kind, Origin, Parameter, Provenance, Revision, Source, canonical, make_revision
from agentd.records.tracing import NodeKind, TraceFunction, TraceGraph, TraceNode
from agentd.records.windows import Window, WindowState

__all__ = [
    "MODELS_LOST",
    "AgentState",
    "Answered",
    "Change",
    "Conflict",
    "Episode",
    "EpisodeSummary",
    "Event",
    "Exchange",
    "Exposure",
    "Feedback",
    "Goal",
    "Hold",
    "Kind",
    "MemoryEntry",
    "Metric",
    "MetricRule",
    "Mode",
    "NodeKind",
    "Origin",
    "Outcome",
    "Pair",
    "PairPlan",
    "Parameter",
    "Phase",
    "Problem",
    "Proposal",
    "Provenance",
    "Purpose",
    "Record",
    "Release",
    "ReleaseKind",
    "ReleaseSettings",
    "Revision",
    "Role",
    "Screening",
    "Single",
    "Source",
    "Space",
    "Step",
    "Test",
    "TraceFunction",
    "TraceGraph",
    "TraceNode",
    "Usage",
    "Value",
    "Verdict",
    "Watch",
    "WatchSettings",
    "Window",
    "WindowState",
    "canonical",
    "make_revision",
]
