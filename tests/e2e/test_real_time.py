"""A plant at 100 Hz for an hour, through releases, promotions and rollbacks, with a daemon that is stopped, killed and started again.

AGENTD_REAL_TIME_SECONDS makes it shorter. What it asserts is counted by the plant itself; how fast it was, it only shows.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("AGENTD_REAL_TIME_SECONDS", "3600"))
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_realtime.py"


@pytest.mark.long
@pytest.mark.timeout(2 * SECONDS + 300)
async def test_every_tick_of_a_plants_life_has_one_action_and_none_is_late():
    options = (f"--seconds={SECONDS}", "--switches=0", "--agents=0", "--json", "--realtime")
    process = await asyncio.create_subprocess_exec(sys.executable, str(BENCHMARK), *options, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    life = json.loads(output)["life"]
    print(json.dumps(life, indent=2))  # noqa: T201 - pytest shows it with a failure, or with -s
    parts = life["parts"]
    assert len(parts) == 3
    for name, part in parts.items():
        assert part["ticks without exactly one action"] == 0, name
        assert part["actions applied after their time"] == 0, name
        assert part["by source"]["action"] > part["ticks"] / 2, name
    assert parts["release, promotion, rollback"]["revisions"] >= 2
    assert life["adopted"], "the runner that controlled while the daemon was dead is the one that goes on"
    assert life["episodes"] > 0
