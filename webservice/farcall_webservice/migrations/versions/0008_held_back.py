"""Which submissions are held back, because enough waits on their endpoint's queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("submissions", sa.Column("held_at", sa.Double(), nullable=True))
    op.add_column("submissions", sa.Column("task_count", sa.Integer(), nullable=True))
    op.drop_index("ix_submissions_undispatched", "submissions")
    _index("ix_submissions_undispatched", ["created_at"], "dispatched_at IS NULL AND held_at IS NULL")
    _index("ix_submissions_held", ["endpoint_id", "created_at"], "held_at IS NOT NULL")


def downgrade() -> None:
    op.drop_index("ix_submissions_held", "submissions")
    op.drop_index("ix_submissions_undispatched", "submissions")
    with op.batch_alter_table("submissions") as submissions:
        submissions.drop_column("task_count")
        submissions.drop_column("held_at")
    _index("ix_submissions_undispatched", ["created_at"], "dispatched_at IS NULL")


def _index(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "submissions", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
