"""The figures of the experiments, on two rows that anybody can check."""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "nbs" / "experiments"))


def test_a_share_says_who_reached_the_threshold():
    from figures import share_of
    never = dict(passes=math.inf)
    assert share_of(dict(passes=50.), dict(passes=100.), 400) == (.5, "both")
    assert share_of(dict(passes=50.), never, 400) == (.125, "bound")
    assert share_of(never, dict(passes=9.), 400) == (math.inf, "lost")
    assert share_of(never, never, 400)[1] is None
    assert share_of(dict(passes=0.), dict(passes=0.), 400) == (1., "both")    # no compute on either side
    assert share_of(dict(passes=9.), dict(passes=0.), 400) == (math.inf, "both")


def test_arms_over_tasks():
    from figures import common, over_tasks, show_by_arm, show_ratios, text_by_arm
    row = dict(task="ring-far", arm="disback", passes=100., reached=2, seeds=2, end=.1, threshold=.1)
    table = [row, row | dict(task="ring-near", passes=math.inf, reached=0, end=.3)]
    both = over_tasks(table, 200)["disback"]
    assert math.isclose(both["passes"], 200.) and (both["reached"], both["runs"]) == (2, 4)
    assert math.isclose(both["end"], .2)
    assert text_by_arm(table, 200).splitlines()[1].split() == ["disback", "2/4", "200", "0.200"]
    assert len(show_by_arm(table, 200, {"arms": ["disback"]}).axes[0].patches) == 1
    base = [r | dict(arm="diff-instruct", passes=200.) for r in table]
    assert len(show_ratios([("two tasks", table + base)], budget=200).axes[0].lines) == 4
    assert common({"arms": ["disback:lr=1:nodes=2", "disback:lr=1"]}) == {"lr=1"}
