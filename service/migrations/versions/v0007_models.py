"""What is derived from items is kept for each model that the database is served with, so that another one can be
prepared beside the one that serves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
MOMENT = sa.DateTime(timezone=True)
SERVED, BEGUN = "bundle", "begun "  # the setting that named the bundle, and what it began with during its first start


def upgrade() -> None:
    """Create the tables, and move what is derived under the model that it was derived by, number 1."""
    _models()
    served = op.get_bind().execute(sa.text("SELECT value FROM meta WHERE key = :key"), {"key": SERVED}).scalar()
    model = _register(served) if served else 0
    _item_states(model)
    _generated_features(model)
    _queues(model)
    op.add_column("changes", sa.Column("model", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(sa.text(f"UPDATE changes SET model = {model}"))
    op.execute(sa.text(f"DELETE FROM meta WHERE key = '{SERVED}'"))


def _model(*, primary_key: bool = True) -> sa.Column[int]:
    return sa.Column("model", sa.BigInteger, primary_key=primary_key, nullable=False, server_default="0")


def _item_row() -> sa.Column[int]:
    reference = sa.ForeignKey("items.row_id", ondelete="CASCADE")
    return sa.Column("item_row", sa.BigInteger, reference, primary_key=True, nullable=False)


def _models() -> None:
    op.create_table(
        "models",
        sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("identity", KEY, nullable=False, unique=True),
        sa.Column("version", KEY, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("leased_until", MOMENT),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "workers",
        sa.Column("id", KEY, primary_key=True),
        sa.Column("serving", sa.BigInteger, nullable=False),
        sa.Column("ready", sa.BigInteger, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )


def _register(served: str) -> int:
    insert = sa.text(
        "INSERT INTO models (id, identity, version, state, position, progress, forced, updated_at) "
        "SELECT 1, :identity, COALESCE((SELECT MAX(model_version) FROM items), ''), 'active', "
        "COALESCE((SELECT MAX(position) FROM changes), 0), '{}', :forced, CURRENT_TIMESTAMP"
    )
    op.get_bind().execute(insert, {"identity": served.removeprefix(BEGUN), "forced": False})
    if op.get_bind().dialect.name == "postgresql":
        op.execute(sa.text("SELECT setval(pg_get_serial_sequence('models', 'id'), 1)"))
    return 1


def _item_states(model: int) -> None:
    op.create_table(
        "item_states",
        _item_row(),
        _model(),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("derived", sa.LargeBinary, nullable=False),
        sa.Column("remarks", sa.Text, nullable=False),
    )
    op.create_table(
        "recoded_features",
        _item_row(),
        _model(),
        sa.Column("modality", KEY, primary_key=True),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.execute(
        sa.text(
            "INSERT INTO item_states (item_row, model, version, model_version, derived, remarks) "
            f"SELECT row_id, {model}, version, model_version, derived, remarks FROM items"
        )
    )
    for column in ("model_version", "derived"):
        op.drop_column("items", column)


def _generated_features(model: int) -> None:
    names = "item_row, modality, generator, confidence, basis, model_version, vector"
    op.rename_table("generated_features", "generated_features_before")
    op.create_table(
        "generated_features",
        _item_row(),
        _model(),
        sa.Column("modality", KEY, primary_key=True),
        sa.Column("generator", sa.Text, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("basis", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    _move("generated_features", names, model)


def _queues(model: int) -> None:
    op.rename_table("awaiting", "awaiting_before")
    op.create_table(
        "awaiting",
        _item_row(),
        _model(),
        sa.Column("mark", sa.BigInteger, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )
    _move("awaiting", "item_row, mark, at", model)
    op.rename_table("feature_changes", "feature_changes_before")
    op.create_table(
        "feature_changes",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False, nullable=False),
        _model(),
        sa.Column("item", KEY, primary_key=True, nullable=False),
        sa.Column("before", sa.LargeBinary, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )
    _move("feature_changes", "position, item, before, at", model)


def _move(table: str, names: str, model: int) -> None:
    op.execute(sa.text(f"INSERT INTO {table} ({names}, model) SELECT {names}, {model} FROM {table}_before"))
    op.drop_table(f"{table}_before")
