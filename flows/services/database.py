"""`DB=postgresql://…`: one PostgreSQL database for Prefect's server and MLflow's.

Both keep a table `alembic_version`, so MLflow's tables live in a schema of their own. The address
holds a password: it goes to the servers through their environment, and is never printed.
"""

from __future__ import annotations

import asyncio
import importlib.util
from urllib.parse import SplitResult, urlsplit, urlunsplit

from infalign.errors import InputError

SCHEMA = "mlflow"
CONNECT_SECONDS = 10.0
_FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class Database:
    """A checked address; its text is not among its attributes' representations."""

    def __init__(self, url: str) -> None:
        self._parts = _checked(url)

    def __repr__(self) -> str:
        return f"Database({self.label})"

    @property
    def label(self) -> str:
        """The address without user and password."""
        place = self._parts.hostname or ""
        port = f":{self._parts.port}" if self._parts.port else ""
        return f"postgresql://{place}{port}{self._parts.path}"

    @property
    def prefect_url(self) -> str:
        """For Prefect's server, which talks through asyncpg."""
        return urlunsplit(self._parts._replace(scheme="postgresql+asyncpg"))

    @property
    def mlflow_url(self) -> str:
        """For MLflow's server, which talks through psycopg2, in its own schema."""
        query = "&".join(x for x in (self._parts.query, f"options=-csearch_path%3D{SCHEMA}") if x)
        return urlunsplit(self._parts._replace(scheme="postgresql+psycopg2", query=query))

    def prepare(self) -> None:
        """Look whether the database answers, and make MLflow's schema; or raise one sentence."""
        if importlib.util.find_spec("psycopg2") is None:
            raise InputError(
                "DB: MLflow needs psycopg2 to talk to PostgreSQL: "
                "pip install -c constraints.txt -e '.[postgres]'."
            )
        try:
            asyncio.run(self._create_schema())
        except Exception as error:  # asyncpg's, the network's, a timeout
            kind = type(error).__name__
            raise InputError(
                f"DB = {self.label} cannot be used ({kind}): check that the server runs, and the "
                "user, password and database of the address."
            ) from None

    async def _create_schema(self) -> None:
        import asyncpg

        url = urlunsplit(self._parts._replace(scheme="postgresql"))
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
        try:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        finally:
            await connection.close()


def _checked(url: str) -> SplitResult:
    """The parts of the address, or one sentence that does not repeat it."""
    try:
        parts = urlsplit(url.strip())
        wrong = parts.scheme not in ("postgresql", "postgres") or not parts.hostname
        wrong = wrong or parts.path in ("", "/") or parts.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise InputError(
            f"DB is not the address of a PostgreSQL database: write {_FORM}, with special "
            "characters of the password percent-encoded, or leave DB out for SQLite."
        )
    return parts
