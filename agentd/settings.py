"""The daemon's settings: `agentd.toml` and AGENTD_* environment variables, parsed once, every mistake at once.

The environment wins over the file, an argument of `load_settings` over both. Keys of models come only from the environment.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from agentd.configuration import check_duration, check_size, masked, mistakes, parse_duration, read_toml, suggestion
from agentd.errors import AgentdError, Mistake, SpecError

PREFIX = "AGENTD_"
CONFIG_VARIABLE = "AGENTD_CONFIG"
CONFIG_NAME = "agentd.toml"
_STORE_SCHEMES = ("sqlite", "postgresql")
_BROKER_SCHEMES = ("mqtt", "mqtts")


def _default_state_directory() -> Path:
    """$XDG_STATE_HOME/agentd, or ~/.local/state/agentd."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "agentd"


def _comma_separated(value: Any) -> Any:
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration(check_duration(value))
    if isinstance(value, float) and value > 0:
        return value
    raise ValueError('should be a duration such as "30s"')


def _check_url(schemes: tuple[str, ...]) -> AfterValidator:
    def check(url: str) -> str:
        scheme, separator, _ = url.partition("://")
        if not separator or scheme.split("+")[0] not in schemes:
            raise ValueError(f"should be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return url

    return AfterValidator(check)


def _check_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # The text itself may be a key that was put here by mistake, so it is not repeated.
        raise ValueError("should be the name of an environment variable, such as OPENAI_API_KEY, not a key")
    return name


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
"""A list in the file, comma-separated in the environment."""


class DaemonSettings(BaseSettings):
    """What the daemon needs to know. Make it with `load_settings`; paths are absolute, URLs may hold passwords."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_ignore_empty=True, hide_input_in_errors=True, validate_default=False
    )

    agents: Path = Path("agents")
    """The agents directory: each folder in it with an agent.toml is an agent, or it is one itself."""
    state_directory: Path = Field(default_factory=_default_state_directory)
    store_url: Annotated[str, _check_url(_STORE_SCHEMES)] = ""
    """SQLite in the state directory unless another is named. May hold a password: show `shown_store_url`."""
    broker_url: Annotated[str, _check_url(_BROKER_SCHEMES)] | None = None
    """For agents of kind mqtt that name none themselves."""
    http_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8420
    """0: any free one; `agentd status` finds it."""
    allowed_hosts: Names = ()
    """Names by which HTTP clients may call this host, beside localhost and addresses (protection against DNS rebinding)."""
    models: Names = ()
    """litellm names, in order of preference, for agents that name none themselves."""
    api_base: Annotated[str, _check_url(("http", "https"))] | None = None
    api_key_env: Annotated[str, AfterValidator(_check_variable)] | None = None
    """The environment variable that holds the key; the key itself is never in a file."""
    call_timeout: Annotated[float, BeforeValidator(_seconds)] = 60.0
    """How long a model may take for one answer; for three times as long it is asked again, or the next one. Local models may need more."""
    reply_cache: Path | None = None
    """A folder in which the answers of models are kept, for experiments: the same question is answered from there, for nothing."""
    drain_timeout: Annotated[float, BeforeValidator(_seconds)] = 30.0
    """How long runners may take to finish their episodes on SIGTERM; a text such as "30s" in the file, seconds here."""
    lease: Annotated[float, BeforeValidator(_seconds)] = 10.0
    """How long a runner goes on with a canary's pairs when it no longer hears of this daemon; then it serves the stable revision only."""
    keep_days: Annotated[float, Field(gt=0)] | None = 30.0
    """Episodes older than this are forgotten; releases, evidence, proposals and events stay. None: no limit, also for the next two."""
    keep_episodes: Annotated[int, Field(ge=1)] | None = None
    """The newest episodes of each agent that are kept."""
    keep_size: Annotated[str, AfterValidator(check_size)] | None = "2GiB"
    """What episodes may take in the store; the oldest traces go first, then steps, then episodes."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    seed: int | None = None
    """Fixes episode seeds, pair order and the optimizers' generators."""
    api_key: SecretStr | None = None
    """AGENTD_API_KEY, or the value of the variable that `api_key_env` names, read when the settings are parsed."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` has merged: it must know which mistake came from where."""
        return (init_settings,)

    @property
    def shown_store_url(self) -> str:
        """The store's URL without its password, for logs and answers."""
        return masked(self.store_url)

    @property
    def loopback_only(self) -> bool:
        """True if nobody but this machine can reach the HTTP API."""
        return self.http_host in {"127.0.0.1", "::1", "localhost"}

    @property
    def missing_key(self) -> str | None:
        """The variable that `api_key_env` names and that is not set, if so."""
        return self.api_key_env if self.api_key_env and self.api_key is None else None


def find_config(config: Path | None = None) -> Path | None:
    """The configuration file: `config`, else AGENTD_CONFIG, else ./agentd.toml if it exists, else none."""
    if config is not None:
        return config
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    here = Path(CONFIG_NAME)
    return here if here.exists() else None


def load_settings(config: Path | None = None, **arguments: Any) -> DaemonSettings:
    """Settings from file, environment and `arguments` (None is left out), in rising order of precedence.

    Relative paths of the file are relative to the file, others to the working directory.

    Raises:
        SpecError: every mistake, each with the file's key or the variable's name.
    """
    path = find_config(config)
    file = read_toml(path) if path is not None else {}
    found = _file_mistakes(str(path), file)
    file = _relative_to(path, file)
    try:
        environment = EnvSettingsSource(DaemonSettings)()
    except SettingsError as error:
        raise SpecError([Mistake("environment", PREFIX, str(error))]) from error
    given = {key: value for key, value in arguments.items() if value is not None}
    merged = {key: value for key, value in (file | environment | given).items() if key in DaemonSettings.model_fields}
    if "api_key" not in environment:
        merged.pop("api_key", None)
    variable = merged.get("api_key_env")
    if isinstance(variable, str) and os.environ.get(variable):
        merged["api_key"] = SecretStr(os.environ[variable])
    try:
        settings = DaemonSettings(**merged)
    except ValidationError as error:
        found += [_blame(mistake, given, environment) for mistake in mistakes(error, DaemonSettings, merged, str(path))]
        settings = None
    if found or settings is None:
        raise SpecError(list(dict.fromkeys(found)))
    state_directory = settings.state_directory.expanduser().absolute()
    return settings.model_copy(
        update={
            "agents": settings.agents.expanduser().absolute(),
            "state_directory": state_directory,
            "reply_cache": settings.reply_cache and settings.reply_cache.expanduser().absolute(),
            "store_url": settings.store_url or f"sqlite+aiosqlite:///{state_directory / 'agentd.db'}",
        }
    )


def _relative_to(path: Path | None, file: Mapping[str, Any]) -> dict[str, Any]:
    """`file` with its paths made absolute, that of an SQLite store included."""
    folder = Path.cwd() if path is None else path.absolute().parent
    made = dict(file)
    for key in ("agents", "state_directory", "reply_cache"):
        if isinstance(made.get(key), str):
            made[key] = str(folder / Path(made[key]).expanduser())
    scheme, separator, database = str(made.get("store_url", "")).partition(":///")
    if separator and scheme.split("+")[0] == "sqlite" and not database.startswith("/"):
        made["store_url"] = f"{scheme}:///{folder / database}"
    return made


def _blame(mistake: Mistake, given: Mapping[str, Any], environment: Mapping[str, Any]) -> Mistake:
    name = mistake.key.split("[")[0]
    if name in given:
        return Mistake("argument", mistake.key, mistake.expected)
    return Mistake("environment", PREFIX + mistake.key.upper(), mistake.expected) if name in environment else mistake


def _file_mistakes(name: str, file: Mapping[str, Any]) -> list[Mistake]:
    known = set(DaemonSettings.model_fields) - {"api_key"}
    found = []
    for key, value in file.items():
        if key == "api_key":
            found.append(
                Mistake(name, key, "a key doesn't belong in a file: put it in an environment variable and name that in api_key_env")
            )
        elif key not in known:
            found.append(Mistake(name, key, f"unknown key{suggestion(key, known)}"))
        elif isinstance(value, str) and key in {"http_port", "seed"}:
            found.append(Mistake(name, key, "should be a whole number"))
    return found


# --- where a running daemon is ---------------------------------------------------------------------------------------


class Address(msgspec.Struct, frozen=True):
    """`<state>/daemon.json`: where the running daemon answers. `url` is its HTTP root, without a slash at the end."""

    url: str
    pid: int


def _address_path(state_directory: Path) -> Path:
    return state_directory / "daemon.json"


def write_address(state_directory: Path, url: str) -> None:
    """Make known where this process answers, whole or not at all."""
    path = _address_path(state_directory)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(Address(url.rstrip("/"), os.getpid())) + b"\n")
    new.replace(path)


def read_address(state_directory: Path) -> Address | None:
    """The address of the last daemon, which may have been killed since, or None. Raises AgentdError for a damaged file."""
    path = _address_path(state_directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Address)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise AgentdError(f"{path} can't be read: {error}") from error


def remove_address(state_directory: Path) -> None:
    """Forget the address when the daemon ends."""
    _address_path(state_directory).unlink(missing_ok=True)
