"""The benchmark compares results before it times anything, and its table has every stage. No test looks at times."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import numpy as np
import pytest
import reference
from conftest import interactions

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[dict, str]:
    """bench.json and bench.md of a quick run."""
    output = tmp_path_factory.mktemp("bench")
    words = ["--quick", "--sizes", "tiny", "x1", "--repeats", "2", "--threads", "1", "--output", str(output)]
    subprocess.run(
        [sys.executable, "benchmarks/bench.py", *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads((output / "bench.json").read_text()), (output / "bench.md").read_text()


@pytest.mark.slow
def test_every_stage_agrees_with_its_reference_and_has_a_ratio(quick):
    result, table = quick
    assert [row["stage"] for row in result["stages"]] == list(bench.STAGES)
    for row in result["stages"]:
        assert row["agrees"], f"{row['stage']}: {row['agreement']}"
        median, least, most = row["ratio"]
        assert 0 < least <= median <= most
        assert f"| tiny | {bench.STAGES[row['stage']]} |" in table
    profiled = [row for row in result["stages"] if "shares" in row]
    assert {"coarse_step", "linear_step", "fine_step", "lightgcn_step"} <= {row["stage"] for row in profiled}
    for row in profiled:
        assert sum(row["shares"].values()) == pytest.approx(1, abs=0.05) and row["floor"] > 0
        used = "dense products" if "collapsed" in row["note"] else "sparse products"
        assert row["shares"][used] > 0 and row["shares"]["scores of triples"] > 0
    assert "| tiny | coarse step, exact (tanh) |" in table.partition("What the engine's steps spend")[2]
    assert result["commit"] in table and result["machine"] in table and "--quick" in result["command"]


@pytest.mark.slow
def test_growth_is_measured_for_both_kinds_of_epoch(quick):
    result, table = quick
    assert [(row["kind"], row["pairs"], row["steps"]) for row in result["growth"]] == [
        ("exact", 4_000, 79),  # 20,000 triples in batches of 256
        ("collapsed", 4_000, 79),
    ]
    assert result["growth"][0]["seconds"].keys() == {"adjacency", "sampling", "update", "step", "epoch"}
    assert "| x1 | collapsed | 540 | 4,000 | 256 | 79 |" in table


def test_exponents_are_fitted_over_the_sizes_of_one_kind_of_epoch():
    def row(kind, times, power):
        return {"kind": kind, "pairs": 1_000 * times, "seconds": {"epoch": 7 * times**power}, "own_bytes": 50 * times}

    growth = [row("exact", times, 1) for times in (1, 2, 4)] + [row("collapsed", times, 1.5) for times in (1, 4)]
    found = {fit["kind"]: fit["exponents"] for fit in bench.fits(growth)}
    assert found["exact"] == pytest.approx({"epoch": 1, "memory": 1})
    assert found["collapsed"] == pytest.approx({"epoch": 1.5, "memory": 1})
    assert bench.fits(growth[:1]) == []  # no line through one point


def test_the_fitted_exponent_of_a_planted_power_is_that_power():
    sizes = [1, 2, 4, 8]
    assert bench.fitted_exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)


def test_ratios_are_of_neighbours_in_time():
    # The machine was half as fast in the second repeat: that moves neither ratio.
    assert bench.spread([2.0, 4.0, 3.0], [1.0, 2.0, 1.0]) == [2.0, 2.0, 3.0]


def test_a_stage_whose_results_differ_is_not_timed():
    calls = []
    stage = bench.Stage(lambda: calls.append(1), lambda: calls.append(2), lambda: f"{bench.difference([1.0], [1.1])}")
    row = bench.measure("ranking", stage, repeats=3)
    assert (row["agrees"], calls) == (False, [])
    assert row["agreement"] == "results differ by 9.1e-02 of their largest entry"  # 0.1 / 1.1


@pytest.mark.parametrize(
    ("triples", "problem"),
    [
        ([(0, 0, 1), (0, 0, 2), (1, 2, 0), (1, 2, 1)], None),
        ([(0, 1, 2), (0, 1, 2)], "a positive is no training pair"),
        ([(1, 2, 0), (1, 2, 2)], "a negative is a training pair, or no item"),
        ([(0, 0, 1), (1, 2, 0)], "a draw has not 2 triples"),
    ],
)
def test_triples_that_no_sampler_may_draw_are_noticed(triples, problem):
    train = interactions([(0, 0), (1, 2)], 2, 3)
    columns = tuple(np.array(triples).T)
    if problem is None:
        bench.valid_triples(train, 2, columns)
    else:
        with pytest.raises(bench.Disagreement, match=problem):
            bench.valid_triples(train, 2, columns)


def test_made_up_graphs_have_the_size_asked_for_and_are_skewed():
    pairs = bench.made_up(500, 800, 10_000, seed=1)
    assert (len(pairs), pairs.num_users, pairs.num_items) == (10_000, 500, 800)
    assert len(set(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))) == 10_000
    popularity = np.sort(np.bincount(pairs.item, minlength=800))[::-1]
    assert popularity[:80].sum() > 0.25 * 10_000  # a tenth of the items; were all alike, a tenth of the pairs
    assert (
        bench.made_up(500, 800, 10_000, seed=1).sha256()
        == pairs.sha256()
        != bench.made_up(500, 800, 10_000, 2).sha256()
    )


def test_the_plain_metrics_of_one_user_are_the_sums_written_out():
    # Items 3, 0, 2 in order of score once item 1 is masked; held out: 0 and 2.
    users, items = np.array([[1.0]]), np.array([[3.0], [9.0], [2.0], [5.0]])
    values = reference.user_metrics(0, users, items, seen=[1], held_out=[0, 2], ks=(1, 2))
    assert values["recall@1"] == 0
    assert values["recall@2"] == 1 / 2
    assert values["ndcg@2"] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "gowala"], "--sizes 'gowala' is unknown; did you mean 'gowalla'?"),
        (["--stages", "rankin"], "--stages 'rankin' is unknown; did you mean 'ranking'?"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--quick", "--sizes", "gowalla"], "--sizes gowalla with --quick"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(words, message, tmp_path, capsys):
    assert bench.main([*words, "--output", str(tmp_path)]) == 2
    assert f"ERROR: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_had_are_made_up_and_said_to_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", bench.SIZES | {"lastfm": (60, 50, 600)})
    monkeypatch.setattr(bench, "download", lambda *_: (_ for _ in ()).throw(bench.DataError("no network")))
    folder, note = bench.prepared("lastfm", tmp_path / "none", tmp_path)
    assert note == "made up: the data could not be had"
    assert "no network\nlastfm: made-up data of its size are measured instead" in capsys.readouterr().err
    assert abs(bench.load_stats(folder / "stats.json")["num_train"] - 600) < 30
