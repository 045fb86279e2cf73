"""`agentd`: all verbs."""

from typing import Annotated

import typer

from agentd.cli import changing, device, evidence, holding, hosting, reading, rebasing

app = typer.Typer(
    name="agentd",
    help="Keeps deployed agents and robot controllers improving after deployment, safely.",
    epilog="Exit codes: 0 good, 1 unhealthy or failed, 2 wrong usage, 3 daemon unreachable, 4 still going on.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold a token
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    """Keeps deployed agents and robot controllers improving after deployment, safely."""
    if version:
        import agentd  # noqa: PLC0415 - only here

        typer.echo(agentd.__version__)
        raise typer.Exit


for module in (hosting, device, reading, evidence, changing, holding, rebasing):
    module.register(app)
