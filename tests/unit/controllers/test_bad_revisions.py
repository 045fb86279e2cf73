"""What the demo submits on purpose is bad in every world, and as bad as it says."""

import ast
import statistics

import pytest
from worlds import FOUND, RETUNED

from agentd.cli.bad_revisions import BAD_REVISIONS, reads_a_file, subtly_worse, worse
from agentd.opto.decoding import validate_values
from agentd.records import Kind, Parameter
from agentd.release.statistics import lower_bound

PARAMETER = Parameter(path="act", kind=Kind.CODE, signature="def act(self, observation: list[float]) -> int:")


@pytest.mark.parametrize("world", RETUNED)
def test_worse_falls_in_every_world(cartpole, retuned_code, world):
    good = cartpole.scores(retuned_code(world), world)
    bad = cartpole.scores(worse(retuned_code(world)), world)
    assert statistics.mean(bad) < statistics.mean(good) - 0.4


@pytest.mark.parametrize("world", RETUNED)
def test_subtly_worse_balances_in_every_world_for_most_of_the_time_and_costs_a_fifth_of_the_score_or_more(cartpole, retuned_code, world):
    episodes = cartpole.episodes(subtly_worse(retuned_code(world)), world)
    good = cartpole.scores(retuned_code(world), world)
    bad = [cartpole.explain(episode)[0] for episode in episodes]
    assert statistics.mean(len(episode.steps) for episode in episodes) > 150
    assert 0.2 < statistics.mean(good) - statistics.mean(bad) < 0.4
    assert max(bad) < min(good)


@pytest.mark.parametrize(("world", "gains"), FOUND)
def test_subtly_worse_is_below_what_the_watch_on_a_found_controller_allows(cartpole, found_code, world, gains):
    good = cartpole.scores(found_code(gains), world, range(20))
    bad = cartpole.scores(subtly_worse(found_code(gains)), world)
    assert 0.3 < statistics.mean(bad) < lower_bound(good, delta=0.05) - 0.05


def test_reads_a_file_acts_as_before_where_nothing_stops_it(cartpole, shipped_code):
    assert cartpole.scores(reads_a_file(shipped_code), seeds=[1]) == cartpole.scores(shipped_code, seeds=[1])


def test_reads_a_file_tells_both_refusals(monkeypatch, shipped_code):
    def refuse(*_):
        raise PermissionError("refused")

    names = {"open": refuse, "__import__": refuse}
    exec(reads_a_file(shipped_code), names)
    with pytest.raises(RuntimeError, match="PermissionError: refused and PermissionError: refused"):
        names["act"](None, [0.0] * 4)


@pytest.mark.parametrize("spoil", BAD_REVISIONS.values(), ids=BAD_REVISIONS)
def test_a_bad_revision_passes_the_static_checks_so_that_later_stages_meet_it(shipped_code, spoil):
    bad = spoil(shipped_code)
    assert validate_values({"act": bad}, [PARAMETER], {"act": shipped_code}, ("math", "numpy")) == {"act": bad}


@pytest.mark.parametrize("spoil", BAD_REVISIONS.values(), ids=BAD_REVISIONS)
def test_a_bad_revision_can_be_made_of_code_that_a_model_wrote(spoil):
    written = "def act(self, observation):\n    import math\n    return int(math.sin(observation[2]) > 0)\n"
    function = ast.parse(spoil(written)).body[0]
    assert [argument.arg for argument in function.args.args] == ["self", "observation"]
    assert ast.unparse(function).endswith("return int(math.sin(observation[2]) > 0)")


@pytest.mark.parametrize("text", ["", "x = 1", "def act():\n    return 1"])
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(ValueError, match="one function with an argument"):
        worse(text)
