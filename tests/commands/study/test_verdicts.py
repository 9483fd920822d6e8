import math
import random
import statistics

import pytest

from sparse24.commands.study import verdicts
from sparse24.commands.study.ways import Unit


def test_spread_is_pooled_over_groups_and_not_over_their_means():
    assert verdicts.pooled_spread([[1.0, 3.0], [101.0, 103.0]]) == pytest.approx(statistics.stdev([1.0, 3.0]))
    assert verdicts.pooled_spread([[1.0, 2.0, 3.0], [5.0]]) == pytest.approx(1.0)
    assert math.isnan(verdicts.pooled_spread([[1.0], [2.0]]))


def test_groups_count_by_their_degrees_of_freedom():
    draw = random.Random(0)
    groups = [[draw.gauss(10 * i, 2.0) for _ in range(2 + i)] for i in range(40)]
    assert verdicts.pooled_spread(groups) == pytest.approx(2.0, rel=0.05)


SCORES = {("r", "dense"): {0: 90.0, 1: 91.0, 2: 92.0}, ("r", "sparse"): {0: 89.5, 1: 90.5, 2: 92.0}}


def test_differences_are_paired_by_seed():
    verdict = verdicts.verdict(SCORES, "r", "sparse", 1.0, better=1)
    assert verdict is not None
    assert verdict.difference == pytest.approx(-1 / 3)
    assert verdict.bound == pytest.approx(-2 / math.sqrt(3))
    assert verdict.passed is True


@pytest.mark.parametrize(("spread", "passed"), [(0.28, False), (0.29, True)])
def test_a_row_passes_down_to_two_standard_errors(spread, passed):
    verdict = verdicts.verdict(SCORES, "r", "sparse", spread, better=1)
    assert verdict is not None
    assert verdict.passed is passed


def test_where_less_is_better_signs_turn():
    up = verdicts.verdict(SCORES, "r", "sparse", 1.0, better=1)
    down = verdicts.verdict(SCORES, "r", "sparse", 1.0, better=-1)
    assert up is not None
    assert down is not None
    assert down.difference == -up.difference


def test_one_seed_is_no_verdict_and_seeds_without_a_pair_do_not_count():
    lonely = {("r", "dense"): {0: 1.0, 1: 5.0}, ("r", "sparse"): {0: 2.0, 7: 100.0}}
    verdict = verdicts.verdict(lonely, "r", "sparse", 1.0, better=1)
    assert verdict is not None
    assert (verdict.pairs, verdict.difference, verdict.passed) == (1, 1.0, None)
    assert verdicts.verdict({("r", "dense"): {0: 1.0}}, "r", "sparse", 1.0, better=1) is None


def test_scores_are_kept_by_row_way_and_seed():
    kept = [(Unit("r", seed, "dense"), {"score": seed / 2}) for seed in (0, 1)]
    assert verdicts.scores_of(kept) == {("r", "dense"): {0: 0.0, 1: 0.5}}
