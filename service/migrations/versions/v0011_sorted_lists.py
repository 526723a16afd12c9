"""Indexes for lists by priority and by the time jobs finished."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_jobs_priority_id"), "jobs", ["priority", "id"])
    op.create_index(op.f("ix_jobs_finished_at_id"), "jobs", ["finished_at", "id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_finished_at_id"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_priority_id"), table_name="jobs")
