"""Indexes for the looks that are taken all the time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UNSETTLED = sa.text(
    "stop IS NOT NULL OR (state = 'queued' AND deadline_s IS NOT NULL AND started_at IS NOT NULL) "
    "OR (run_id IS NOT NULL AND (run_status IS NULL OR run_status <> CASE state "
    "WHEN 'queued' THEN 'SCHEDULED' WHEN 'paused' THEN 'SCHEDULED' WHEN 'succeeded' THEN 'FINISHED' "
    "WHEN 'failed' THEN 'FAILED' WHEN 'cancelled' THEN 'KILLED' ELSE 'RUNNING' END))"
)


def upgrade() -> None:
    op.drop_index(op.f("ix_jobs_state_priority_queued_at"), table_name="jobs")
    op.create_index(op.f("ix_jobs_state_id_version"), "jobs", ["state", "id", "version"])
    op.create_index(op.f("ix_jobs_owner_state"), "jobs", ["owner", "state"])
    op.create_index(op.f("ix_jobs_norm_id"), "jobs", ["norm", "id"])
    op.create_index(op.f("ix_jobs_name_id"), "jobs", ["name", "id"])
    op.create_index("ix_jobs_unsettled", "jobs", ["id"], sqlite_where=UNSETTLED, postgresql_where=UNSETTLED)


def downgrade() -> None:
    op.drop_index("ix_jobs_unsettled", table_name="jobs")
    op.drop_index(op.f("ix_jobs_name_id"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_norm_id"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_owner_state"), table_name="jobs")
    op.drop_index(op.f("ix_jobs_state_id_version"), table_name="jobs")
    op.create_index(op.f("ix_jobs_state_priority_queued_at"), "jobs", ["state", "priority", "queued_at"])
