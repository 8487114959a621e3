"""Choosing: what fits is compared, what does not is counted with the reason, and noise is called noise."""

import numpy as np
import pandas as pd
import pytest
from test_compare import three_methods
from test_report import hole, run_row, runs_table, saved

from c2f.__main__ import main
from c2f.choose import Limits, choose, fitting
from c2f.compare import compare_table, difference, lead
from c2f.errors import ConfigError, DataError

KB = Limits(1000)


def cell(method, values, budget="bytes-1000", **changes) -> list[dict]:
    """A run per value of ndcg@20, with the seeds 1, 2 ..."""
    return [
        run_row(method, budget, seed, **{"ndcg@20": value, "stored_bytes": 900.0, "serving_bytes": 950.0} | changes)
        for seed, value in enumerate(values, start=1)
    ]


def said(folder, rows, limits=KB, **options) -> str:
    return choose("toy", limits, saved(folder, *rows), **options)


def test_the_best_mean_that_fits_is_recommended_and_the_best_of_another_method_is_the_runner_up(tmp_path):
    rows = [
        *cell("good", [0.30, 0.31]),
        *cell("good", [0.29, 0.30], budget="bytes-500"),  # the same method is no runner-up
        *cell("fair", [0.20, 0.21]),
        *cell("huge", [0.90, 0.90], stored_bytes=1001.0),
    ]
    text = said(tmp_path, rows)
    assert "Recommended: good at bytes-1000: NDCG@20 0.3050" in text
    assert "Runner-up: fair at bytes-1000: NDCG@20 0.2050" in text
    assert "Left out of 4 cells (a method at a budget):\n  1 too large" in text


def test_a_difference_beyond_noise_names_the_better_and_one_within_it_says_so(tmp_path):
    clear = said(tmp_path, [*cell("good", [0.30, 0.31, 0.32]), *cell("fair", [0.20, 0.21, 0.22])])
    assert (
        "Difference: +0.1000" in clear and "leaves out 0 and p is below 0.001: good is better on these users." in clear
    )
    assert "no metrics by user" in clear and "corrected" not in clear
    three = said(tmp_path, [*cell("good", [0.3, 0.3]), *cell("fair", [0.2, 0.21]), *cell("bad", [0.1, 0.1])])
    assert "good at bytes-1000: NDCG@20 0.3000, the same for every one of 2 seeds" in three
    assert (
        "leaves out 0, but p is 0.061, corrected for the 3 pairs of the 3 methods that fit: the evidence does not "
        "separate them." in three
    )
    rows = [*cell("good", [0.300, 0.301, 0.302]), *cell("fair", [0.2, 0.2, 0.2]), *cell("bad", [0.1, 0.1, 0.1])]
    assert "corrected for the 3 pairs of the 3 methods that fit: good is better on these users." in said(tmp_path, rows)
    rows = [*cell("good", [0.30, 0.20, 0.40]), *cell("fair", [0.29, 0.35, 0.20], stored_bytes=500.0)]
    noisy = said(tmp_path, rows)
    assert "The interval holds 0: the evidence does not separate them; fair is smaller (500 B)" in noisy


def test_the_corrected_p_is_that_of_the_compare_table_where_metrics_by_user_are_at_hand(tmp_path):
    rows = three_methods(tmp_path)
    runs = runs_table(*rows)
    table = compare_table(runs, "short-vectors").query("metric == 'ndcg@20'").set_index("method")
    first, second = table.sort_values("mean", ascending=False).index[:2]
    gap, p = lead(runs, first, second, "ndcg@20")
    assert p == pytest.approx(table.best_p_holm[second])
    assert (gap.difference, gap.by_user) == (pytest.approx(-table.best_difference[second]), True)


def test_runs_for_figures_alone_are_no_choice(tmp_path):
    variant = [{**row, "role": "figure"} for row in cell("variant", [0.9, 0.9])]
    text = said(tmp_path, [*cell("good", [0.30, 0.31]), *variant])
    assert "Recommended: good" in text and "variant" not in text
    assert text.endswith(
        "All 1 cells (a method at a budget) fit.\n1 more methods were run for figures alone and are no choice."
    )


