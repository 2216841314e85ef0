"""What a waiting device is counted as, and by which login it was let in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


_ADDED = ("login_id", "role", "network")


def upgrade() -> None:
    for name in _ADDED:
        op.add_column("device_grant", sa.Column(name, sa.String(), nullable=True))


def downgrade() -> None:
    for name in reversed(_ADDED):
        op.drop_column("device_grant", name)
