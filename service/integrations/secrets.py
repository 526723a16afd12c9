"""Secrets for the environment of jobs: encrypted, by owner and name, and never readable through the API.

The key is in a file and not in the database, so that a copy of the database reveals nothing.
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
    """A secret that was sealed with another key."""


class Secrets:
    def __init__(self, sealed: SecretTable, key: bytes) -> None:
        self._sealed = sealed
        self._fernet = Fernet(key)

    def put(self, owner: str, name: str, value: str, by: Actor = SERVICE) -> None:
        """Store a value; it replaces one of the same name."""
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
        """The decrypted values of existing secrets: for the workers of a job only.

        Raises: SecretUnreadableError."""
        try:
            return {
                name: self._fernet.decrypt(sealed).decode()
                for name, sealed in self._sealed.sealed(owner, names).items()
            }
        except InvalidToken as error:
            raise SecretUnreadableError(
                "a secret was sealed with another key. Restore the key file, or store the secret again"
            ) from error


def secrets_key(file: Path | None, home: Path) -> bytes:
    """The key, from its file, or generated and stored in the state folder.

    Raises: ValueError if the file is too short; OSError if it can't be read.
    """
    path = file or home / KEY_FILE
    text = private_text(path, lambda: secrets.token_hex(32), is_given=file is not None)
    if len(text) < 32:
        raise ValueError(f"{path} must hold at least 32 random characters, got {len(text)}")
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
