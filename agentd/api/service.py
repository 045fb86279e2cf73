"""/livez, /readyz and /metrics: for supervisors, load balancers and Prometheus."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import PlainTextResponse, Response

from agentd.api.context import Shared, role_of
from agentd.api.ports import Health
from agentd.api.problems import Problem
from agentd.errors import StoreError

router = APIRouter(tags=["service"])


@router.get("/livez")
async def live() -> Response:
    """200 while the event loop turns. Needs no token and tells nothing."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
async def ready(shared: Shared) -> Response:
    """200 when the store answers and every agent that can be loaded is up, else 503. Needs no token and names nothing.

    One that is up and of no use (`failing`) does not count: its plant is in its safe state or served, and without traffic to this API
    nobody could mend it. `agentd status` and the metric `agentd_healthy` tell of it.
    """
    try:
        await shared.store.agents()
    except StoreError as error:
        raise Problem(503, "store-unavailable", "the store does not answer") from error
    failed = sum(agent.health in {Health.FAILED, Health.STARTING} for agent in shared.commands.status().agents)
    if failed:
        raise Problem(503, "agents-failed", f"{failed} agents are not up")
    return PlainTextResponse("ok\n")


@router.get("/metrics")
async def read_metrics(shared: Shared, request: Request) -> Response:
    """Prometheus metrics. Without a token only where the API is bound to loopback."""
    role = role_of(request)
    if not shared.settings.loopback_only and (role is None or not role.reads):
        raise Problem(401, "unauthenticated", "metrics need the viewer's token", headers={"WWW-Authenticate": 'Bearer realm="agentd"'})
    metrics, agents = shared.metrics, shared.commands.status().agents
    for agent in agents:
        metrics.health(agent.name, healthy=agent.health in {Health.OK, Health.DEGRADED})
        if agent.state is not None:
            metrics.agent(agent.name, stable=agent.state.stable, mode=agent.mode, isolation=agent.isolation, release=agent.release)
            metrics.holds(agent.state)
            metrics.windows(agent.name, agent.windows)
        if agent.budget_dollars is not None and agent.budget_remaining is not None:
            metrics.budget(agent.name, "optimizer", limit=agent.budget_dollars, remaining=agent.budget_remaining)
        if agent.models_dollars is not None and agent.models_remaining is not None:
            metrics.budget(agent.name, "policy", limit=agent.models_dollars, remaining=agent.models_remaining)
    metrics.forget_all_but({agent.name for agent in agents})
    metrics.store(queued=shared.store.queued, write_errors=shared.store.write_errors)
    return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