def test_only_seeds_that_both_have_are_compared():
    first = pd.DataFrame(cell("good", [0.30, 0.31, 0.32]))
    second = pd.DataFrame(cell("fair", [0.20, 0.21]))
    found = difference(first, second, "ndcg@20")
    assert (found.seeds, found.difference) == (2, pytest.approx(0.1)) and not found.by_user


def test_the_difference_is_the_one_of_the_compare_table(tmp_path):
    runs = runs_table(*three_methods(tmp_path))
    table = compare_table(runs, "short-vectors").set_index(["metric", "method"])
    row = table.loc[("ndcg@20", "winner")]
    found = difference(runs[runs.method == "winner"], runs[runs.method == "short-vectors"], "ndcg@20")
    assert (found.low, found.high) == (pytest.approx(row.plain_low, abs=1e-9), pytest.approx(row.plain_high, abs=1e-9))
    assert (found.seeds, found.by_user, found.different) == (3, True, True)
    folder = tmp_path / "recommended"
    folder.mkdir()
    text = choose("toy", KB, saved(folder, *runs[runs.method != "twin"].to_dict("records")))
    assert f"interval {row.plain_low:+.4f} to {row.plain_high:+.4f} over users and the 3 seeds that both have" in text


def test_with_one_seed_the_noise_between_seeds_is_called_unknown(tmp_path):
    text = said(tmp_path, [*cell("good", [0.30]), *cell("fair", [0.20])])
    assert "one seed: the noise between seeds is unknown" in text
    assert "the evidence does not separate them" in text


def test_metrics_by_user_give_an_interval_over_users_in_pairs(tmp_path):
    def with_users(method, shift):
        folder = tmp_path / method
        folder.mkdir()
        values = np.linspace(0, 0.5, 300) + shift
        pd.DataFrame({"user": np.arange(300), "ndcg@20": values}).to_parquet(folder / "per_user.parquet", index=False)
        return cell(method, [values.mean()])[0] | {"folder": str(folder)}

    rows = [with_users("good", 0.02), with_users("fair", 0.0)]
    text = said(tmp_path, rows)
    # the users spread from 0 to 0.5, but each gains the same: in pairs that is certain
    assert "Difference: +0.0200, 95 % interval +0.0200 to +0.0200 over users and one seed." in text
    assert "good is better. This is about these two models" in text
    stale = [rows[0] | {"ndcg@20": 0.5}, rows[1]]
    with pytest.raises(DataError, match=r"has another mean ndcg@20 than the runs table; run `python -m c2f collect`"):
        said(tmp_path, stale)


def test_serving_bytes_may_be_limited_instead(tmp_path):
    rows = [*cell("good", [0.3], serving_bytes=2000.0), *cell("fair", [0.2], serving_bytes=1000.0)]
    assert "Recommended: good" in said(tmp_path, rows)
    text = said(tmp_path, rows, Limits(1000, view="serving"))
    assert "Recommended: fair" in text and "1 kB to serve" in text and "no other method fits" in text


def test_latency_leaves_out_the_slow_and_names_those_that_were_not_measured(tmp_path):
    rows = [
        *cell("slow", [0.5], latency_p95_ms=9.0),
        *cell("unknown", [0.4], latency_p95_ms=np.nan),
        *cell("quick", [0.3], latency_p95_ms=1.0),
    ]
    text = said(tmp_path, rows, Limits(1000, latency_ms=5.0))
    assert "Recommended: quick" in text
    assert "1 too slow\n" in text and "1 not measured when serving: unknown at bytes-1000" in text
    near = said(tmp_path, rows, Limits(1000, latency_ms=8.5))
    assert "1 too slow; by less than 10 %: slow at bytes-1000 (9 ms)" in near
    assert "Recommended: slow" in said(tmp_path, rows)  # none asked for


def test_training_counts_with_what_a_run_starts_from(tmp_path):
    rows = [*cell("long", [0.5], seconds=10.0, seconds_with_starts=4000.0), *cell("short", [0.3])]
    text = said(tmp_path, rows, Limits(1000, train_seconds=3600))
    assert "Recommended: short" in text and "1 too long to train" in text


