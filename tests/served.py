"""An agent that is served over HTTP, and its clients: they ask, and say later what the answers were worth, if they say anything."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Self

import httpx

from agentd.api.tokens import Role, read_token

AGENT = """
schema = 1
[agent]
name = "answers"
entrypoint = "controller:Answers"
mode = "release"
[environment]
kind = "http"
[environment.http]
concurrency = 2
queue = 16
[[metrics]]
name = "score"
range = [0.0, 10.0]
[optimizer]
trigger = "manual"
[release]
feedback_timeout = "10min"
selection_pairs = 2
max_pairs = 400
[watch]
burn_in = 1000
[sandbox]
step_timeout = "10s"
"""

CONTROLLER = '''
from agentd.trace import bundle, model, node

@model
class Answers:
    def __init__(self):
        self.factor = node(2.0, trainable=True)

    def act(self, observation):
        return self.times(observation, self.factor)

    @bundle()
    def times(self, observation, factor):
        """The product. What the number 13 does to it is for the tests of bad luck."""
        if observation == 13 and factor != 2.0:
            raise ArithmeticError("13 brings bad luck")
        if observation == "sleep":
            while True:
                pass
        if observation == "nothing":
            return None
        return observation * factor
'''


def add(hosted: Any, *, edit: Callable[[str], str] = lambda text: text) -> None:
    """The agent's folder among those of `hosted`."""
    hosted.write_agent("answers", edit(AGENT), controller=CONTROLLER)


class Clients:
    """Those who use the agent, with the client's token and nothing else. They want three times of what they give."""

    def __init__(self, hosted: Any, seed: int = 1) -> None:
        self.random = random.Random(seed)
        token = read_token(hosted.state, Role.CLIENT)
        headers = {"authorization": f"Bearer {token}"}
        self.http = httpx.AsyncClient(base_url=f"{hosted.client.url}/api/v1", headers=headers, timeout=60, trust_env=False)

    async def ask(self, observation: Any = 1.0, **more: Any) -> httpx.Response:
        return await self.http.post("/agents/answers/episodes", json={"observation": observation} | more)

    async def first_answer(self, **more: Any) -> dict[str, Any] | None:
        """The first answer of an agent that is starting, and judged at once; None while there is none."""
        answer = await self.ask(**more)
        assert answer.status_code in {200, 503, 404}, answer.text
        if answer.status_code != 200:
            return None
        found: dict[str, Any] = answer.json()
        assert (await self.judge(found["episode"], 5.0)).status_code == 200
        return found

    async def judge(self, episode: str, score: float, **more: Any) -> httpx.Response:
        return await self.http.post(f"/episodes/{episode}/feedback", json={"score": score} | more)

    async def use(self, *, silent: Callable[[dict[str, Any]], bool] = lambda _: False) -> dict[str, Any]:
        """One question, and, unless this one is `silent`, what its answer was worth; returns what was answered."""
        answer = await self.ask(1.0)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if not silent(found):
            noise = self.random.uniform(-0.5, 0.5)
            told = await self.judge(found["episode"], min(10.0, max(0.0, 9.0 - 4.0 * abs(found["action"] - 3.0) + noise)))
            assert told.status_code == 200, told.text
        return found

    async def use_until(self, condition: Callable[[], Any], **how: Any) -> Any:
        """Go on using it until a condition (async) gives something."""
        async with asyncio.timeout(90):
            while not (found := await condition()):
                await asyncio.gather(*(self.use(**how) for _ in range(4)))
        return found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.http.aclose()
