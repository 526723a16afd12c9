"""What was measured at a checkpoint, and which one was the best when it was written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("metrics", sa.JSON()))
    op.add_column("checkpoints", sa.Column("best_step", sa.BigInteger()))


def downgrade() -> None:
    op.drop_column("checkpoints", "best_step")
    op.drop_column("checkpoints", "metrics")
