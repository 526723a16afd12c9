"""How the export of a job went, since a job succeeds once its weights are published."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("export", sa.JSON()))


def downgrade() -> None:
    op.drop_column("jobs", "export")
