"""Values for the environment of jobs that nobody may read back: kept apart, encrypted, by owner and name.

The key lies in a file beside the database and not in it, so that a copy of the database gives nothing away.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from syncnorm.service.confinement import private_text
from syncnorm.service.jobs.actors import SERVICE, Actor
from syncnorm.service.store.administration.secrets import SecretTable
from syncnorm.service.store.values import StoredSecret

KEY_FILE = "secrets.key"


class SecretUnreadableError(Exception):
    """A secret that was kept under another key."""


class Secrets:
    def __init__(self, sealed: SecretTable, key: bytes) -> None:
        self._sealed = sealed
        self._fernet = Fernet(key)

    def put(self, owner: str, name: str, value: str, by: Actor = SERVICE) -> None:
        """Keep a value; one of the same name is replaced."""
        self._sealed.put(owner, name, self._fernet.encrypt(value.encode()).decode(), by)

    def delete(self, owner: str, name: str, by: Actor = SERVICE) -> bool:
        """False if there is no such secret."""
        return self._sealed.delete(owner, name, by)

    def find(self, owner: str) -> list[StoredSecret]:
        """An owner's secrets without their values, by name."""
        return self._sealed.find(owner)

    def missing(self, owner: str, names: set[str]) -> set[str]:
        return names - self._sealed.names(owner)

    def values(self, owner: str, names: set[str]) -> dict[str, str]:
        """Those that are there, in clear: for the workers of a job, and nobody else.

        Raises: SecretUnreadableError.
        """
        try:
            return {
                name: self._fernet.decrypt(sealed).decode()
                for name, sealed in self._sealed.sealed(owner, names).items()
            }
        except InvalidToken as error:
            raise SecretUnreadableError("a secret was kept under another key; put it again") from error


def secrets_key(file: Path | None, home: Path) -> bytes:
    """The key from the text of its file, or from one made and kept in the state folder.

    Raises: ValueError if the file holds too little; OSError if it can't be read.
    """
    path = file or home / KEY_FILE
    text = private_text(path, lambda: secrets.token_hex(32), is_given=file is not None)
    if len(text) < 32:
        raise ValueError(f"{path} must hold at least 32 random characters, got {len(text)}")
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
