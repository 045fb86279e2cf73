"""What records are made of, and made from."""

from typing import Any

import msgspec

Value = Any
"""A plain value: None, bool, int, float, str, list, dict with str keys, or a numpy array."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the records."""
