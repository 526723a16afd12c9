"""Where the ranks of an attempt run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("attempts", "node_id")  # nothing ever wrote it
    op.add_column("attempts", sa.Column("placement", sa.JSON()))


def downgrade() -> None:
    op.drop_column("attempts", "placement")
    op.add_column("attempts", sa.Column("node_id", sa.String(64)))
