"""Brings PostgreSQL to what this version needs. Run before every start; changes nothing that is right already.

Roles and databases (syncnorm, mlflow, mlflow_auth), their passwords, all three schemas, and the MLflow account that the
API and the workers use. Passwords come from the files in SECRETS and overrule what is there: to rotate one, replace
its file and start again. --empty: only the roles, and databases without content, for deploy/restore.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

SECRETS = Path(os.environ.get("SECRETS", "/run/secrets"))
HOST = os.environ.get("POSTGRES_HOST", "postgres")
DATABASES = {"syncnorm": "syncnorm", "mlflow": "mlflow", "mlflow_auth": "mlflow"}
SERVICE_ACCOUNT = "syncnorm"


def main() -> None:
    try:
        prepare(is_emptied="--empty" in sys.argv[1:])
    except psycopg.OperationalError as error:
        sys.exit(f"can't use PostgreSQL on {HOST}: {error}{remedy(error)}")


def remedy(error: psycopg.OperationalError) -> str:
    """What to change, as a sentence of its own; empty if the error is no refusal of the password."""
    if "password authentication failed" not in str(error):
        return ""
    return (
        "\nThe volume was made with another postgres_password than the one in deploy/secrets. Put the old file "
        "back, or set the new password in the database first: ALTER ROLE postgres PASSWORD …"
    )


def prepare(*, is_emptied: bool) -> None:
    password = secret("postgres_password")
    with psycopg.connect(
        host=HOST, user="postgres", dbname="postgres", password=password, autocommit=True
    ) as connection:
        for role in sorted(set(DATABASES.values())):
            ensure_role(connection, role, secret(f"{role}_pgpass").rsplit(":", 1)[1])
        for database, owner in DATABASES.items():
            if is_emptied:
                drop_database(connection, database)
            ensure_database(connection, database, owner)
    if is_emptied:
        return
    migrate_service()
    migrate_mlflow()
    ensure_accounts()
    print("databases ready", flush=True)


def ensure_role(connection: psycopg.Connection, role: str, password: str) -> None:
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    change = sql.SQL("ALTER ROLE {} PASSWORD {}")
    connection.execute(change.format(sql.Identifier(role), sql.Literal(password)))


def ensure_database(connection: psycopg.Connection, database: str, owner: str) -> None:
    names = {"database": sql.Identifier(database), "owner": sql.Identifier(owner)}
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {database} OWNER {owner}").format(**names))
    connection.execute(sql.SQL("REVOKE CONNECT ON DATABASE {database} FROM PUBLIC").format(**names))


def drop_database(connection: psycopg.Connection, database: str) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


def migrate_service() -> None:
    from syncnorm.service.backend_errors import DatabaseUnavailableError
    from syncnorm.service.store.database import Database, UnusableDatabaseError

    try:
        with closing(Database(url("syncnorm"))) as database:
            database.migrate()
    except (UnusableDatabaseError, DatabaseUnavailableError) as error:
        sys.exit(f"syncnorm: {error}")


def migrate_mlflow() -> None:
    """`mlflow db upgrade`, in this process: importing MLflow twice would take seconds of every start."""
    from mlflow.db import upgrade

    with known_to_mlflow("mlflow"):
        upgrade.main([url("mlflow")], standalone_mode=False)


def ensure_accounts() -> None:
    """The administrator, and the account of the API and the workers, in MLflow's own user store."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    with known_to_mlflow("mlflow_auth"):
        store.init_db(url("mlflow_auth"))
    accounts = {"admin": ("mlflow_admin_password", True), SERVICE_ACCOUNT: ("mlflow_service_password", False)}
    for name, (file, is_admin) in accounts.items():
        if store.has_user(name):
            store.update_user(name, password=secret(file))
        else:
            store.create_user(name, secret(file), is_admin=is_admin)


@contextmanager
def known_to_mlflow(database: str) -> Iterator[None]:
    """Ends this program with a sentence where a newer MLflow made the tables."""
    from alembic.util import CommandError

    try:
        yield
    except CommandError as error:
        sys.exit(
            f"{database}: the database has tables that this MLflow does not know ({error}). Start the image that made "
            "them, or restore the backup from before the upgrade."
        )


def url(database: str) -> str:
    owner = DATABASES[database]
    return f"postgresql+psycopg://{owner}@{HOST}/{database}?passfile={SECRETS / f'{owner}_pgpass'}"


def secret(name: str) -> str:
    return (SECRETS / name).read_text().strip()


if __name__ == "__main__":
    main()
