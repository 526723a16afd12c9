"""Later exports of finished jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("section", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("starts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.String(32)),
        sa.Column("session", sa.String(120)),
        sa.Column("begun_at", sa.String(27)),
        sa.Column("submitted_at", sa.String(27)),
        sa.Column("stop_sent_at", sa.String(27)),
        sa.Column("gone_at", sa.String(27)),
        sa.Column("not_before", sa.String(27)),
        sa.Column("reason", sa.String(32)),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("model", sa.JSON()),
        sa.Column("started_at", sa.String(27)),
        sa.Column("finished_at", sa.String(27)),
        sa.Column("released_at", sa.String(27)),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_exports")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_exports_job_id"), ondelete="CASCADE"),
    )
    op.create_index(op.f("ix_exports_released_at"), "exports", ["released_at"])


def downgrade() -> None:
    op.drop_table("exports")
