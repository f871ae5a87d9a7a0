"""How large the arguments of a task are, beside where it is: what waits on a queue is added up without reading them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_UNFINISHED = sa.text("completed_at IS NULL")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("payload_size", sa.Integer(), nullable=True))
    op.execute("UPDATE tasks SET payload_size = length(payload) WHERE completed_at IS NULL")
    op.drop_index("ix_tasks_unfinished", "tasks")
    _index(["runner_id", "state", "seq", "payload_size", "completed_at"])


def downgrade() -> None:
    op.drop_index("ix_tasks_unfinished", "tasks")
    with op.batch_alter_table("tasks") as tasks:
        tasks.drop_column("payload_size")
    _index(["runner_id", "state", "seq"])


def _index(columns: list[str]) -> None:
    op.create_index("ix_tasks_unfinished", "tasks", columns, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)
