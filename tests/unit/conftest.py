"""What tests of several parts use."""

import sys

import pytest


@pytest.fixture
def forced_switching():
    """Threads change after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
