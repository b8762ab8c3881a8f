"""Who leads, and a counter that rises while they do."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the leader to the state; release 0.1, which knows version 1 only, then refuses the database by itself."""
    op.add_column("state", sa.Column("holder", sa.Text, nullable=False, server_default=""))
    op.add_column("state", sa.Column("beat", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE schema_version SET version = 2")
