"""What a release may be asked to show: no worse by a margin, against the anchor as well, and in every declared metric."""

import math

import pytest
from heaters import AGENT, conduct, fleet_of

NO_WORSE = AGENT.replace("[release]", '[release]\ngoal = "no_worse"\nmargin = 0.2\nselection_pairs = 1').replace(
    "range = [0.0, 3.0]", "range = [0.0, 3.0]\n[[metrics]]\nname = 'power'\nrange = [0.0, 1.0]\ndirection = 'lower'\nmargin = 0.3"
)
NO_WORSE = NO_WORSE.replace("max_pairs = 1000", "max_pairs = 120") + '[feedback]\nentrypoint = "feedback:explain"\n'
FEEDBACK = """
def explain(episode):
    power = sum(abs(step.action) for step in episode.steps) / len(episode.steps)
    return sum(step.reward for step in episode.steps), "as warm as it was", {"power": power}
"""


@pytest.mark.long
async def test_a_margin_is_measured_from_the_anchor_however_often_no_worse_was_promoted(hosted):
    async with fleet_of(hosted.broker, 1) as (heaters, _):
        release = await conduct(hosted, 1, gain=0.25, agent=NO_WORSE, feedback=FEEDBACK)
        first = await hosted.until_ended(release)
        assert first["phase"] == "promoted", first["reason"]
        assert first["reason"].startswith("no worse by 0.2")
        assert {tuple(pair["metrics"]) for pair in first["evidence"]} == {("power",)}
        assert not any(pair["anchored"] for pair in first["evidence"])  # what is stable is the anchor

        # each step down is small; both together are more than the margin
        second = await hosted.until_ended((await hosted.client.submit("heaters", {"gain": 0.0}))["id"])
        assert second["phase"] == "inconclusive"
        assert second["superiority"]["log_e_max"] >= -math.log(second["settings"]["promotion_alpha"])  # against stable it had won
        assert second["anchor"] == first["reference"]
        anchored = [pair for pair in second["evidence"] if pair["anchored"]]
        assert abs(len(anchored) - len(second["evidence"]) / 2) <= 1
        assert heaters["heater-0"].ran(first["reference"])
        state = (await hosted.agent("heaters"))["state"]
        assert (state["stable"], state["anchor"]) == (first["candidate"], first["reference"])
        assert await hosted.stop() == 0


@pytest.mark.long
async def test_harm_in_a_further_metric_rejects_what_is_better_in_the_score(hosted):
    careful = NO_WORSE.replace("margin = 0.3", "margin = 0.05")
    async with fleet_of(hosted.broker, 1):
        ended = await hosted.until_ended(await conduct(hosted, 1, gain=1.0, agent=careful, feedback=FEEDBACK))
        assert (ended["phase"], ended["stage"]) == ("rejected", "canary"), ended["reason"]
        assert "harm (power)" in ended["reason"]
        assert ended["difference"] > 0.2
        assert await hosted.stop() == 0
