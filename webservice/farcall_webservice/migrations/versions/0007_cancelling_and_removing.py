"""Cancelled tasks, what tasks have printed, and the indexes by which old rows are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ID = sa.String(length=36).with_variant(sa.UUID(as_uuid=False), "postgresql")
UNFINISHED, ENDED = sa.text("completed_at IS NULL"), sa.text("completed_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "cancellations",
        sa.Column("task_id", ID, nullable=False),
        sa.Column("runner_id", ID, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_index("ix_cancellations_runner", "cancellations", ["runner_id", "created_at"], unique=False)
    op.create_index("ix_cancellations_created", "cancellations", ["created_at"], unique=False)
    op.create_table(
        "task_output",
        sa.Column("task_id", ID, nullable=False),
        sa.Column("stream", sa.String(length=6), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "stream", "start"),
    )
    op.drop_index("ix_tasks_unfinished", "tasks")
    _index("ix_tasks_unfinished", ["runner_id", "state", "seq"], UNFINISHED)
    _index("ix_tasks_inactive", ["changed_at"], UNFINISHED)
    _index("ix_tasks_completed", ["completed_at"], ENDED)
    op.create_index("ix_task_groups_created", "task_groups", ["created_at"], unique=False)
    op.create_index("ix_submissions_created", "submissions", ["created_at"], unique=False)


def _index(name: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, "tasks", columns, unique=False, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_index("ix_submissions_created", "submissions")
    op.drop_index("ix_task_groups_created", "task_groups")
    op.drop_index("ix_tasks_completed", "tasks")
    op.drop_index("ix_tasks_inactive", "tasks")
    op.drop_index("ix_tasks_unfinished", "tasks")
    _index("ix_tasks_unfinished", ["runner_id", "state"], UNFINISHED)
    op.drop_table("task_output")
    op.drop_table("cancellations")
