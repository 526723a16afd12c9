"""How much the workers of a job have reported, so that it can be bounded and pruned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reported",
        sa.Column("job_id", sa.String(40), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
            for name in ("lines", "characters", "pruned", "pruned_to", "events")
        ),
        sa.Column("progress_seq", sa.BigInteger()),
        sa.Column("events_pruned_at", sa.String(27)),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_reported_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_reported")),
    )
    op.execute(
        "INSERT INTO reported (job_id, lines, characters) "
        "SELECT jobs.id, COUNT(log_lines.id), COALESCE(SUM(LENGTH(log_lines.text)), 0) "
        "FROM jobs LEFT JOIN log_lines ON log_lines.job_id = jobs.id GROUP BY jobs.id"
    )


def downgrade() -> None:
    op.drop_table("reported")
