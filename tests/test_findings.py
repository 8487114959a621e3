"""Findings: every sentence says what the numbers say, and what they do not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_compare import evaluated, three_methods
from test_report import hole, run_row, runs_table, saved

from c2f.compare import cells_of, read_compare, write_compare
from c2f.errors import DataError
from c2f.findings import findings


def found(*rows: dict, tested: pd.DataFrame | None = None) -> dict[tuple, str]:
    """The sentences by dataset and what they are about."""
    said = findings(runs_table(*rows), tested, "lightgcn", "short-vectors")
    return {(dataset, label): words for dataset, part in said for label, words in part}


def compared(folder: Path, *rows: dict) -> pd.DataFrame:
    """The compare table of runs, as the report reads it."""
    write_compare([saved(folder, *rows)], folder / "compare", "short-vectors")
    return read_compare(folder / "compare.csv")


def scored(method: str, budget: str, *values: float, **changes) -> list[dict]:
    """Runs of a method with these values of NDCG@20, a seed for each."""
    return [
        run_row(method, budget, seed, **{"ndcg@20": value, **changes}) for seed, value in enumerate(values, start=1)
    ]


def test_the_best_of_a_budget_is_named_with_its_share_of_the_full_table_and_the_next():
    rows = [
        *scored("lightgcn", "full", 0.40, stored_bytes=4e6),
        *scored("pq", "bytes-1000", 0.30),
        *scored("int8", "bytes-1000", 0.29, **{"recall@20": 0.6}),
        *scored("short-vectors", "bytes-1000", 0.20),
    ]
    said = found(*rows)
    assert said["toy", "Full table"] == "lightgcn without a budget has NDCG@20 0.4000 and stores 4 MB."
    assert said["toy", "bytes-1000"] == (
        "pq is the best of 3 methods with a result: NDCG@20 0.3000 in 400 B, 75.0% of the full table of lightgcn. "
        "By Recall@20 it is int8: 0.6000. The next is int8, 0.2900. A plain table of the same bytes (short-vectors) "
        "has 0.2000; of 2 others 2 (pq, int8) lie above it."
    )


def test_the_interval_is_student_s_over_seeds_and_none_comes_from_one_seed():
    cells = cells_of(runs_table(*scored("pq", "full", 0.30, 0.34), *scored("svd", "full", 0.1)), ["ndcg@20"])
    several, one = cells.to_dict("records")
    half = 12.706 * (0.02 * 2**0.5) / 2**0.5  # t of one degree of freedom, standard deviation, two seeds
    assert (several["low"], several["high"]) == (
        pytest.approx(0.32 - half, abs=1e-5),
        pytest.approx(0.32 + half, abs=1e-5),
    )
    assert np.isnan(one["low"]) and np.isnan(one["high"])


def test_a_method_in_which_nothing_is_random_has_no_interval_of_width_0():
    said = found(*scored("svd", "bytes-1000", 0.3, 0.3, 0.3), *scored("pq", "bytes-1000", 0.1, 0.2, 0.3))[
        "toy", "bytes-1000"
    ]
    assert "svd is the best of 2 methods with a result: NDCG@20 0.3000 in" in said
    assert "The next is pq, 0.2000 (-0.0484 to 0.4484)." in said


def test_the_next_is_worse_where_the_paired_interval_leaves_out_0(tmp_path):
    rows = [row for row in three_methods(tmp_path) if row["method"] != "twin"]
    table = compared(tmp_path, *rows)
    low, high = table.set_index(["metric", "method"]).loc[("ndcg@20", "short-vectors"), ["best_low", "best_high"]]
    text = found(*rows, tested=table)["toy", "bytes-1000"]
    assert low < -0.05 < high < 0
    assert f"95 % interval {low:+.4f} to {high:+.4f} over users and 3 seeds, so it is worse." in text
    assert "Of 1 others it is beaten by 1 (winner)." in text


def test_a_twin_of_the_best_is_not_separated_and_one_seed_speaks_of_users_alone(tmp_path):
    several = three_methods(tmp_path)
    text = found(*several, tested=compared(tmp_path, *several))["toy", "bytes-1000"]
    assert "over users and 3 seeds, which holds 0, so the evidence does not separate the two." in text
    one = [row for row in several if row["seed"] == 1]
    said = found(*one, tested=compared(tmp_path, *one))
    assert "over users alone, as they have one seed in common" in said["toy", "bytes-1000"]
    assert "differences are those of these trained models alone" in said["", "What is not known"]


def test_others_are_beaten_by_the_plain_table_not_told_apart_from_it_or_better(tmp_path):
    lifts = {"short-vectors": 0.0, "winner": 0.1, "alike": 0.0, "loser": -0.1}
    rows = [evaluated(tmp_path, method, seed, lift) for method, lift in lifts.items() for seed in (1, 2, 3, 4, 5)]
    text = found(*rows, tested=compared(tmp_path, *rows))["toy", "bytes-1000"]
    assert "Of 3 others it is beaten by 1 (winner), not told apart from 1 (alike), better than 1 (loser)." in text


def test_without_a_compare_table_nothing_is_said_of_noise_but_that():
    rows = [*scored("pq", "bytes-1000", 0.39, 0.40, 0.41), *scored("int8", "bytes-1000", 0.1, 0.1, 0.1)]
    said = found(*rows)
    assert "The next is int8, 0.1000." in said["toy", "bytes-1000"]
    assert "which differences are more than noise is not known" in said["", "What is not known"]


def test_another_file_than_a_compare_table_is_refused(tmp_path):
    (tmp_path / "main.csv").write_text("dataset,budget,method\n")
    with pytest.raises(DataError, match=r"main\.csv has no 'metric', .* run `python -m c2f compare` again"):
        read_compare(tmp_path / "main.csv")


def test_a_budget_of_numbers_is_not_said_to_limit_bytes_and_holds_nobody_against_a_plain_table():
    rows = [
        *scored("legcf", "numbers-100", 0.3, stored_bytes=900.0),
        *scored("short-vectors", "numbers-100", 0.2),
    ]
    text = found(*rows)["toy", "numbers-100"]
    assert "Stored bytes, which such a budget does not limit, go from 400 B to 900 B." in text
    assert "plain table" not in text


def test_what_failed_is_counted_and_what_one_seed_does_not_tell_is_said():
    rows = [*scored("legcf", "numbers-100", 0.3), hole("pq", "numbers-100"), hole("svd", "numbers-100", "oom")]
    said = found(*rows)
    assert said["", "What failed"] == (
        "2 of 3 runs did not end well (1 ok, 1 infeasible, 1 oom); of pq, svd. Why, stands under Holes."
    )
    assert "Every number is from one seed, so no mean has an interval" in said["", "What is not known"]
    assert "legcf alone has a result" in said["toy", "numbers-100"]
    assert said["toy", "Full table"].startswith("lightgcn without a budget has no result here")


def test_a_budget_at_which_nothing_has_a_result_is_said_to_have_none():
    assert found(hole("pq", "numbers-100"))["toy", "numbers-100"] == "None of 1 methods has a result."


def test_stopped_runs_unserved_models_and_made_up_data_are_named_among_what_is_not_known():
    rows = [
        *scored("pq", "full", 0.3, 0.3, status="timeout", made_up=True),
        *scored("svd", "full", 0.2, served="oom: more than 64 bytes", made_up=True),
    ]
    text = found(*rows)["", "What is not known"]
    assert "2 runs were stopped by their time limit" in text
    assert "1 of 2 numbers are from one seed" in text
    assert "For 1 of 3 models it is not known what serving them costs." in text
    assert "Nothing is to be concluded from made-up data (toy)." in text


def test_runs_for_figures_alone_are_no_rivals():
    rows = [*scored("pq", "full", 0.3), *scored("c2f-100+20", "full", 0.9, role="figure")]
    assert found(*rows)["toy", "full"].startswith("pq alone has a result")
