"""What holds for a job, as its latest attempt has found it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("guarantees", sa.JSON()))


def downgrade() -> None:
    op.drop_column("jobs", "guarantees")
