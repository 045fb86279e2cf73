"""The daemon's settings: file, environment and arguments, parsed once; secrets never in files, logs or errors."""

import os
from pathlib import Path

import pytest

from agentd.configuration import masked
from agentd.errors import AgentdError, SpecError
from agentd.settings import load_settings, read_address, remove_address, write_address


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("AGENTD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def mistakes(*arguments, **options) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        load_settings(*arguments, **options)
    return {f"{mistake.file}: {mistake.key}": mistake.expected for mistake in caught.value.mistakes}


def test_without_a_file_everything_has_a_safe_default(tmp_path) -> None:
    settings = load_settings()
    assert settings.agents == tmp_path / "work" / "agents"
    assert settings.state_directory == tmp_path / "home" / "agentd"
    assert settings.store_url == f"sqlite+aiosqlite:///{tmp_path}/home/agentd/agentd.db"
    assert (settings.http_host, settings.http_port, settings.loopback_only) == ("127.0.0.1", 8420, True)
    assert settings.drain_timeout == 30.0


def test_paths_in_a_file_are_relative_to_the_file(tmp_path) -> None:
    file = write(tmp_path / "etc" / "agentd.toml", 'agents = "mine"\nstate_directory = "../state"\nreply_cache = "answers"\n')
    settings = load_settings(file)
    assert settings.reply_cache == tmp_path / "etc" / "answers"
    assert settings.agents == tmp_path / "etc" / "mine"
    assert settings.state_directory.resolve() == tmp_path / "state"


def test_an_sqlite_store_in_a_file_is_relative_to_the_file_too(tmp_path) -> None:
    for url, expected in (
        ("sqlite:///data.db", f"sqlite:///{tmp_path}/etc/data.db"),
        ("sqlite:////var/data.db", "sqlite:////var/data.db"),
        ("postgresql://db/agentd", "postgresql://db/agentd"),
    ):
        assert load_settings(write(tmp_path / "etc" / "agentd.toml", f'store_url = "{url}"\n')).store_url == expected


def test_the_file_is_named_or_in_the_environment_or_here(tmp_path, monkeypatch) -> None:
    write(tmp_path / "work" / "agentd.toml", "http_port = 1\n")
    assert load_settings().http_port == 1
    monkeypatch.setenv("AGENTD_CONFIG", str(write(tmp_path / "two.toml", "http_port = 2\n")))
    assert load_settings().http_port == 2
    assert load_settings(write(tmp_path / "three.toml", "http_port = 3\n")).http_port == 3


def test_arguments_win_over_the_environment_and_it_over_the_file(tmp_path, monkeypatch) -> None:
    file = write(tmp_path / "agentd.toml", "http_port = 1\nseed = 1\nmodels = ['a/b']\nlog_level = 'debug'\n")
    monkeypatch.setenv("AGENTD_HTTP_PORT", "2")
    monkeypatch.setenv("AGENTD_SEED", "2")
    monkeypatch.setenv("AGENTD_MODELS", "x/y, z/w")
    monkeypatch.setenv("AGENTD_DRAIN_TIMEOUT", "5s")
    settings = load_settings(file, seed=3, http_host=None)
    assert (settings.http_port, settings.seed, settings.models, settings.log_level) == (2, 3, ("x/y", "z/w"), "debug")
    assert settings.drain_timeout == 5.0
    assert settings.call_timeout == 60.0


def test_every_mistake_is_told_at_once_and_names_where_it_comes_from(tmp_path, monkeypatch) -> None:
    text = (
        'http_port = "8420"\nmodelz = []\nbroker_url = "localhost"\nlog_level = "loud"\ndrain_timeout = "soon"\nagents = 3\n'
        'store_url = "mysql://x"\n'
    )
    file = write(tmp_path / "agentd.toml", text)
    monkeypatch.setenv("AGENTD_HTTP_HOST", "127.0.0.1")
    monkeypatch.setenv("AGENTD_LOG_FORMAT", "xml")
    found = mistakes(file, seed="x")
    assert set(found) == {
        f"{file}: http_port",
        f"{file}: modelz",
        f"{file}: broker_url",
        f"{file}: log_level",
        f"{file}: drain_timeout",
        f"{file}: agents",
        f"{file}: store_url",
        "environment: AGENTD_LOG_FORMAT",
        "argument: seed",
    }
    assert found[f"{file}: modelz"] == 'unknown key; did you mean "models"?'
    assert "mqtt://" in found[f"{file}: broker_url"]


def test_variables_of_others_that_begin_alike_do_no_harm(monkeypatch) -> None:
    monkeypatch.setenv("AGENTD_PORT", "tcp://10.0.0.1:8420")  # what Kubernetes sets for a service named agentd
    monkeypatch.setenv("AGENTD_SERVICE_HOST", "10.0.0.1")
    assert load_settings().http_port == 8420


def test_a_key_comes_from_the_environment_and_is_never_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-indeed")
    settings = load_settings(write(tmp_path / "agentd.toml", 'api_key_env = "MY_KEY"\n'))
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sk-very-secret-indeed"
    assert "very-secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.missing_key is None


def test_a_key_that_is_not_set_is_named(tmp_path) -> None:
    settings = load_settings(write(tmp_path / "agentd.toml", 'api_key_env = "NO_SUCH_KEY"\n'))
    assert (settings.api_key, settings.missing_key) == (None, "NO_SUCH_KEY")


@pytest.mark.parametrize("line", ['api_key = "sk-very-secret"', 'api_key_env = "sk-very-secret"'])
def test_a_key_in_the_file_is_refused_without_being_repeated(tmp_path, line) -> None:
    found = mistakes(write(tmp_path / "agentd.toml", line + "\n"))
    assert len(found) == 1
    assert "very-secret" not in str(found)


def test_a_missing_or_broken_file_is_said_with_its_line(tmp_path) -> None:
    assert "No such file" in mistakes(tmp_path / "nothing.toml")[f"{tmp_path}/nothing.toml: (file)"]
    file = write(tmp_path / "agentd.toml", "a = 1\nb = \n")
    assert "line 2" in mistakes(file)[f"{file}: (syntax)"]


def test_passwords_in_urls_are_masked(tmp_path) -> None:
    settings = load_settings(None, store_url="postgresql+asyncpg://ada:hunter2@db/agentd")
    assert settings.shown_store_url == "postgresql+asyncpg://ada:***@db/agentd"
    assert masked("mqtts://u:p@host:8883/x") == "mqtts://u:***@host:8883/x"
    assert masked("mqtt://u:s3/cr@et@host") == "mqtt://u:***@host"
    assert masked("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_anything_but_loopback_is_not_loopback() -> None:
    for host, loopback in (("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False)):
        assert load_settings(None, http_host=host).loopback_only is loopback


def test_the_daemons_address_is_written_whole_read_back_and_forgotten(tmp_path) -> None:
    assert read_address(tmp_path) is None
    write_address(tmp_path, "http://127.0.0.1:8420/")
    address = read_address(tmp_path)
    assert address is not None
    assert (address.url, address.pid) == ("http://127.0.0.1:8420", os.getpid())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["daemon.json"]
    remove_address(tmp_path)
    remove_address(tmp_path)
    assert read_address(tmp_path) is None


def test_a_damaged_address_is_an_error_that_names_the_file(tmp_path) -> None:
    write(tmp_path / "daemon.json", "{")
    with pytest.raises(AgentdError, match=r"daemon\.json"):
        read_address(tmp_path)


def test_settings_can_not_be_changed_afterwards() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.http_port = 1
