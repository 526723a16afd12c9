"""`syncnorm`: the same verbs as the API.

Exit codes: 0 fine, 1 the job failed, 2 wrong use, 3 unreachable, 4 not allowed.
"""

from __future__ import annotations

import typer

from service.commands import catalog, exports, host, jobs, records
from service.commands.studies import study_app
from service.commands.tokens import token_app
from service.commands.upload import package_app, secret_app

app = typer.Typer(
    name="syncnorm",
    help="Distributed training with synchronized normalization.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for family in (jobs.app, records.app, exports.app, catalog.app, host.app):
    app.add_typer(family)
app.add_typer(study_app, name="study")
app.add_typer(package_app, name="package")
app.add_typer(secret_app, name="secret")
app.add_typer(token_app, name="token")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
