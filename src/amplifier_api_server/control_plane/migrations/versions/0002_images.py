"""Collections are images of several trees; installations, tenants' own profiles and provider keys; what a call cost.

A server default fills the rows that are there. An installed zip becomes an image of its one tree.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ADDED = {
    "collection": ("image",),
    "tenant": ("web",),
    "usage": ("cached_tokens", "cache_write_tokens", "reasoning_tokens", "own_key"),
}


def upgrade() -> None:
    op.create_table(
        "installation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("member_id", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("warnings", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("failure", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("collection", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("installation", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_installation_status"), ["status"], unique=False)
        batch_op.create_index("ix_installation_tenant_created", ["tenant_id", "created_at", "id"], unique=False)

    op.create_table(
        "profile",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("is_removed", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("profile", schema=None) as batch_op:
        batch_op.create_index("ux_profile_tenant_name_version", ["tenant_id", "name", "version"], unique=True)

    op.create_table(
        "provider_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenant.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("provider_key", schema=None) as batch_op:
        batch_op.create_index("ux_provider_key_tenant_provider", ["tenant_id", "provider"], unique=True)

    with op.batch_alter_table("collection", schema=None) as batch_op:
        batch_op.add_column(sa.Column("image", sa.JSON(none_as_null=True), nullable=False, server_default="{}"))

    with op.batch_alter_table("tenant", schema=None) as batch_op:
        batch_op.add_column(sa.Column("web", sa.JSON(none_as_null=True), nullable=False, server_default="{}"))

    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cached_tokens", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("cache_write_tokens", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("reasoning_tokens", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("cost_microdollars", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("own_key", sa.Boolean(), nullable=False, server_default=sa.false()))

    with op.batch_alter_table("turn", schema=None) as batch_op:
        # Their defaults stay: SQLite would write the table anew to drop them, with its two foreign keys in any order.
        batch_op.add_column(sa.Column("cached_tokens", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("reasoning_tokens", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("cost_microdollars", sa.BigInteger(), nullable=True))

    for table, columns in _ADDED.items():  # new rows say what they are: only the old ones needed a default
        with op.batch_alter_table(table, schema=None) as batch_op:
            for column in columns:
                batch_op.alter_column(column, server_default=None)
    _make_images()


def downgrade() -> None:
    _unmake_images()
    with op.batch_alter_table("turn", schema=None) as batch_op:
        batch_op.drop_column("cost_microdollars")
        batch_op.drop_column("reasoning_tokens")
        batch_op.drop_column("cached_tokens")

    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.drop_column("own_key")
        batch_op.drop_column("cost_microdollars")
        batch_op.drop_column("reasoning_tokens")
        batch_op.drop_column("cache_write_tokens")
        batch_op.drop_column("cached_tokens")

    with op.batch_alter_table("tenant", schema=None) as batch_op:
        batch_op.drop_column("web")

    with op.batch_alter_table("collection", schema=None) as batch_op:
        batch_op.drop_column("image")

    with op.batch_alter_table("provider_key", schema=None) as batch_op:
        batch_op.drop_index("ux_provider_key_tenant_provider")

    op.drop_table("provider_key")
    with op.batch_alter_table("profile", schema=None) as batch_op:
        batch_op.drop_index("ux_profile_tenant_name_version")

    op.drop_table("profile")
    with op.batch_alter_table("installation", schema=None) as batch_op:
        batch_op.drop_index("ix_installation_tenant_created")
        batch_op.drop_index(batch_op.f("ix_installation_status"))

    op.drop_table("installation")


_COLLECTION = sa.table(
    "collection",
    sa.column("id"),
    sa.column("name"),
    sa.column("source"),
    sa.column("content_hash"),
    sa.column("image", sa.JSON()),
)
_SESSION = sa.table("session", sa.column("id"), sa.column("collections", sa.JSON()))


def _make_images() -> None:
    """A session of zips knew only their trees' hashes; their names are in the collections that are still installed."""
    connection = op.get_bind()
    names = {}
    for row in connection.execute(sa.select(_COLLECTION)).all():
        image = _image(row.name, row.source, row.content_hash)
        names[row.content_hash] = image
        changed = sa.update(_COLLECTION).where(_COLLECTION.c.id == row.id).values(image=image)
        connection.execute(changed)
    for row in connection.execute(sa.select(_SESSION)).all():
        hashes = _read(row.collections)
        if hashes:
            images = [names.get(one) or _image(f"removed-{one[:12]}", "upload", one) for one in hashes]
            connection.execute(sa.update(_SESSION).where(_SESSION.c.id == row.id).values(collections=images))


def _unmake_images() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_SESSION)).all():
        images = _read(row.collections)
        if images:
            hashes = [one["root"]["tree"] for one in images]
            connection.execute(sa.update(_SESSION).where(_SESSION.c.id == row.id).values(collections=hashes))


def _image(name: str, source: str, tree: str) -> dict[str, Any]:
    root = {"uri": source, "commit": None, "tree": tree}
    return {"name": name, "root": root, "subdirectory": "", "sources": [], "packages": None, "distributions": []}


def _read(value: Any) -> list[Any]:
    return list(json.loads(value) if isinstance(value, str) else value or [])
