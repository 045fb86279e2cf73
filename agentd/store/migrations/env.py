"""Alembic runs this; the connection, with a transaction open on it, comes from agentd.store.migrations.migrate."""

from alembic import context

from agentd.store.schema import metadata

# transactional_ddl: Alembic thinks that SQLite has none, because Python's driver used to commit before each DDL statement; ours doesn't.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
