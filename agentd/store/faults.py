"""What databases raise, translated to agentd.errors at the border."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from agentd.errors import StoreError, StoreUnavailable

_HINTS = {
    "full": "the disk is full",
    "locked": "another process holds the database for writing",
    "readonly": "the database or its folder may not be written",
    "unable to open": "the database can't be opened",
    "disk I/O error": "the disk failed, or its quota is used up",
}


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what SQLAlchemy, a driver or the system raises inside into StoreUnavailable or StoreError; `where` names the database."""
    try:
        yield
    except IntegrityError as error:
        raise StoreError(f"{where}: a record refers to one that was never committed: {error.orig}") from error
    except (OperationalError, InterfaceError) as error:
        text = str(error.orig)
        hint = next((hint for sign, hint in _HINTS.items() if sign in text), "the database can't be used now")
        raise StoreUnavailable(f"{where}: {hint} ({text})") from error
    except PoolTimeoutError as error:
        raise StoreUnavailable(f"{where}: too many reads at once") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise StoreUnavailable(f"{where}: the connection to the database was lost ({error.orig})") from error
        raise StoreError(f"{where}: the database is damaged or not what it should be: {error.orig}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"{where}: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"{where}: {error.strerror or error}") from error
