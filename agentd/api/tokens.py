"""Who may do what: three tokens in the state directory, and the status page's cookie that is derived from them."""

import enum
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Self

from agentd.errors import AgentdError

SESSION_SECONDS = 12 * 3600.0
_PREFIX = "agentd_"


class Role(enum.StrEnum):
    """VIEWER reads (episodes hold users' words, so reading needs it, too); OPERATOR also changes, and may do whatever the others may.

    CLIENT is for programs that use agents which are served over HTTP: it asks, and says what answers were worth, and reads nothing.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    CLIENT = "client"

    @property
    def reads(self) -> bool:
        """Whether it may see what agents did: the words of all their users."""
        return self is not Role.CLIENT


class Tokens:
    """The three tokens. Comparisons take the same time whatever is wrong with a guess."""

    def __init__(self, operator: str, viewer: str, client: str) -> None:
        self._tokens = {Role.OPERATOR: operator, Role.VIEWER: viewer, Role.CLIENT: client}

    @classmethod
    def load_or_create(cls, state_directory: Path) -> Self:
        """The tokens in `<role>.token` files of the state directory; on first start they are generated, with mode 0600.

        Raises:
            AgentdError: a file can't be used, or others may read it.
        """
        return cls(*(_load_or_create(token_path(state_directory, role)) for role in (Role.OPERATOR, Role.VIEWER, Role.CLIENT)))

    def role(self, token: str) -> Role | None:
        """Whose token it is."""
        guess = _digest(token)
        matches = [role for role, known in self._tokens.items() if hmac.compare_digest(_digest(known), guess)]
        return matches[0] if matches else None

    def open_session(self, now: float) -> str:
        """The value of a cookie that lets the status page read, and only read, for SESSION_SECONDS. Survives a restart of the daemon."""
        expires = f"{now + SESSION_SECONDS:.0f}"
        return f"{expires}.{self._sign(expires)}"

    def is_session(self, cookie: str, now: float) -> bool:
        """Whether `cookie` came from `open_session` and has not expired."""
        expires, _, signature = cookie.partition(".")
        genuine = hmac.compare_digest(_digest(self._sign(expires)), _digest(signature))
        return genuine and float(expires) > now

    def _sign(self, expires: str) -> str:
        # Signed with the operator's token: when the tokens are replaced, all sessions end.
        return hmac.new(self._tokens[Role.OPERATOR].encode(), f"session {expires}".encode(), hashlib.sha256).hexdigest()


def token_path(state_directory: Path, role: Role) -> Path:
    """Where the token of `role` is kept."""
    return state_directory / f"{role}.token"


def read_token(state_directory: Path, role: Role = Role.OPERATOR) -> str | None:
    """The token of `role`, if there is one that this user may read."""
    try:
        return token_path(state_directory, role).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _load_or_create(path: Path) -> str:
    try:
        try:
            return _create(path)
        except FileExistsError:
            return _load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise AgentdError(f"the token {path} can't be used: {error}") from error


def _create(path: Path) -> str:
    token = _PREFIX + secrets.token_urlsafe(32)
    # O_EXCL: never write a secret into a file, or through a link, that somebody else has put there.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token


def _load(path: Path) -> str:
    with path.open(encoding="ascii") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        token = file.read().strip()
    if mode & 0o077:
        raise AgentdError(f"others may read the token {path} (mode {mode:04o}): delete it, and a new one is made at the next start")
    if len(token) < 32:
        raise AgentdError(f"the token {path} is too short to be safe: delete it, and a new one is made at the next start")
    return token
