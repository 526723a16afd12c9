"""Who did it: actor and request of each event, who asked for a stop, and an audit of what was done to what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_EVENTS = {"actor_kind": 8, "actor": 120, "token_id": 20, "request_id": 40}
_RENAMED = {"who": "owner", "method": "action", "path": "object"}
_INDEXED = ("owner", "action", "object")


def upgrade() -> None:
    for name, length in _EVENTS.items():
        op.add_column("events", sa.Column(name, sa.String(length)))
    op.add_column("jobs", sa.Column("stop_by", sa.String(160)))
    for old, new in _RENAMED.items():
        op.execute(f"ALTER TABLE audit RENAME COLUMN {old} TO {new}")
    if op.get_bind().dialect.name != "sqlite":  # which keeps no lengths
        op.alter_column("audit", "action", type_=sa.String(40))
    for column in (
        sa.Column("actor_kind", sa.String(8), nullable=False, server_default="user"),
        sa.Column("token_id", sa.String(20)),
        sa.Column("before", sa.JSON()),
        sa.Column("after", sa.JSON()),
        sa.Column("outcome", sa.String(12), nullable=False, server_default="done"),
        sa.Column("detail", sa.Text(), nullable=False, server_default=""),
        sa.Column("count", sa.Integer(), nullable=False, server_default="1"),
    ):
        op.add_column("audit", column)
    op.execute("UPDATE audit SET outcome = CASE WHEN status < 500 THEN 'refused' ELSE 'failed' END WHERE status >= 400")
    op.drop_column("audit", "status")
    for name in _INDEXED:
        op.create_index(op.f(f"ix_audit_{name}"), "audit", [name, "seq"])


def downgrade() -> None:
    for name in _INDEXED:
        op.drop_index(op.f(f"ix_audit_{name}"), "audit")
    op.add_column("audit", sa.Column("status", sa.Integer(), nullable=False, server_default="200"))
    for name in ("actor_kind", "token_id", "before", "after", "outcome", "detail", "count"):
        op.drop_column("audit", name)
    for old, new in _RENAMED.items():
        op.execute(f"ALTER TABLE audit RENAME COLUMN {new} TO {old}")
    op.drop_column("jobs", "stop_by")
    for name in _EVENTS:
        op.drop_column("events", name)
