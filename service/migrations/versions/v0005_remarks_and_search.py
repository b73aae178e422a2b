"""Remarks on given content; titles and ids are searched whichever way Unicode writes their letters."""

from __future__ import annotations

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ROWS = 1000  # read at once


def upgrade() -> None:
    """Add the column, and fold what is searched anew."""
    op.add_column("items", sa.Column("remarks", sa.Text, nullable=False, server_default="{}"))
    _fold_anew(op.get_bind())


def _fold_anew(connection: sa.Connection) -> None:
    read = sa.text("SELECT row_id, id, title, search_text FROM items WHERE row_id > :after ORDER BY row_id LIMIT :rows")
    write = sa.text("UPDATE items SET search_text = :folded WHERE row_id = :row")
    after = 0
    while rows := connection.execute(read, {"after": after, "rows": ROWS}).all():
        after = rows[-1].row_id
        found = {row.row_id: _folded(f"{row.id}\n{row.title or ''}") for row in rows}
        changed = [
            {"row": row.row_id, "folded": found[row.row_id]} for row in rows if row.search_text != found[row.row_id]
        ]
        if changed:
            connection.execute(write, changed)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