def test_runs_without_a_result_are_counted_and_an_incomplete_cell_says_so(tmp_path):
    rows = [*cell("good", [0.3, 0.4]), hole("good", "bytes-1000", "diverged", seed=3), hole("none", "bytes-1000")]
    text = said(tmp_path, rows)
    assert "(2 ok, 1 diverged)" in text and "1 no result: infeasible" in text


def test_a_run_that_its_time_limit_stopped_has_a_result_and_is_named(tmp_path):
    text = said(tmp_path, [*cell("stopped", [0.4], status="timeout"), *cell("fair", [0.2])])
    assert "Recommended: stopped at bytes-1000: NDCG@20 0.4000, one seed" in text and "unknown (timeout);" in text


def test_when_nothing_fits_that_is_said_with_the_reasons(tmp_path):
    text = said(tmp_path, cell("good", [0.3]), Limits(10))
    assert "No run fits; why, stands below." in text and "1 too large" in text


def test_the_largest_run_of_a_cell_must_fit():
    rows = cell("good", [0.3, 0.4])
    rows[1]["stored_bytes"] = 1001.0
    assert fitting(pd.DataFrame(rows), KB, "ndcg@20").left_out.tolist() == ["too large"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("1MB", "stored", None, None), Limits(1_000_000)),
        (("0.5kB", "serving", "5ms", "1.5"), Limits(500, "serving", 5.0, 5400.0)),
        (("1MB", "stored", "0.2s", None), Limits(1_000_000, "stored", 200.0)),
        (("1MB", "stored", "300us", None), Limits(1_000_000, "stored", 0.3)),
    ],
)
def test_limits_are_read_with_their_units(words, expected):
    found = Limits.parse(*words)
    assert (found.size, found.view) == (expected.size, expected.view)
    assert (found.latency_ms, found.train_seconds) == pytest.approx((expected.latency_ms, expected.train_seconds))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("1XB", "stored", None, None), "--bytes = '1XB' is no amount of memory"),
        (("1MB", "served", None, None), "--view 'served' is unknown; did you mean"),
        (("1MB", "stored", "5", None), "--latency '5' is no time; write for instance 5ms"),
        (("1MB", "stored", "0ms", None), "--latency '0' is not a positive number"),
        (("1MB", "stored", None, "soon"), "--train-hours 'soon' is not a positive number of hours"),
    ],
)
def test_a_limit_that_cannot_be_read_is_named(words, message):
    with pytest.raises(ConfigError) as error:
        Limits.parse(*words)
    assert message in str(error.value)


def test_the_step_prints_the_choice_and_names_mistakes(tmp_path, capsys, monkeypatch):
    runs = str(saved(tmp_path, *cell("good", [0.3, 0.31]), *cell("fair", [0.2, 0.21])))
    words = ["choose", "--bytes", "1kB", "--train-hours", "1", "--runs", runs]
    assert main([*words, "--dataset", "toy"]) == 0
    assert "Recommended: good" in capsys.readouterr().out
    assert main([*words, "--dataset", "tpy"]) == 2
    assert "ERROR: --dataset 'tpy' is not in the runs table; did you mean 'toy'?" in capsys.readouterr().err
    assert main([*words, "--dataset", "toy", "--metric", "ndgc@20"]) == 2
    assert "did you mean 'ndcg@20'?" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["choose", "--bytes", "1kB", "--dataset", "toy"]) == 2
    assert "results/tables/runs-toy.parquet is missing" in capsys.readouterr().err
    (tmp_path / "results/mine/tables").mkdir(parents=True)
    (tmp_path / "results/mine/tables/runs-toy.parquet").write_bytes(b"not a table")
    assert main(["choose", "--bytes", "1kB", "--dataset", "toy"]) == 2
    assert "name one: --runs results/mine/tables/runs-toy.parquet" in capsys.readouterr().err
    assert main(["choose", "--bytes", "1kB", "--dataset", "toy", "--runs", "results/mine/tables/runs-toy.parquet"]) == 2
    assert "cannot be read" in capsys.readouterr().err
