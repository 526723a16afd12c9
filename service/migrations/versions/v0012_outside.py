"""What is known of the outside: undescribed runs, marked storages, reports that failed, and a table to write to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Runs that there are were described when their attempts were launched.
    op.create_table(
        "descriptions",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_descriptions_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_descriptions")),
    )
    op.create_table(
        "storages",
        sa.Column("root", sa.String(400), nullable=False),
        sa.Column("installation", sa.String(40), nullable=False),
        sa.Column("marked_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("root", name=op.f("pk_storages")),
    )
    op.create_table(
        "probe",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("filler", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_probe")),
    )
    op.add_column("studies", sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("studies", sa.Column("problem", sa.Text()))


def downgrade() -> None:
    op.drop_column("studies", "problem")
    op.drop_column("studies", "failures")
    for table in ("probe", "storages", "descriptions"):
        op.drop_table(table)
