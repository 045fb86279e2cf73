"""Logging: structlog for agentd's own words and the standard library's records alike, for a person or as JSON, without secrets."""

import logging
import re
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from agentd.settings import DaemonSettings

_SECRET_KEY = re.compile(r"(?i)(api[_-]?key|token|password|passwd|secret|authorization|cookie)$")
_SECRET_TEXT = re.compile(r"(?i)(?:\b(?:sk|pk|ghp|xox[abp])[-_][A-Za-z0-9_-]{12,}|(?<=bearer )\S+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@))")
MASK = "***"
CHATTY = ("LiteLLM", "aiosqlite", "alembic", "amqtt", "httpcore", "httpx", "transitions", "uvicorn")
"""Libraries whose small talk is left out."""


class SecretMask:
    """Replaces secrets in every log entry: values of telling keys, known secrets, and texts that look like keys."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted((secret for secret in secrets if len(secret) >= 4), key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(secret) for secret in known)) if known else None

    def __call__(self, logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A structlog processor."""
        del logger, method
        for key, value in entry.items():
            entry[key] = MASK if _SECRET_KEY.search(key) and value else self._masked(value)
        return entry

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            text = self._known.sub(MASK, value) if self._known else value
            return _SECRET_TEXT.sub(MASK, text)
        if isinstance(value, dict):
            return {key: MASK if _SECRET_KEY.search(str(key)) and item else self._masked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._masked(item) for item in value]
        return value


def _one_line(logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters: what a policy prints must not forge entries or move a terminal's cursor."""
    del logger, method
    for key, value in entry.items():
        if isinstance(value, str) and key not in {"exception", "stack"} and not value.isprintable():
            entry[key] = "".join(character if character.isprintable() else repr(character)[1:-1] for character in value)
    return entry


def configure_logging(settings: DaemonSettings, stream: TextIO | None = None) -> None:
    """Send every entry of `settings.log_level` and above to `stream` (standard error), in `settings.log_format`."""
    stream = stream or sys.stderr
    secrets = [settings.api_key.get_secret_value()] if settings.api_key else []
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        SecretMask(secrets),
        _one_line,
    ]
    renderer: Processor
    if settings.log_format == "json":
        renderer = structlog.processors.JSONRenderer(default=repr)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
