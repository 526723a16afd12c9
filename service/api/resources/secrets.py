"""/v1/secrets: values for the environment of jobs. You can store, list and delete them, but not read them back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, StringConstraints

from syncnorm.service.api.dependencies import Reader, Submitter, provide
from syncnorm.service.api.http.errors import ApiError, not_found
from syncnorm.service.api.http.route import Route
from syncnorm.service.api.views.view import View
from syncnorm.service.integrations.secrets import Secrets

router = APIRouter(prefix="/v1/secrets", tags=["secrets"], route_class=Route)
OwnSecrets = Annotated[Secrets, Depends(provide(lambda parts: parts.secrets))]
SecretName = Annotated[str, Path(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$", description="Name of a secret of yours.")]


class SecretValue(BaseModel):
    """The value of a secret."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    value: Annotated[str, StringConstraints(min_length=1, max_length=32768)]
    """1 to 32,768 characters, without NUL. Kept sealed, and never shown again. Attempts that start later get it."""


class SecretView(View):
    """A secret of yours, without its value."""

    name: str
    """What a spec names: `env: {VARIABLE: {secret: NAME}}`."""
    updated_at: datetime
    """When its value was last put."""
    problem: str | None = None
    """Which part of it can't be read, if the database was damaged: store the secret again. null if it can."""


class SecretPage(View):
    """All secrets of yours."""

    items: list[SecretView]
    """The secrets, without their values."""
    next_cursor: str | None = None
    """Always null: all of them are on this page."""


@router.put("/{name}", status_code=204)
def put_secret(name: SecretName, body: SecretValue, secrets: OwnSecrets, who: Submitter) -> None:
    """Store a secret, which your specs name as `env: {VARIABLE: {secret: NAME}}`. A new value replaces the old one."""
    if any(char == "\x00" or "\ud800" <= char <= "\udfff" for char in body.value):
        raise ApiError(422, "invalid_value", "A secret must not contain NUL or lone surrogates.")
    secrets.put(who.name, name, body.value, who.actor)


@router.get("")
def list_secrets(secrets: OwnSecrets, who: Reader) -> SecretPage:
    """The names of your secrets."""
    found = secrets.find(who.name)
    return SecretPage(items=[SecretView(**vars(secret)) for secret in found])


@router.delete("/{name}", status_code=204)
def delete_secret(name: SecretName, secrets: OwnSecrets, who: Submitter) -> None:
    """Delete a secret. Jobs that name it fail at their next attempt."""
    if not secrets.delete(who.name, name, who.actor):
        raise not_found("secret", name)
