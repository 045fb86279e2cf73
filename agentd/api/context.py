"""What the routes share: handed over by `create_app`, reached through the request; and who is asking."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from agentd.api.idempotency import Answers
from agentd.api.ports import Commands
from agentd.api.problems import Problem
from agentd.api.tokens import Role, Tokens
from agentd.clock import Clock
from agentd.events import EventBus
from agentd.observability.metrics import Metrics
from agentd.settings import DaemonSettings
from agentd.store.contract import Store

COOKIE = "agentd_session"
MAX_STREAMS = 32


@dataclass(slots=True)
class Context:
    """One application's collaborators."""

    commands: Commands
    store: Store
    bus: EventBus
    metrics: Metrics
    tokens: Tokens
    settings: DaemonSettings
    clock: Clock
    answers: Answers = field(default_factory=Answers)
    acts: Answers = field(default_factory=Answers)
    """Those to clients, who ask more often than operators decide, and must not push out what these were told."""
    streams: int = 0
    """Event streams that are open now; bounded by MAX_STREAMS."""


def context(request: Request) -> Context:
    """The application's context."""
    found: Context = request.app.state.context
    return found


def role_of(request: Request) -> Role | None:
    """Who asks: by bearer token, or (reading only) by the status page's cookie."""
    shared = context(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return shared.tokens.role(token.strip())
    if shared.tokens.is_session(request.cookies.get(COOKIE, ""), shared.clock.time()):
        return Role.VIEWER
    return None


def _require(*roles: Role) -> Callable[[Request], Role]:
    def check(request: Request) -> Role:
        role = role_of(request)
        if role is None:
            detail = "a token is needed: `Authorization: Bearer ...` (`agentd token` prints it)"
            raise Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="agentd"'})
        if role not in roles:
            raise Problem(403, "forbidden", f"this needs the {roles[0]}'s token, not the {role}'s")
        return role

    return check


Shared = Annotated[Context, Depends(context)]
viewer = Depends(_require(Role.VIEWER, Role.OPERATOR))
operator = Depends(_require(Role.OPERATOR))
client = Depends(_require(Role.CLIENT, Role.OPERATOR))
