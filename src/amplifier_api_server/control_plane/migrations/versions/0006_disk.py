"""What a session's files take on the disk. Those of sessions that are there already are measured after the start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.add_column(sa.Column("disk_bytes", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("disk_files", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("disk_is_known", sa.Boolean(), nullable=False, server_default="0"))
        batch_op.create_index(
            "ix_session_disk_unknown",
            ["last_active_at"],
            sqlite_where=sa.text("disk_is_known = 0 AND status <> 'closed'"),
            postgresql_where=sa.text("NOT disk_is_known AND status <> 'closed'"),
        )


def downgrade() -> None:
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.drop_index("ix_session_disk_unknown")
        batch_op.drop_column("disk_is_known")
        batch_op.drop_column("disk_files")
        batch_op.drop_column("disk_bytes")
