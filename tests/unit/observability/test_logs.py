"""Logs: one entry a line, for people or as JSON, and never a secret."""

import io
import json
import logging
import os
import socket
from pathlib import Path

import pytest
import structlog

from agentd.observability.logs import CHATTY, MASK, configure_logging
from agentd.observability.systemd import notify
from agentd.settings import load_settings

KEY = "my-unusual-key-123"


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`logged("json")` configures logging and returns the stream; everything is as before afterwards."""
    monkeypatch.setenv("TEST_KEY", KEY)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    levels = {name: logging.getLogger(name).level for name in CHATTY}

    def configure(form: str, log_level: str = "info") -> io.StringIO:
        stream = io.StringIO()
        file = tmp_path / "agentd.toml"
        file.write_text(f'api_key_env = "TEST_KEY"\nlog_format = "{form}"\nlog_level = "{log_level}"\n')
        configure_logging(load_settings(file), stream)
        return stream

    yield configure
    root.handlers = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


def entries(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_entries_have_time_level_name_and_their_fields(logged) -> None:
    stream = logged("json")
    structlog.get_logger("agentd.test").info("promoted", agent="cartpole", pairs=11)
    [entry] = entries(stream)
    assert entry["event"] == "promoted"
    assert (entry["agent"], entry["pairs"], entry["level"], entry["logger"]) == ("cartpole", 11, "info", "agentd.test")
    assert entry["timestamp"].endswith("Z")


def test_the_standard_librarys_records_take_the_same_way(logged) -> None:
    stream = logged("json")
    logging.getLogger("some.library").warning("slow by %d ms", 7)
    [entry] = entries(stream)
    assert (entry["event"], entry["logger"]) == ("slow by 7 ms", "some.library")


def test_the_small_talk_of_libraries_is_left_out_and_their_warnings_are_not(logged) -> None:
    stream = logged("json")
    logging.getLogger("alembic.runtime").info("setup plugin")
    logging.getLogger("alembic.runtime").warning("odd")
    assert [entry["event"] for entry in entries(stream)] == ["odd"]


def test_what_is_below_the_level_is_left_out(logged) -> None:
    stream = logged("json", "warning")
    structlog.get_logger("agentd.test").info("not this")
    logging.getLogger("x").info("nor this")
    structlog.get_logger("agentd.test").warning("this")
    assert [entry["event"] for entry in entries(stream)] == ["this"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_masked_wherever_they_are(logged, form) -> None:
    stream = logged(form)
    log = structlog.get_logger("agentd.test")
    log.info("called with %s", KEY, api_key="abc", token="def", nested={"password": "ghi", "list": [f"Bearer {KEY}"]})
    log.info("url", store="postgresql://ada:hunter2@db/x", text="Authorization: Bearer eyJabc", other="sk-proj-abcdefghijkl123")
    logging.getLogger("library").warning("key=%s", KEY)
    try:
        int(f"refused: {KEY}")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    for secret in (KEY, "abc\n", "def", "ghi", "hunter2", "eyJabc", "sk-proj-abcdefghijkl123"):
        assert secret not in text.replace("default", ""), secret
    assert MASK in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_a_policy_prints_can_not_forge_an_entry_or_move_the_cursor(logged, form) -> None:
    stream = logged(form)
    structlog.get_logger("agentd.test").info("worker said", line="x\n2030-01-01 [info] promoted\x1b[2J\r")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_an_exception_is_told_with_its_traceback_and_without_local_variables(logged) -> None:
    stream = logged("json")
    hidden = ["a local", "value"]
    try:
        " ".join(hidden).index("broken")
    except ValueError:
        structlog.get_logger("agentd.test").exception("failed")
    [entry] = entries(stream)
    assert "ValueError: substring not found" in entry["exception"]
    assert "a local" not in entry["exception"]


def test_a_value_without_a_json_form_does_no_harm(logged) -> None:
    stream = logged("json")
    structlog.get_logger("agentd.test").info("odd", value=object(), path=Path("/x"))
    assert entries(stream)[0]["event"] == "odd"


def test_systemd_is_told_over_its_socket(tmp_path, monkeypatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_systemd_is_told_over_an_abstract_socket(monkeypatch) -> None:
    name = f"agentd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


def test_without_systemd_nothing_happens(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")
