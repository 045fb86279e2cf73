"""Pictures reach models that take them: what was seen, what feedback draws; so many and no more; and no model fails for them."""

import base64
import json
import random
import struct
import zlib

import numpy as np
import pytest

from agentd.clock import SystemClock
from agentd.opto import images
from agentd.opto.algorithms.optoprime import OptoPrime
from agentd.opto.budget import Ledger
from agentd.opto.llm import LitellmClient, LlmSettings
from agentd.records import Kind, Parameter, Step
from agentd.testing.llm import Reply, ScriptedLlm

GAIN = Parameter(path="gain", kind=Kind.NUMBER, default=1.0)
ANSWER = json.dumps({"reasoning": "brighter", "suggestion": {"gain": 2.0}})


def picture(shade=0, size=(16, 16, 3)):
    return np.full(size, shade, np.uint8)


def url(shade=0):
    (found,) = images.pictures(picture(shade))
    return found


def client(server, models=("openai/scripted",)):
    settings = LlmSettings(models=models, api_base=server.url, api_key="sk-test", attempts=1)
    return LitellmClient(settings, Ledger(), SystemClock(), generator=random.Random(1))


def sent(request):
    """The pictures of a request, as the server got them."""
    parts = [part for message in request.body["messages"] if isinstance(message["content"], list) for part in message["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_array_of_bytes_becomes_a_png_that_is_read_back(channels):
    pixels = np.arange(12 * 10 * channels, dtype=np.uint8).reshape(12, 10, channels)
    (found,) = images.pictures({"camera": pixels})
    content = base64.b64decode(found.removeprefix("data:image/png;base64,"))
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack("!II", content[16:24])
    assert (height, width) == (12, 10)
    start = content.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(content[start : content.index(b"IEND") - 8]), np.uint8).reshape(12, 1 + 10 * channels)
    assert (rows[:, 1:].reshape(pixels.shape) == pixels).all()


def test_a_large_array_is_thinned_out_and_a_large_file_is_left_out():
    noise = np.random.default_rng(1).integers(0, 256, (2_000, 1_500, 3), dtype=np.uint8)
    (found,) = images.pictures(noise)
    assert len(found) < 1_500_000
    assert list(images.pictures(b"\x89PNG\r\n\x1a\n" + bytes(3_000_000))) == []


@pytest.mark.parametrize(
    "value", [np.zeros((16, 16, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros(900, np.uint8), "data:text/html;base64,AA", b"BM", 5]
)
def test_what_is_no_picture_is_none(value):
    assert list(images.pictures(value)) == []


def test_of_an_episode_what_was_seen_last_and_first_is_shown():
    steps = [Step(tick, picture(tick), 0) for tick in range(5)]
    assert images.of_steps(steps, picture(9)) == (url(9), url(0))
    assert images.of_steps(steps, None) == (url(4), url(0))
    assert images.of_steps([Step(0, [0.1], 0)], [0.2]) == ()


def test_each_case_has_its_first_picture_before_any_has_its_second():
    assert images.chosen([["a", "b"], ["c"], []], 2) == [(1, "a"), (2, "c")]
    assert images.chosen([["a", "b"], ["a"]], 9) == [(1, "a"), (1, "b")]


async def test_pictures_of_cases_and_of_feedback_reach_the_model_within_the_limit(make_context, make_problem):
    context = make_context(GAIN, algorithm="optoprime", options={"images": 2}, models=("openai/scripted",))
    cases = [make_problem(context, images=(url(1), url(2))), make_problem(context, episode="e2", text=f"It looks so: ![]({url(3)}).")]
    async with ScriptedLlm(ANSWER) as server, client(server) as llm:
        proposal = await OptoPrime(context, llm).propose(cases, (), 1)
    (request,) = server.requests
    assert sent(request) == [url(1), url(3)]
    assert "Picture 1 belongs to case 1.\nPicture 2 belongs to case 2." in request.prompt
    assert "It looks so: ![]((picture))." in request.prompt
    assert "base64" not in request.prompt
    assert "base64" not in proposal.exchange


async def test_a_model_that_refuses_pictures_is_asked_without_them_and_remembered(make_context, make_problem):
    context = make_context(GAIN, algorithm="optoprime", models=("openai/scripted",))
    refusal = Reply(status=400, error="this model does not support image input")
    async with ScriptedLlm(lambda request: refusal if sent(request) else ANSWER) as server, client(server) as llm:
        for seed in (1, 2):
            proposal = await OptoPrime(context, llm).propose([make_problem(context, images=(url(),))], (), seed)
            assert proposal.values == {"gain": 2.0}
    assert [len(sent(request)) for request in server.requests] == [1, 0, 0]


async def test_a_model_that_is_known_to_see_nothing_is_sent_nothing(make_context, make_problem):
    context = make_context(GAIN, algorithm="optoprime", models=("openai/gpt-3.5-turbo",))
    async with ScriptedLlm(ANSWER) as server, client(server) as llm:
        await OptoPrime(context, llm).propose([make_problem(context, images=(url(),))], (), 1)
    assert [len(sent(request)) for request in server.requests] == [0]
