"""/v1/secrets: values for the environment of jobs. Put, named and removed; never shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, StringConstraints

from syncnorm.service.api.dependencies import Reader, Submitter, provide
from syncnorm.service.api.http.errors import ApiError, not_found
from syncnorm.service.api.http.route import Route
from syncnorm.service.integrations.secrets import Secrets

router = APIRouter(prefix="/v1/secrets", tags=["secrets"], route_class=Route)
OwnSecrets = Annotated[Secrets, Depends(provide(lambda parts: parts.secrets))]
SecretName = Annotated[str, Path(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]


class SecretValue(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    value: Annotated[str, StringConstraints(min_length=1, max_length=32768)]


class SecretView(BaseModel):
    name: str
    updated_at: datetime
    problem: str | None = None
    """What of it can't be read, where the database was damaged. Put the secret again."""


class SecretPage(BaseModel):
    items: list[SecretView]
    next_cursor: str | None = None


@router.put("/{name}", status_code=204)
def put_secret(name: SecretName, body: SecretValue, secrets: OwnSecrets, who: Submitter) -> None:
    """Keep a value that specs of the same owner may name as `env: {VARIABLE: {secret: NAME}}`."""
    if any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in body.value):
        raise ApiError(422, "invalid_value", "A secret must not contain NUL or lone surrogates.")
    secrets.put(who.name, name, body.value, who.actor)


@router.get("")
def list_secrets(secrets: OwnSecrets, who: Reader) -> SecretPage:
    """The names of one's own secrets."""
    found = secrets.find(who.name)
    return SecretPage(items=[SecretView(**vars(secret)) for secret in found])


@router.delete("/{name}", status_code=204)
def delete_secret(name: SecretName, secrets: OwnSecrets, who: Submitter) -> None:
    """Jobs that name it fail at their next attempt."""
    if not secrets.delete(who.name, name, who.actor):
        raise not_found("secret", name)
