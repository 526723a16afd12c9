"""`syncnorm token`: make, list and revoke tokens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from syncnorm.service.cli.arguments import AsJson
from syncnorm.service.cli.formatting import local_time
from syncnorm.service.cli.terminal import connect, show_value

token_app = typer.Typer(help="Make, list and revoke tokens.", no_args_is_help=True)


@token_app.command("create")
def create_token(
    owner: Annotated[str, typer.Argument(help="Who the token is for; jobs submitted with it belong to this name.")],
    scope: Annotated[list[str], typer.Option(help="read, submit or admin; may be given several times.")],
    expires_at: Annotated[
        str | None,
        typer.Option(help="When it stops working, for example 2027-01-31T00:00:00Z. Default: when you revoke it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token. It is printed here and never again."""
    with connect() as client:
        made = client.create_token(owner, scope, expires_at)
    show_value(made, as_json, lambda made: made["token"])


@token_app.command("ls")
def list_tokens(as_json: AsJson = False) -> None:
    """List all tokens, without their secrets."""
    with connect() as client:
        found = client.tokens()
    show_value(found, as_json, lambda found: "\n".join(map(_line, found)))


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Id of the token, as `syncnorm token ls` shows it.")],
) -> None:
    """Revoke a token. It stops working at once."""
    with connect() as client:
        client.revoke_token(token_id)
    print(f"{token_id} revoked")


def _line(token: dict[str, Any]) -> str:
    if token["revoked_at"]:
        standing = f"revoked {local_time(token['revoked_at'])}"
    else:
        standing = f"until {local_time(token['expires_at']) or 'revoked'}"
    return f"{token['id']}  {token['owner']}  {','.join(token['scopes'])}  {standing}"
