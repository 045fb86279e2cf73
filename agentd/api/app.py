"""The FastAPI application: guard, routes, problems. It sees the daemon's commands, the store's contract and events; nothing else."""

from fastapi import FastAPI

import agentd
from agentd.api import agents, episodes, events, pages, problems, releases, service
from agentd.api.context import Context, viewer
from agentd.api.guard import Guard
from agentd.api.ports import Commands
from agentd.api.tokens import Tokens
from agentd.clock import Clock, SystemClock
from agentd.events import EventBus
from agentd.observability.metrics import Metrics
from agentd.settings import DaemonSettings
from agentd.store.contract import Store


def create_app(
    commands: Commands,
    *,
    store: Store,
    bus: EventBus,
    metrics: Metrics,
    tokens: Tokens,
    settings: DaemonSettings,
    clock: Clock | None = None,
) -> FastAPI:
    """The application. It owns none of what it is given."""
    # No documentation pages: they load scripts from other hosts. The schema itself is at /api/v1/openapi.json.
    app = FastAPI(title="agentd", version=agentd.__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.context = Context(
        commands=commands, store=store, bus=bus, metrics=metrics, tokens=tokens, settings=settings, clock=clock or SystemClock()
    )
    app.add_middleware(Guard, hosts=(settings.http_host, *settings.allowed_hosts))
    problems.install(app)
    for module in (agents, releases, episodes, events, service, pages):
        app.include_router(module.router)

    @app.get("/api/v1/openapi.json", dependencies=[viewer], include_in_schema=False)
    async def read_schema() -> dict[str, object]:
        """The OpenAPI schema."""
        return app.openapi()

    return app
