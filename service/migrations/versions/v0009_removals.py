"""Deleted jobs whose files still lie on the storage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removals",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("deleted_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_removals")),
    )


def downgrade() -> None:
    op.drop_table("removals")
