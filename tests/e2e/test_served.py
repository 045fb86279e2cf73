"""An agent that answers over HTTP and is judged later: real daemon, real HTTP, clients that answer late, differently, or not at all."""

import pytest
from hosted import edited
from served import Clients, add


def ended(hosted, release):
    async def found():
        now = await hosted.client.release(release["id"])
        return now if now.get("ended_at") else None

    return found


async def test_a_worse_candidate_is_pruned_and_a_better_one_promoted_by_what_clients_say_later(hosted):
    add(hosted)
    await hosted.start()
    async with Clients(hosted) as clients:
        first = await hosted.until(lambda: clients.first_answer(device="alice", instruction="be exact"))
        assert first["action"] == 2.0
        assert set(first) == {"episode", "action", "revision", "safe"}  # whether it is a candidate's is not for its judges to know

        worse = await hosted.client.submit("answers", {"factor": 1.2})
        found = await clients.use_until(ended(hosted, worse))
        assert found["phase"] in {"pruned", "rejected"}, found["reason"]
        assert found["difference"] < -0.1

        better = await hosted.client.submit("answers", {"factor": 2.9})
        found = await clients.use_until(ended(hosted, better))
        assert found["phase"] == "promoted", found["reason"]
        evidence = found["evidence"]
        assert {one["role"] for one in evidence} == {"stable", "candidate"}
        assert {one["probability"] for one in evidence} == {0.5}
        assert len({one["id"] for one in evidence}) == len(evidence) == found["pairs"]
        assert (await clients.ask(1.0)).json()["revision"] == found["candidate"]

        # a policy that fails has no answer, and its episode says why
        failed = (await clients.ask(13)).json()
        assert (failed["status"], failed["type"]) == (503, "urn:agentd:unanswered")
        record = await hosted.until(lambda: judged(hosted, failed["episode"]))
        assert record["outcome"] == "aborted"
        assert "13 brings bad luck" in record["error"]
        assert record["feedback"]["normalised"] == 0.0
        assert (await clients.judge(failed["episode"], 9.0)).status_code == 409

        # the first one's record has what its client said, and its trace leads to the answer
        record = await hosted.client.episode(first["episode"])
        assert (record["device"], record["instruction"], record["feedback"]["score"]) == ("alice", "be exact", 5.0)
        trace = await hosted.client.trace(first["episode"])
        assert trace["nodes"][trace["output"]]["value"] == 2.0
    assert await hosted.stop() == 0


async def judged(hosted, episode):
    found = {one["id"] for one in await hosted.client.episodes("answers")}
    return await hosted.client.episode(episode) if episode in found else None


@pytest.mark.long
async def test_a_candidate_whose_clients_fall_silent_is_rejected_though_silence_costs_no_score(hosted):
    rules = {"feedback_timeout": "3s", "silent_score": 5.0, "selection_pairs": 0, "prune": {"after_pairs": 1000}}
    add(hosted, edit=edited(**{f"release__{key}": value for key, value in rules.items()}))
    await hosted.start()
    async with Clients(hosted) as clients:
        await hosted.until(clients.first_answer)
        release = await hosted.client.submit("answers", {"factor": 2.01})
        silent = []

        def is_silent(answer):
            if answer["revision"] == release["candidate"]:
                silent.append(answer["episode"])
                return True
            return False

        found = await clients.use_until(ended(hosted, release), silent=is_silent)
        assert (found["phase"], found["stage"]) == ("rejected", "guardrail"), found["reason"]
        assert "fewer answers" in found["reason"]
        assert found["silent"] > 0
        assert sum(one["score"] is None for one in found["evidence"]) == found["silent"]

        # what is said after the window is kept, and is no evidence; and once is enough
        late = (await clients.judge(silent[0], 9.0, text="sorry, I was away")).json()
        assert late["evidence"] is False
        assert "window is closed" in late["detail"]
        assert (await clients.judge(silent[0], 1.0)).status_code == 409
        kept = (await hosted.client.episode(silent[0]))["feedback"]
        assert (kept["score"], kept["late"], kept["silent"]) == (9.0, True, False)
        metrics = (await clients.http.get(f"{hosted.client.url}/metrics")).text
        assert 'agentd_feedback_windows_total{agent="answers",outcome="late"} 1.0' in metrics
        assert 'agentd_feedback_windows_total{agent="answers",outcome="silent"}' in metrics
    assert await hosted.stop() == 0
