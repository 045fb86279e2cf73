"""What databases raise, translated to agentd.errors at the border."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from agentd.errors import StoreError, StoreUnavailable

# SQLite's codes for what may be otherwise later; all others are about the file's content or our own mistake.
_PASSING = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk failed, or its quota is used up",
    sqlite3.SQLITE_BUSY: "another process holds the database for writing",
    sqlite3.SQLITE_LOCKED: "another process holds the database for writing",
    sqlite3.SQLITE_PROTOCOL: "another process holds the database for writing",
    sqlite3.SQLITE_READONLY: "the database or its folder may not be written",
    sqlite3.SQLITE_CANTOPEN: "the database can't be opened",
    sqlite3.SQLITE_PERM: "the database can't be opened",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}

# PostgreSQL's: connection exceptions, rolled-back transactions, insufficient resources, held objects, an operator's intervention.
_PASSING_CLASSES = frozenset({"08", "40", "53", "55", "57"})


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what SQLAlchemy, a driver or the system raises inside into StoreUnavailable or StoreError; `where` names the database."""
    try:
        yield
    except IntegrityError as error:
        raise StoreError(f"{where}: a record refers to one that was never committed: {error.orig}") from error
    except DBAPIError as error:
        raise _translate(where, error) from error
    except PoolTimeoutError as error:
        raise StoreUnavailable(f"{where}: too many reads at once") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{where}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"{where}: {error.strerror or error}") from error


def _translate(where: str, error: DBAPIError) -> StoreError:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest of it is detail
        if code in _PASSING:
            return StoreUnavailable(f"{where}: {_PASSING[code]} ({cause})")
    elif error.connection_invalidated or str(getattr(cause, "sqlstate", None) or "08")[:2] in _PASSING_CLASSES:
        return StoreUnavailable(f"{where}: the database does not serve now ({cause})")
    return StoreError(f"{where}: the database is damaged or not what it should be ({cause})")
