"""How few workers a job goes on with, and how many each attempt has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("min_workers", sa.Integer()))
    op.add_column("jobs", sa.Column("world_size", sa.Integer()))
    op.add_column("attempts", sa.Column("workers", sa.Integer(), nullable=False, server_default="1"))
    # Until now every attempt had the whole gang.
    op.execute("UPDATE attempts SET workers = (SELECT jobs.workers FROM jobs WHERE jobs.id = attempts.job_id)")
    op.execute("UPDATE jobs SET world_size = workers WHERE attempt > 0")


def downgrade() -> None:
    op.drop_column("attempts", "workers")
    op.drop_column("jobs", "world_size")
    op.drop_column("jobs", "min_workers")
