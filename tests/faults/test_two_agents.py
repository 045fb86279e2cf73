"""Several agents on one daemon: whatever is wrong with others, one that is well doesn't notice."""

import pytest
from hosted import quick

from agentd.ready import find

CONTROLLER = (find("cartpole") / "controller.py").read_text()


def answering(expression):
    """A controller that answers with `expression` from its third tick on."""
    return f"""
import math


class CartPole:
    def reset(self, seed):
        self.ticks = 0

    def act(self, observation):
        self.ticks += 1
        return 1 if self.ticks < 3 else {expression}
"""


LOADING = {
    "raises-on-import": ({"controller": CONTROLLER + "\n\nraise RuntimeError('no such hardware')\n"}, "no such hardware"),
    "has-no-such-class": ({"controller": CONTROLLER.replace("class CartPole", "class Other")}, "CartPole"),
    "raises-when-made": ({"controller": "class CartPole:\n    def __init__(self):\n        raise KeyError('gain')\n"}, "gain"),
}
FEEDBACK = {
    "feedback-raises": ({"feedback": "def explain(episode):\n    raise ValueError('no idea')\n"}, "no idea"),
    "feedback-hangs": ({"feedback": "def explain(episode):\n    while True:\n        pass\n"}, "within"),
    "feedback-says-nonsense": ({"feedback": "def explain(episode):\n    return 'very good'\n"}, "feedback"),
    "score-is-not-a-number": ({"feedback": "def explain(episode):\n    return float('nan')\n"}, "nan"),
    "score-out-of-range": ({"feedback": "def explain(episode):\n    return 17.0\n"}, "17"),
}
ACTING = {
    "actions-are-nan": ({"controller": answering("math.nan")}, "nan"),
    "actions-have-a-wrong-shape": ({"controller": answering("[1, 0]")}, "[1, 0]"),
    "actions-are-none": ({"controller": answering("None")}, "nothing was given"),
    "raises-while-it-acts": ({"controller": answering("1 / 0")}, "ZeroDivisionError"),
    "never-answers": ({"controller": answering("[None for _ in iter(lambda: 0, 1)]")}, "timeout"),
}
SIMULATION = {"kind": "gymnasium", "id": "CartPole-v1", "episode_interval": 0.1}


async def problem_of(hosted, name, kind):
    """All that operators are told of what is wrong with the agent."""
    if kind:
        return " ".join(event["message"] for event in await hosted.events(kind, name))
    episodes = [episode for episode in await hosted.client.episodes(name) if episode["safe_actions"]]
    return " ".join(f"{episode['reason']} {episode['error']}" for episode in episodes)


@pytest.mark.long
@pytest.mark.parametrize(
    ("faults", "kind"),
    [(LOADING, "agent.failed"), (FEEDBACK, "feedback.failed"), (ACTING, None)],
    ids=["programs that don't load", "judges that fail", "policies that answer wrongly"],
)
async def test_an_agent_does_not_notice_what_is_wrong_with_others(hosted, faults, kind):
    hosted.add_agent(name="well", edit=quick())
    for name, (files, _) in faults.items():
        simulated = {f"environment__{key}": value for key, value in SIMULATION.items()}
        hosted.add_agent(name=name, edit=quick(feedback__timeout=1.0, **simulated), **files)
    robot = await hosted.robot("robot-1", "well")
    await hosted.start()
    await hosted.until_scored(3, "well")
    for name, (_, words) in faults.items():

        async def told(name=name, words=words):
            found = await problem_of(hosted, name, kind)
            return words in found if found else False

        await hosted.until(told)
    scored = (await hosted.agent("well"))["episodes"]
    await hosted.until_scored(scored + 3, "well")
    agent = await hosted.agent("well")
    assert agent["health"] == "ok"
    assert min(agent["recent"]) > 0.5
    for name in FEEDBACK.keys() & faults.keys():
        assert len(await hosted.events("feedback.failed", name)) == 1, name  # the same again and again is said once
    assert await hosted.events("agent.failed", "well") == []
    assert await hosted.stop() == 0
    robot.prove()
    assert robot.sources()["safe"] == robot.sources()["fallback"] == 0
