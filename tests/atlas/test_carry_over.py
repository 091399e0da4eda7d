"""Names that carry over to another k."""

from __future__ import annotations

import numpy as np

from histoloom.atlas.browse.carry_over import carried_names
from histoloom.names import Label

SHARED = {  # patches that clusters of k = 3 share with those of the other k
    2: np.array([[80, 10], [2, 100], [0, 5]]),
    4: np.array([[90, 0, 0, 0], [0, 79, 21, 2], [0, 0, 0, 5]]),
}


def test_a_name_carries_over_where_both_groups_share_80_percent() -> None:
    own = {cluster: Label() for cluster in range(3)}
    others = {
        2: {0: Label(name="fat", flag="unsure"), 1: Label(name="bone")},
        4: {0: Label(), 1: Label(name="other"), 2: Label(name="x"), 3: Label(name="air")},
    }
    found = carried_names(own, others, shared_with=SHARED.__getitem__)
    # 80 of 90 and of 82 for fat; 100 of 102 and of 115 for bone; 79 of 102 is too few for "other"; 5 of 7 for "air".
    assert [(one.cluster, one.label.name, one.source_k, one.source) for one in found] == [
        (0, "fat", 2, 0),
        (1, "bone", 2, 1),
    ]
    assert [round(one.overlap, 3) for one in found] == [0.889, 0.87]
    assert found[0].label.flag == "unsure"


def test_the_best_overlap_wins_and_a_name_that_is_there_stays() -> None:
    others = {2: {0: Label(name="fat"), 1: Label()}, 4: {c: Label(name=f"four {c}") for c in range(4)}}
    own = {cluster: Label() for cluster in range(3)}
    assert carried_names(own, others, shared_with=SHARED.__getitem__)[0].label.name == "four 0"
    own[0] = Label(name="mine")
    assert 0 not in {one.cluster for one in carried_names(own, others, shared_with=SHARED.__getitem__)}
    assert carried_names(own, {4: {c: Label(flag="mixed") for c in range(4)}}, shared_with=SHARED.__getitem__) == []
