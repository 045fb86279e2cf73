"""The command line. It parses, then calls the daemon's API (or reads the store), and shows what comes back.

Nothing heavy is imported before a verb needs it, so that `agentd --help` and shell completion are quick.
"""


def main() -> None:
    """The entry point of `agentd`."""
    from agentd.cli.app import app  # noqa: PLC0415 - `import agentd.cli` is for those who want the client only

    app()
