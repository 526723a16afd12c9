"""Studies and their children."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("project", sa.String(120), nullable=False),
        sa.Column("owner", sa.String(120), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("experiment_id", sa.String(64)),
        sa.Column("run_id", sa.String(64)),
        sa.Column("reported_at", sa.String(27)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
    )
    op.create_index(op.f("ix_studies_owner_id"), "studies", ["owner", "id"])
    op.create_table(
        "study_children",
        sa.Column("study_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("point", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("grouped_run", sa.String(64)),
        sa.PrimaryKeyConstraint("study_id", "number", name=op.f("pk_study_children")),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name=op.f("fk_study_children_study_id"), ondelete="CASCADE"
        ),
        sa.UniqueConstraint("job_id", name=op.f("uq_study_children_job_id")),
    )


def downgrade() -> None:
    op.drop_table("study_children")
    op.drop_table("studies")
