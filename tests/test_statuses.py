"""Statuses: from a doubt to a word, and from the words to what a user is told."""

import numpy as np

from r2n2_jax.evaluation.statuses import MEANING, pair_line, ranges, series_line, status_rows
from r2n2_jax.registration import trust


def test_the_more_doubt_the_worse_the_status():
    uncertain, failed = trust.UNCERTAIN_FROM, trust._FAILED_FROM
    below = np.nextafter([uncertain, failed], 0)
    doubts = np.array([[0.0, below[0], uncertain], [below[1], failed, np.inf]])
    assert trust.statuses(doubts).tolist() == [["good", "good", "uncertain"], ["uncertain", "failed", "failed"]]
    assert trust.statuses(np.array(np.nan)) == "failed"


def test_numbers_that_follow_one_another_are_a_range():
    assert ranges([]) == ""
    assert ranges([3, 4, 5, 6, 7]) == "3-7"
    assert ranges([0, 2, 3, 9, 11, 12]) == "0, 2-3, 9, 11-12"


def test_the_line_of_a_series_names_what_is_not_good():
    assert series_line([["good"] * 4]) == "status: 4 of 4 frames good"
    assert series_line([["good", "blank", "good"], ["blank"] * 3]) == "status: 2 of 2 frames good"
    one = [["good", "uncertain", "uncertain", "blank", "failed", "uncertain"]]
    assert series_line(one) == f"status: 1 of 5 frames good; uncertain: 1-2, 5; failed: 4. {MEANING}"
    several = [*one, ["good"] * 6, ["failed"] * 3 + ["good"] * 3]
    named = "uncertain: slice 0 (1-2, 5); failed: slice 0 (4), slice 2 (0-2)"
    assert series_line(several) == f"status: 10 of 17 frames good; {named}. {MEANING}"


def test_the_line_of_a_pair_says_what_it_means_where_it_is_not_good():
    assert pair_line("good") == "status: good"
    assert pair_line("failed") == f"status: failed. {MEANING}"


def test_a_slice_of_blank_frames_is_not_judged():
    header, rows = status_rows([["blank"] * 2, ["good", "blank"]], ["0", "1"])
    assert header == ["slice", "good", "uncertain", "failed", "uncertain frames", "failed frames"]
    assert rows == [["0", "", "", "", "blank", "blank"], ["1", "1", "0", "0", "none", "none"]]
