"""Answers that are well formed and no actions: each costs the policy its episode, and the runner nothing."""

from daemons import Daemon
from escape import NUMBER

from agentd.records import Outcome

DEEP = (
    NUMBER
    + """
import os, struct, sys, time

class Controller:
    def reset(self, seed):
        self.ticks = 0

    def act(self, observation):
        self.ticks += 1
        if self.ticks == 3:
            os.write(3, b"\\x93\\xa6Answer\\xce" + struct.pack(">I", number()) + b"\\x91" * DEPTH + b"\\xc0")
            time.sleep(60)
        return 0
"""
)


async def test_an_answer_just_shallow_enough_to_be_read_is_recorded_as_the_policys_fault(runners, make_spec, make_program, until):
    """What is nested almost as deep as the stack is can be read, but not handled: an episode that a policy can so make vanish is one that
    it needn't lose."""
    runner = await runners.start(make_spec(sandbox={"allowed_imports": ["os", "struct", "sys", "time"]}))
    daemon = Daemon(runner)
    for depth in (985, 980, 975, 970, 965):
        source, revision = make_program(DEEP.replace("DEPTH", str(depth)))
        await runner.load(source, revision)
        await runner.route(revision.id)
        await until(lambda revision=revision: [one for one in daemon.episodes if one.revision == revision.id])
    assert {(one.outcome, one.reason) for one in daemon.episodes} >= {(Outcome.ABORTED, "violation")}
    assert "runner.fault" not in daemon.kinds()
    await daemon.aclose()
