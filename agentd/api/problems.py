"""Errors as RFC 9457 problem documents: every answer that is not good has the same form."""

import http
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from agentd import errors

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[Exception], int] = {
    errors.NotFound: 404,
    errors.Ambiguous: 409,
    errors.RequestError: 409,
    errors.StaleRelease: 409,
    errors.IllegalTransition: 409,
    errors.ReleaseError: 409,
    errors.DecodingError: 422,
    errors.CodecError: 422,
    errors.SpecError: 422,
    errors.SourceError: 422,
    errors.BudgetExhausted: 429,
    errors.ModelError: 502,
    errors.OptimizerError: 409,
    errors.StoreUnavailable: 503,
    errors.RunnerError: 503,
    errors.SandboxError: 409,
}
"""The nearest class in an error's ancestry counts."""


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """An answer that is a problem. `kind` becomes the type `urn:agentd:<kind>`; `more` are members of its own."""

    def __init__(self, status: int, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more
        super().__init__(detail)

    def response(self) -> Response:
        """The HTTP response."""
        document = {
            "type": f"urn:agentd:{self.kind}",
            "title": http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(msgspec.json.encode(document), self.status, self.headers, MEDIA_TYPE)


def from_error(error: errors.AgentdError) -> Problem:
    """What an error of agentd is over HTTP."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    if isinstance(error, errors.Overloaded | errors.Unanswered):
        status = (429 if error.full else 503) if isinstance(error, errors.Overloaded) else (504 if error.late else 503)
    kind = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__).strip("-")
    more: dict[str, Any] = {}
    headers: dict[str, str] = {}
    match error:
        case errors.DecodingError():
            more["problems"] = error.problems
        case errors.SpecError():
            more["mistakes"] = [{"file": item.file, "key": item.key, "expected": item.expected} for item in error.mistakes]
        case errors.IllegalTransition():
            more |= {"release": error.release, "phase": error.phase}
        case errors.BudgetExhausted():
            more |= {"limit": error.limit, "resets_at": error.resets_at}
        case errors.Unanswered():
            more["episode"] = error.episode or None
            headers["Retry-After"] = "1"
        case errors.StoreUnavailable() | errors.RunnerError() | errors.Overloaded():
            headers["Retry-After"] = "1"
    return Problem(status, kind, str(error), headers=headers, **more)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""

    async def on_problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101 - by registration
        return error.response()

    async def on_agentd_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, errors.AgentdError)  # noqa: S101 - by registration
        return from_error(error).response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - by registration
        kind = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return Problem(error.status_code, kind, str(error.detail), headers=error.headers).response()

    async def on_invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - by registration
        mistakes = [{"key": ".".join(str(part) for part in item["loc"]), "expected": item["msg"]} for item in error.errors()]
        detail = "; ".join(f"{mistake['key']}: {mistake['expected']}" for mistake in mistakes)
        return Problem(422, "invalid-request", detail, mistakes=mistakes).response()

    async def on_anything(request: Request, error: Exception) -> Response:
        # What went wrong inside is for the log; it may hold what the client must not see.
        log.error("a request failed", method=request.method, path=request.url.path, exc_info=error)
        return Problem(500, "internal-error", "agentd failed to answer; its log says why").response()

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(errors.AgentdError, on_agentd_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_anything)
