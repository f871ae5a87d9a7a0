"""Which token a person had logged in with when a client was given a token."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ID = sa.String(length=36).with_variant(sa.UUID(as_uuid=False), "postgresql")


def upgrade() -> None:
    op.add_column("tokens", sa.Column("by_token_id", ID, nullable=True))
    for table in ("tokens", "refresh_tokens"):
        op.create_index(f"ix_{table}_by_token_id", table, ["by_token_id"], unique=False)


def downgrade() -> None:
    for table in ("tokens", "refresh_tokens"):
        op.drop_index(f"ix_{table}_by_token_id", table)
    with op.batch_alter_table("tokens") as tokens:
        tokens.drop_column("by_token_id")
