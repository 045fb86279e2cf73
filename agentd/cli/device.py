"""`agentd device`: the other end of MQTT, for trying an agent out before there is a robot."""

from pathlib import Path
from typing import Annotated

import typer

from agentd.cli.context import GOOD, UsageMistake, finish, note


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(help="Stand-ins for robots, behind MQTT.", no_args_is_help=True)
    group.command("gymnasium")(gymnasium)
    group.callback()(device)
    app.add_typer(group, name="device", rich_help_panel="Set up")


def device() -> None:
    """Stand-ins for robots, behind MQTT."""


def gymnasium(
    env: Annotated[str, typer.Argument(help="The registered name of the environment, such as CartPole-v1.")],
    *,
    agent: Annotated[str, typer.Option(help="The agent that shall drive it.")],
    broker: Annotated[str, typer.Option(envvar="AGENTD_BROKER_URL", help="mqtt://host:port, or mqtts://user@host?password_file=...")],
    name: Annotated[str, typer.Option(help="The device's name.")] = "robot-1",
    max_steps: Annotated[int, typer.Option(min=1, help="Ticks after which an episode is cut.")] = 200,
    step_ms: Annotated[float, typer.Option(min=0, help="Milliseconds from tick to tick; 0: as fast as actions come.")] = 0.0,
    action_timeout: Annotated[float, typer.Option(min=0.001, help="Seconds after which it uses its own fallback.")] = 0.25,
    begin_after: Annotated[float | None, typer.Option(min=0, help="Seconds without a command after which it begins by itself.")] = None,
    change: Annotated[list[str] | None, typer.Option(help="A change to begin with, such as flip-motor; again for more.")] = None,
    prefix: Annotated[str, typer.Option(help="The first word of the topics.")] = "agentd",
    log: Annotated[Path | None, typer.Option(help="Append a JSON line for each action that was applied.")] = None,
) -> None:
    """Put any Gymnasium environment behind MQTT as a stand-in robot, until Ctrl-C."""
    options = {
        "--env": env,
        "--agent": agent,
        "--broker": broker,
        "--device": name,
        "--max-steps": max_steps,
        "--step-ms": step_ms,
        "--action-timeout": action_timeout,
        "--prefix": prefix,
        "--begin-after": begin_after,
        "--log": log,
    }
    words = [f"{option}={value}" for option, value in options.items() if value is not None]
    words += [f"--change={word}" for word in change or ()]

    async def work() -> int:
        from gymnasium.error import Error  # noqa: PLC0415 - slow to import

        from agentd.environments import standin  # noqa: PLC0415 - as above

        note(f"{name} is a {env} for the agent {agent}; Ctrl-C ends it")
        try:
            await standin.serve(standin.parser().parse_args(words))
        except (Error, ValueError) as error:  # no such environment, no such broker's address
            raise UsageMistake(str(error)) from error
        except KeyError as error:
            raise UsageMistake(f"{env} knows no change {error}") from error
        return GOOD

    finish(work)
