"""`agentd new`: an agent's folder to begin with."""

import re
import shutil
from pathlib import Path
from textwrap import dedent

from agentd import ready
from agentd.cli.context import UsageMistake
from agentd.errors import SourceError

BLANK = {
    "agent.toml": """\
        schema = 1

        [agent]
        name = "{name}"
        entrypoint = "controller:Controller"
        objective = "Say here, in words, what a good episode is."
        mode = "advise"          # observe: record only; advise: propose, a person promotes; release: by itself

        [environment]
        kind = "gymnasium"
        id = "CartPole-v1"       # any registered environment with Box or Discrete spaces
        max_steps = 500

        [environment.safe_action]
        value = 0                # what the plant gets when the policy is late, wrong or dead

        [[metrics]]
        name = "score"
        range = [0.0, 1.0]
        direction = "higher"

        [feedback]
        entrypoint = "feedback:explain"
        """,
    "controller.py": '''\
        """The policy: from an observation to an action. What agentd may change is marked as trainable."""

        from agentd.trace import bundle, model


        @model
        class Controller:
            @bundle(trainable=True)
            def act(self, observation):
                """1 pushes to the right, 0 to the left."""
                position, velocity, angle, angular_velocity = observation
                return int(angle + 0.5 * angular_velocity > 0.0)
        ''',
    "feedback.py": '''\
        """What an episode was worth: a score in the declared range, and words from which an optimizer can learn."""


        def explain(episode):
            share = len(episode.steps) / 500
            return share, f"Stayed up for {{len(episode.steps)}} of 500 steps."
        ''',
}

SERVED = {
    "agent.toml": """\
        schema = 1

        [agent]
        name = "{name}"
        entrypoint = "policy:Policy"
        objective = "Say here, in words, what a good answer is."
        mode = "advise"          # observe: record only; advise: propose, a person promotes; release: by itself

        [environment]
        kind = "http"            # POST /api/v1/agents/{name}/episodes asks it, with the token of `agentd token --client`

        [[metrics]]
        name = "score"           # POST /api/v1/episodes/EPISODE/feedback tells it later, or `agentd feedback EPISODE SCORE`
        range = [0.0, 1.0]

        [release]
        feedback_timeout = "48h" # how long after an answer somebody may judge it
        silent_score = 0.0       # what an answer counts that nobody judged in that time
        max_duration = "14d"

        [sandbox]
        step_timeout = "5s"      # what the policy has for an answer
        """,
    "policy.py": '''\
        """The policy: from a request to its answer. What agentd may change is marked as trainable."""

        from agentd.trace import bundle, model


        @model
        class Policy:
            @bundle(trainable=True)
            def act(self, observation):
                """Greets by name."""
                return "Hello, " + observation["name"]
        ''',
}
TEMPLATES = {"blank": BLANK, "served": SERVED}


def write(name: str, template: str, into: Path) -> Path:
    """Write the folder `into/name`; returns it.

    Raises:
        UsageMistake: the name or the template can't be, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise UsageMistake(f'a name should be 1 to 63 of a-z, 0-9, - and _, and begin with a letter or a digit, not "{name}"')
    folder = into / name
    if folder.exists():
        raise UsageMistake(f"{folder} is there already")
    if template in TEMPLATES:
        folder.mkdir(parents=True)
        for file, content in TEMPLATES[template].items():
            (folder / file).write_text(dedent(content).format(name=name), encoding="utf-8")
        return folder
    try:
        model = ready.find(template)
    except SourceError as error:
        raise UsageMistake(f"{error}, or {', or '.join(TEMPLATES)}") from error
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("__pycache__"))
    spec = folder / "agent.toml"
    spec.write_text(re.sub(r'(?m)^name = ".*"$', f'name = "{name}"', spec.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    return folder
