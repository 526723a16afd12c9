"""Empty databases for tests: SQLite in a folder, and a private PostgreSQL server where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import psycopg

from syncnorm.service.local.free_ports import free_port
from syncnorm.service.store.database import Database


@contextmanager
def fresh_sqlite(folder: Path) -> Iterator[Database]:
    """An empty database of the newest form in a folder: a copy, for migrating takes as long as a test."""
    path = folder / "service.db"
    path.write_bytes(_template())
    with closing(Database(f"sqlite:///{path}", synchronous="OFF")) as database:
        yield database


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        with closing(Database(f"sqlite:///{path}", synchronous="OFF")) as database:
            database.migrate()
        return path.read_bytes()


def postgres_programs() -> Path | None:
    """Folder of initdb and postgres; Debian keeps them off the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if folders:
        return folders[-1]
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """URL of a server of our own on a loopback port. PostgreSQL refuses to run as root, so root lends it a user."""
    user = pwd.getpwnam("nobody").pw_name if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder, port = Path(name), free_port()
        if user:
            shutil.chown(folder, user)
        data = folder / "data"
        initdb = [programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=folder)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(port), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            cwd=folder,
        )
        try:
            url = f"postgresql://tests@127.0.0.1:{port}/postgres"
            while not _answers(url):
                assert server.poll() is None, "PostgreSQL did not start"
            yield url
        finally:
            server.terminate()
            server.wait(30)
