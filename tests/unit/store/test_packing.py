"""Stored bytes: a format byte, compressed when large, and clear errors for what can't be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.errors import CodecError, StoreError, StoreVersionError
from agentd.records import Feedback
from agentd.store.packing import COMPRESSED, PLAIN, pack, pack_bytes, unpack, unpack_bytes


@given(st.binary(max_size=5000))
def test_bytes_come_back(content):
    assert unpack_bytes(pack_bytes(content)) == content


def test_small_records_are_plain_and_large_ones_compressed():
    small, large = Feedback(episode="e", score=1.0, normalised=1.0), Feedback(episode="e", score=1.0, normalised=1.0, text="well " * 10_000)
    assert pack(small)[0] == PLAIN
    assert pack(large)[0] == COMPRESSED
    assert len(pack(large)) < 1000
    assert unpack(pack(small), Feedback) == small
    assert unpack(pack(large), Feedback) == large


def test_a_format_of_a_newer_agentd_says_so():
    with pytest.raises(StoreVersionError, match="format 77"):
        unpack(b"\x4dwhatever", Feedback)


@given(st.binary(max_size=200))
def test_damaged_bytes_are_an_error_of_the_store(content):
    for damaged in (b"", "text", bytes((PLAIN,)) + b"\xc1" + content, bytes((COMPRESSED,)) + content):
        with pytest.raises(StoreError):
            unpack(damaged, Feedback)


def test_what_has_no_encoding_is_refused():
    with pytest.raises(CodecError):
        pack(object())
