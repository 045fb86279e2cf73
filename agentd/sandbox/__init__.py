"""Where untrusted code runs: an exec'd zygote forks workers, which lock themselves down before they see a line of it (DESIGN section 7).

    async with await Zygote.start(imports=limits.allowed_imports, min_isolation=2) as zygote:
        worker = await PolicyWorker.start(zygote, source=source, revision=revision, limits=limits, on_log=print)
        await worker.reset("robot-1", episode="e1", seed=7)
        action = await worker.act("robot-1", 0, observation)

Two sides share this package. The trusted side: `zygote` and `process` (handles of processes), `channel`, `logs`, `policy`, `feedback`,
`brake`, `limits`. The other side of the border, which must import little: `main`, `server`, `host`, `policies`, `judging`, `braking`,
`leaves`, `loader`, `telltale`, `output`, `lockdown`, `seccomp`, `landlock`, `namespaces`, `kernel`. Both know `wire` and `isolation`. With
the scope "code" a third side stands between: `trusted`, the author's program, with `leaf`, `needs` and `plain`. Names are resolved lazily,
so that the zygote never imports pydantic by accident.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentd.sandbox.brake import BrakeWorker
    from agentd.sandbox.channel import Desk
    from agentd.sandbox.feedback import FeedbackWorker
    from agentd.sandbox.isolation import Isolation, probe
    from agentd.sandbox.limits import Limits
    from agentd.sandbox.policy import UNCHANGED, Cut, PolicyWorker
    from agentd.sandbox.wire import Asked, Told
    from agentd.sandbox.zygote import Zygote

__all__ = [
    "UNCHANGED",
    "Asked",
    "BrakeWorker",
    "Cut",
    "Desk",
    "FeedbackWorker",
    "Isolation",
    "Limits",
    "PolicyWorker",
    "Told",
    "Zygote",
    "probe",
]

_HOMES = {
    "Asked": "wire",
    "BrakeWorker": "brake",
    "Cut": "policy",
    "Desk": "channel",
    "FeedbackWorker": "feedback",
    "Isolation": "isolation",
    "Limits": "limits",
    "PolicyWorker": "policy",
    "Told": "wire",
    "UNCHANGED": "policy",
    "Zygote": "zygote",
    "probe": "isolation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
