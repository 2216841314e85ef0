"""Sessions that close with their turn."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.add_column(sa.Column("closes_with_turn", sa.Boolean(), nullable=False, server_default="0"))
        batch_op.create_index(
            "ix_session_closes_with_turn",
            ["last_active_at"],
            sqlite_where=sa.text("closes_with_turn = 1"),
            postgresql_where=sa.text("closes_with_turn"),
        )


def downgrade() -> None:
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.drop_index("ix_session_closes_with_turn")
        batch_op.drop_column("closes_with_turn")
