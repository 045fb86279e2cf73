"""Whole agentds: daemon, runners, robots and broker as processes."""

from hosted import hosted  # noqa: F401 - a fixture
