"""What awaits regeneration is kept in a table, where a killed process cannot forget it."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and move into it what a stopped service has left in `meta`."""
    reference = sa.ForeignKey("items.row_id", ondelete="CASCADE")
    op.create_table(
        "awaiting",
        sa.Column("item_row", sa.BigInteger, reference, primary_key=True, nullable=False),
        sa.Column("mark", sa.BigInteger, nullable=False),
    )
    _move(op.get_bind())


def _move(connection: sa.Connection) -> None:
    left = connection.execute(sa.text("SELECT value FROM meta WHERE key = 'stale'")).scalar_one_or_none()
    insert = sa.text("INSERT INTO awaiting SELECT row_id, 0 FROM items WHERE id = :item")
    for item in json.loads(left or "[]"):
        connection.execute(insert, {"item": item})
    connection.execute(sa.text("DELETE FROM meta WHERE key = 'stale'"))
