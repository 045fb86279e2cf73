"""Values are replayed on recorded episodes before they are proposed, and the model reads what those tried before would have done."""

import json

import pytest
from hosted import mirrored, quick

from agentd.testing.llm import Reply, ScriptedLlm

SIMULATION = {
    "environment__kind": "gymnasium",
    "environment__id": "CartPole-v1",
    "environment__episode_interval": 0.02,
    "optimizer__algorithm": "optoprime",
    "optimizer__models": ["openai/scripted"],
    "release__selection_pairs": 1,
    "release__prune": {"after_pairs": 2, "below": 0.0},
}


def suggest(code):
    return Reply(json.dumps({"reasoning": "the other way", "suggestion": {"act": code}}))


@pytest.mark.long
async def test_a_model_hears_what_a_tried_candidate_would_have_done_and_what_replay_refused(hosted):
    replies = []
    server = ScriptedLlm(lambda _: replies.pop(0))
    async with server:
        hosted.add_agent(edit=quick(**SIMULATION))
        await hosted.start(api_base=server.url, environment={"AGENTD_API_KEY": "sk-test"})
        await hosted.until_scored(3)
        code = (await hosted.client.parameters("cartpole"))["act"]
        body = code.partition(":\n")
        raising = code.replace(code.splitlines()[-1], "    return [][1]")
        assert raising not in (code, body)
        replies += [suggest(code + "    # the same in other words\n"), suggest(raising), suggest(mirrored(code))]
        await hosted.client.propose("cartpole")

        async def told():
            return await hosted.events("optimizer.failed")

        await hosted.until(told)  # neither answer could be used, so nothing was released
        assert "IndexError" in (await told())[0]["message"]
        assert "each of" in server.requests[1].prompt
        assert "recorded actions would have been the same" in server.requests[1].prompt
        assert await hosted.client.releases("cartpole") == []

        async def begun():
            return await hosted.client.releases("cartpole")

        [release] = await hosted.until(begun)  # it asks again by itself, and the third answer is good to try
        replies.append(suggest(mirrored(code).replace("0.5 * position", "0.4 * position")))
        ended = await hosted.until_ended(release["id"])
        assert ended["phase"] in {"pruned", "rejected"}  # the motor was right
        assert ended["pairs"] >= 1

        async def asked_again():
            return len(server.requests) >= 4

        await hosted.client.propose("cartpole")
        await hosted.until(asked_again)
        prompt = server.requests[3].prompt
        assert "What recorded runs would have done under values tried before" in prompt
        assert "actions differ. The first:\n- tick 0, observation [" in prompt
        assert ": 0 instead of 1" in prompt or ": 1 instead of 0" in prompt
