"""Whole agentds to break."""

from hosted import hosted  # noqa: F401 - a fixture
