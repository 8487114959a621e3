"""Figures of memory: bytes by kind, frontiers, ranks and costs are what the runs say; what is missing is marked."""

import json

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from test_figures import markers, texts
from test_report import hole, run_row, runs_table, saved

from c2f.captions import FIGURES, figure_caption
from c2f.figures import comparison, method_styles, write_figure
from c2f.memory_figures import MEASURED, VIEWS, inference, memory_ledger, pareto, rank_changes
from c2f.memory_figures import _axis_end as axis_end
from c2f.memory_figures import _round_sizes as round_sizes

METHODS = ["lightgcn", "short-vectors", "legcf"]
SPEC = {
    "metric": "ndcg@20",
    "methods": METHODS,
    "seeds": [1, 2],
    "families": [[name] for name in METHODS],
    "budget": "numbers-100",
    "size": "1kB",
}
DRAWN = [memory_ledger, pareto, rank_changes, inference]
COSTS = {
    "file_bytes": 900.0,
    "load_seconds": 0.1,
    "resident_bytes": 4e7,
    "latency_p50_ms": 2.0,
    "latency_p95_ms": 5.0,
    "users_per_second": 400.0,
}
OTHERS = {"leftover": None, "served": "ok"}  # no figure reads them
NOT_MEASURED = dict.fromkeys(COSTS, np.nan)


def model(method="legcf", budget="numbers-100", seed=1, parts=None, to_serve=500, ndcg=0.25, **changes) -> dict:
    """A run that stores `parts` (bytes by kind), needs `to_serve` bytes more to serve, and was measured."""
    parts = parts or {"codebook": 300, "assignment": 100}
    stored = float(sum(parts.values()))
    sizes = {"stored_bytes": stored, "serving_bytes": stored + to_serve, "parts": json.dumps(parts), "ndcg@20": ndcg}
    return run_row(method, budget, seed) | sizes | COSTS | OTHERS | changes


def without(method: str, budget: str, status="infeasible", **changes) -> dict:
    return hole(method, budget, status) | {"parts": None} | NOT_MEASURED | OTHERS | changes


def grid_runs(**changes) -> pd.DataFrame:
    """lightgcn without a budget; short-vectors infeasible at 100 numbers; legcf at both, with two seeds."""
    return runs_table(
        model("lightgcn", "full", parts={"vectors": 2560}, numbers=640.0, ndcg=0.8),
        without("short-vectors", "numbers-100"),
        model("short-vectors", "numbers-200", parts={"vectors": 800}, numbers=200.0, ndcg=0.3),
        model("legcf", "numbers-100", seed=1, ndcg=0.4),
        model("legcf", "numbers-100", seed=2, ndcg=0.6, parts={"codebook": 320, "assignment": 104}, numbers=100.0),
        model("legcf", "numbers-200", seed=1, ndcg=0.7, numbers=180.0, **changes),
    )


def words(figure) -> str:
    return " ".join(texts(figure).split())


def labels(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def bars(ax) -> dict[str, list[tuple[float, float]]]:
    """The (start, width) of what is drawn of each bar, from left to right."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in labels(ax)}
    for bar in ax.patches:
        name = labels(ax)[int(np.abs(ax.get_yticks() - (bar.get_y() + bar.get_height() / 2)).argmin())]
        if bar.get_width() > 0:
            found[name].append((bar.get_x(), bar.get_width()))
    return found


# The ledger -----------------------------------------------------------------------------------------------------------


def test_the_ledger_has_what_the_paper_counts_each_kind_and_what_serving_adds_as_means_over_seeds():
    _, plotted = memory_ledger(grid_runs(), SPEC)
    legcf = plotted[plotted.method == "legcf"]
    assert legcf.set_index("kind").bytes.to_dict() == {
        "paper": 4 * (96 + 100) / 2,
        "codebook": (300 + 320) / 2,
        "assignment": (100 + 104) / 2,
        "to serve": 500,
    }
    assert set(legcf.budget) == {"numbers-100"} and set(legcf.results) == {2}


def test_a_bar_is_stacked_by_kind_and_ends_at_what_serving_takes_which_is_written_there():
    figure, _ = memory_ledger(grid_runs(), SPEC)
    (ax,) = figure.axes
    assert bars(ax)["legcf"] == [(0, 310), (310, 102), (310 + 102, 500)]
    (total,) = [text for text in ax.texts if text.get_text() == "912 B"]
    assert total.xy[0] == 310 + 102 + 500


def test_a_tick_marks_the_numbers_of_the_paper_at_four_bytes():
    figure, _ = memory_ledger(grid_runs(), SPEC)
    (ax,) = figure.axes
    ticks = {float(segment[0, 0]) for lines in ax.collections for segment in lines.get_segments()}
    assert 4 * (96 + 100) / 2 in ticks


def test_a_method_without_a_budget_stands_below_a_line_and_is_marked():
    figure, plotted = memory_ledger(grid_runs(), SPEC)
    assert labels(figure.axes[0]) == ["legcf", "short-vectors", "lightgcn (no budget)"]
    assert set(plotted.budget[plotted.method == "lightgcn"]) == {"full"}
    (rule,) = [item for item in figure.axes[0].lines if len(item.get_ydata()) == 2]
    low, high = (figure.axes[0].get_yticks()[place] for place in (1, 2))
    assert low < rule.get_ydata()[0] < high


def test_a_method_that_has_the_budget_is_not_shown_without_one_too():
    runs = pd.concat([grid_runs(), runs_table(model("legcf", "full"))], ignore_index=True)
    assert set(memory_ledger(runs, SPEC)[1].query("method == 'legcf'").budget) == {"numbers-100"}


def test_bars_stand_from_the_smallest_to_the_largest():
    sizes = {"lightgcn": 500, "short-vectors": 100, "legcf": 300}
    runs = runs_table(*(model(name, parts={"vectors": size}) for name, size in sizes.items()))
    assert labels(memory_ledger(runs, SPEC)[0].axes[0]) == ["short-vectors", "legcf", "lightgcn"]


def test_a_method_without_a_result_is_a_cross_with_its_status_and_its_reason_is_in_the_csv():
    figure, plotted = memory_ledger(grid_runs(), SPEC)
    assert len(markers(figure.axes[0], "x")) == 1 and "infeasible" in words(figure)
    (row,) = plotted[plotted.method == "short-vectors"].to_dict("records")
    assert (row["status"], row["results"], row["runs"]) == ("infeasible", 0, 1)
    assert "280" in row["reason"] and pd.isna(row["kind"]) and np.isnan(row["bytes"])


def test_a_mean_over_fewer_seeds_than_there_are_is_named():
    runs = pd.concat([grid_runs(), runs_table(without("lightgcn", "full", "oom", seed=2))], ignore_index=True)
    figure, plotted = memory_ledger(runs, SPEC)
    assert "not every seed has a result: lightgcn on toy" in words(figure)
    assert plotted.set_index(["method", "kind"]).bytes["lightgcn", "vectors"] == 2560


def test_a_method_that_is_run_at_other_budgets_alone_is_named():
    figure, plotted = memory_ledger(grid_runs()[lambda runs: runs.budget != "numbers-100"], SPEC)
    assert set(plotted.method) == {"lightgcn"}
    assert "run at other budgets: legcf, short-vectors" in words(figure) and "not run" not in words(figure)


def test_an_axis_ends_before_a_few_bars_that_would_dwarf_all_others():
    assert axis_end(np.array([1.0, 2.0, 3.0, 100.0])) == 3
    assert axis_end(np.array([1.0, 2.0, 100.0, 90.0])) == 2
    assert axis_end(np.array([1.0, 90.0, 95.0, 100.0])) == 100  # most are long
    assert axis_end(np.array([1.0, 2.0, 4.0, 8.0])) == 8
    assert (axis_end(np.array([7.0])), axis_end(np.array([]))) == (7, 1)


def test_a_bar_longer_than_the_axis_is_cut_and_both_its_sizes_are_written():
    runs = runs_table(
        model("short-vectors", parts={"vectors": 300}, to_serve=0, numbers=75.0),
        model("legcf", parts={"codebook": 400}, to_serve=0, numbers=100.0),
        model("lightgcn", "full", parts={"vectors": 4_000_000}, to_serve=6_000_000, numbers=1e6),
    )
    figure, plotted = memory_ledger(runs, SPEC)
    (ax,) = figure.axes
    assert bars(ax)["lightgcn (no budget)"] == [(0, 1.08 * 400)]
    assert "10 MB (paper: 4 MB)" in words(figure)
    assert ax.get_xlim()[1] < 1000
    assert plotted[plotted.method == "lightgcn"].bytes.tolist() == [4e6, 4e6, 6e6]


def test_every_kind_has_a_colour_of_its_own_and_only_kinds_that_are_there_a_place_in_the_legend():
    figure, _ = memory_ledger(grid_runs(), SPEC)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:3] == ["vectors", "codebook", "assignment"] and "network" not in names
    colours = [handle.get_facecolor() for handle in figure.legends[0].get_patches()]
    assert len(set(colours)) == len(colours)


def test_a_kind_that_is_not_known_is_a_bug():
    with pytest.raises(AssertionError, match="spells"):
        memory_ledger(runs_table(model(parts={"spells": 4})), SPEC)


# The frontier ---------------------------------------------------------------------------------------------------------


def test_the_frontier_is_what_no_smaller_or_equal_run_beats_in_each_view():
    runs = runs_table(
        model("short-vectors", "numbers-100", parts={"vectors": 400}, to_serve=5000, numbers=100.0, ndcg=0.2),
        model("short-vectors", "numbers-200", parts={"vectors": 800}, to_serve=5000, numbers=200.0, ndcg=0.1),
        model("legcf", "numbers-100", parts={"codebook": 400, "indices": 200}, to_serve=0, numbers=100.0, ndcg=0.3),
        model("lightgcn", "full", parts={"vectors": 4000}, to_serve=0, numbers=1000.0, ndcg=0.3),
    )
    _, plotted = pareto(runs, SPEC)
    best = plotted[plotted.on_frontier].set_index(["view", "method"]).bytes.to_dict()
    assert best == {
        ("paper", "legcf"): 400,
        ("stored", "short-vectors"): 400,
        ("stored", "legcf"): 600,
        ("serving", "legcf"): 600,
    }
    assert len(plotted) == 4 * len(VIEWS)  # whoever is beaten is kept


def test_runs_that_are_equal_in_both_share_the_frontier():
    runs = runs_table(model("legcf"), model("short-vectors"))
    assert pareto(runs, SPEC)[1].on_frontier.all()


def test_the_frontier_is_a_step_line_with_its_methods_named_once_and_others_are_faint():
    figure, plotted = pareto(grid_runs(), SPEC)
    stored = figure.axes[1]
    (steps,) = [item for item in stored.lines if item.get_drawstyle() == "steps-post"]
    right = stored.get_xlim()[1]
    assert list(steps.get_xdata()) == [400, 2560, right]  # legcf with 200 numbers, lightgcn
    assert list(steps.get_ydata()) == [0.7, 0.8, 0.8]
    named = [text.get_text() for text in stored.texts]
    on = plotted[plotted.on_frontier & (plotted["view"] == "stored")]
    assert sorted(named) == sorted(set(on.method)) == ["legcf", "lightgcn"]
    faint = {float(item.get_xdata()[0]) for item in stored.lines if item.get_alpha() == 0.3}
    assert faint == set(plotted.bytes[(plotted["view"] == "stored") & ~plotted.on_frontier].dropna())


def test_the_columns_are_three_ways_to_count_on_one_logarithmic_scale():
    figure, plotted = pareto(grid_runs(), SPEC)
    row = figure.axes[:3]
    assert [ax.get_title() for ax in row] == [f"toy: {view}" for view in VIEWS.values()]
    assert {(ax.get_xscale(), ax.get_xlim(), ax.get_ylim()) for ax in row} == {
        ("log", row[0].get_xlim(), row[0].get_ylim())
    }
    sizes = plotted[plotted.method == "lightgcn"].set_index("view").bytes.to_dict()
    assert sizes == {"paper": 4 * 640, "stored": 2560, "serving": 2560 + 500}


def test_a_hole_is_a_cross_in_the_column_that_its_budget_limits():
    runs = pd.concat([grid_runs(), runs_table(without("legcf", "bytes-900"))], ignore_index=True)
    figure, plotted = pareto(runs, SPEC)
    strips = figure.axes[3:]
    crosses = [[(*cross.get_xdata(), *cross.get_ydata()) for cross in markers(strip, "x")] for strip in strips]
    assert labels(strips[0]) == ["short-vectors", "legcf"]
    assert crosses == [[(4 * 100, 0)], [(900, 1)], []]
    assert plotted[plotted["mean"].isna()].reason.str.contains("280").all()


def test_names_on_a_frontier_stand_apart_and_above_their_points():
    names = [f"method-{place}" for place in range(20)]
    runs = runs_table(
        *(
            model(name, parts={"vectors": 400 + place}, ndcg=0.5 + place / 1e4, numbers=100.0 + place)
            for place, name in enumerate(names)
        )
    )
    figure, _ = pareto(runs, SPEC | {"methods": names, "families": [[name] for name in names]})
    ax = figure.axes[1]
    heights = np.array([text.xyann[1] for text in ax.texts])
    inches = ax.get_position().height * figure.get_figheight() / np.diff(ax.get_ylim())
    assert len(heights) == 20 and np.diff(heights).min() * inches > 0.09  # of small letters
    assert all(text.xyann[1] > text.xy[1] and text.xyann[0] < text.xy[0] for text in ax.texts)
    assert heights.max() < ax.get_ylim()[1]


# Ranks ----------------------------------------------------------------------------------------------------------------


def test_methods_are_ranked_by_their_best_run_of_at_most_the_size_in_each_view():
    runs = runs_table(
        model("short-vectors", "numbers-100", parts={"vectors": 400}, to_serve=0, numbers=100.0, ndcg=0.2),
        model("short-vectors", "numbers-200", parts={"vectors": 1001}, to_serve=0, numbers=250.0, ndcg=0.4),
        model("legcf", "numbers-100", parts={"codebook": 400, "indices": 600}, to_serve=1, numbers=100.0, ndcg=0.3),
    )
    figure, plotted = rank_changes(runs, SPEC)
    found = plotted.set_index(["view", "method"])
    assert found["rank"].dropna().to_dict() == {
        ("paper", "short-vectors"): 1,  # 250 numbers are 1,000 bytes, which is not more than 1 kB
        ("paper", "legcf"): 2,
        ("stored", "legcf"): 1,  # 1,000 bytes; 1,001 are too many
        ("stored", "short-vectors"): 2,
        ("serving", "short-vectors"): 1,  # legcf has 1,001
    }
    best = found.loc["paper", "short-vectors"]
    assert (best.budget, best["mean"], best.bytes) == ("numbers-200", 0.4, 1000)
    rest = found.loc["serving", "legcf"]
    assert pd.isna(rest["rank"]) and rest.bytes == 1001
    assert "0.4000 short-vectors 1" in words(figure) and "1 short-vectors 0.2000" in words(figure)


def test_lines_join_the_ranks_of_a_method_and_fall_into_the_strip_where_none_of_its_runs_fits():
    figure, plotted = rank_changes(grid_runs(), SPEC | {"size": "700B"})
    (ax,) = figure.axes
    assert plotted.set_index(["view", "method"])["rank"].dropna().to_dict() == {
        ("paper", "legcf"): 1,
        ("stored", "legcf"): 1,
    }
    colour = method_styles(SPEC["families"])["legcf"]["color"]
    (first, second) = [item for item in ax.lines if len(item.get_xdata()) == 2 and item.get_color() == colour]
    assert list(first.get_ydata()) == [1, 1]
    assert second.get_ydata()[0] == 1 and second.get_ydata()[1] > 1.65  # the strip
    assert "no run of at most 700 B" in words(figure)


def test_a_method_without_any_result_is_a_cross_in_the_strip_and_a_hole_elsewhere_is_named():
    runs = pd.concat(
        [grid_runs()[lambda runs: runs.method != "lightgcn"], runs_table(without("lightgcn", "full", "oom"))],
        ignore_index=True,
    )
    figure, plotted = rank_changes(runs, SPEC)
    assert len(markers(figure.axes[0], "x")) == len(VIEWS)
    assert set(plotted.status[plotted.method == "lightgcn"]) == {"oom"}
    assert "runs without a result: short-vectors (numbers-100), lightgcn on toy" in words(figure)


def test_without_anything_below_it_there_is_no_strip():
    figure, plotted = rank_changes(grid_runs(), SPEC | {"size": 1_000_000})
    assert plotted["rank"].notna().all() and "no run of at most" not in words(figure)


def test_ranks_are_whole_numbers_in_the_csv(tmp_path):
    write_figure("rank_changes", SPEC, [saved(tmp_path, *grid_runs().to_dict("records"))], tmp_path / "figure")
    table = pd.read_csv(tmp_path / "figure.csv", dtype=str)
    assert set(table["rank"].dropna()) <= set("123")


# Costs of serving -----------------------------------------------------------------------------------------------------


def test_inference_draws_the_median_with_a_line_to_the_95th_percentile_and_the_memory():
    figure, plotted = inference(runs_table(model(seed=1, ndcg=0.2), model(seed=2, ndcg=0.4, latency_p50_ms=4.0)), SPEC)
    time, memory = figure.axes
    assert (time.get_xscale(), memory.get_xscale()) == ("log", "log")
    (point,) = [bars.lines[0] for bars in time.containers]
    assert [*point.get_xdata(), *point.get_ydata()] == [(2 + 4) / 2, pytest.approx((0.2 + 0.4) / 2)]
    ends = [segment[:, 0].tolist() for lines in time.collections for segment in lines.get_segments()]
    assert [3.0, 5.0] in ends
    (point,) = [bars.lines[0] for bars in memory.containers]
    assert list(point.get_xdata()) == [4e7]
    assert set(MEASURED) == set(COSTS) <= set(plotted.columns)


def test_runs_that_were_not_measured_are_named_and_stay_in_the_csv():
    runs = pd.concat(
        [grid_runs(**NOT_MEASURED), runs_table(model("lightgcn", "full", dataset="other", **NOT_MEASURED))],
        ignore_index=True,
    )
    figure, plotted = inference(runs, SPEC)
    assert "not measured: legcf (numbers-200) on toy; lightgcn on other" in words(figure)
    assert "runs without a result: short-vectors (numbers-100) on toy" in words(figure)
    assert plotted.measured.tolist() == [1, 0, 1, 2, 0, 0] and len(plotted) == 6


def test_without_any_measurement_the_figure_says_so():
    runs = grid_runs().assign(**dict.fromkeys(COSTS))
    figure, plotted = inference(runs, SPEC)
    assert "no measured runs of lightgcn" in texts(figure) and len(plotted) == 5


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", DRAWN)
def test_a_figure_without_runs_says_what_is_missing(draw):
    figure, plotted = draw(runs_table(model("another")), SPEC)
    assert "Nothing to draw" in texts(figure) and plotted.empty


@pytest.mark.parametrize("draw", [memory_ledger, pareto, rank_changes])
def test_a_figure_of_holes_alone_can_be_drawn(draw, tmp_path):
    figure, _ = draw(runs_table(without("legcf", "numbers-100")), SPEC)
    figure.savefig(tmp_path / "figure.png")
    assert sum(len(markers(ax, "x")) for ax in figure.axes) > 0


@pytest.mark.parametrize("draw", DRAWN)
def test_each_dataset_has_a_row_with_its_name(draw):
    runs = pd.concat([grid_runs(), grid_runs().assign(dataset="other", made_up=True)], ignore_index=True)
    figure, plotted = draw(runs, SPEC)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    half = len(titles) // 2
    assert all(title.startswith("toy") for title in titles[:half])
    assert all(title.startswith("other (made up)") for title in titles[half:])
    assert set(plotted.dataset) == {"toy", "other"}


@pytest.mark.parametrize("draw", DRAWN)
def test_the_footer_names_data_seeds_and_commit_and_bars_where_there_are_some(draw):
    figure, _ = draw(grid_runs(), SPEC)
    for evidence in ("toy (protocol given)", "mean over 2 seeds (1, 2)", "commit: abc1234"):
        assert evidence in words(figure)
    caption = figure_caption(draw.__name__, [("toy", "given", False)], [1, 2])
    with_bars = draw in (pareto, inference)
    assert ("one standard deviation" in words(figure)) == ("one standard deviation" in caption) == with_bars
    assert "one seed (1): how far another would lie" in words(draw(grid_runs()[lambda runs: runs.seed == 1], SPEC)[0])


@pytest.mark.parametrize("draw", DRAWN)
def test_a_run_stopped_by_its_time_limit_has_an_open_marker(draw):
    runs = runs_table(model("short-vectors"), model(status="timeout", reason="stopped after 9 seconds"))
    figure, _ = draw(runs, SPEC)
    opened = [item for ax in figure.axes for item in ax.lines if item.get_markerfacecolor() == "white"]
    assert len(opened) == {memory_ledger: 1, pareto: 3, rank_changes: 3, inference: 2}[draw]
    assert "stopped by the time limit" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("draw", [pareto, rank_changes, inference])
def test_a_method_looks_as_it_does_against_the_budget(draw):
    other, _ = comparison(grid_runs(), SPEC | {"metrics": ["ndcg@20"]})
    style = {bars.lines[0].get_color() for bars in other.axes[0].containers if bars.get_label() == "legcf"}
    figure, _ = draw(grid_runs(), SPEC)
    used = {item.get_color() for ax in figure.axes for item in ax.lines}
    assert style <= used and {matplotlib.colors.to_hex(colour) for colour in style} == {"#009e73"}


@pytest.mark.parametrize("draw", DRAWN)
def test_equal_runs_give_equal_files_and_the_csv_is_the_table_drawn(draw, tmp_path):
    runs = saved(tmp_path, *grid_runs().to_dict("records"))
    for name in ("one", "two"):
        write_figure(draw.__name__, SPEC, [runs], tmp_path / name)
    for ending in ("pdf", "png", "csv"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    assert (tmp_path / "one.txt").read_text() == FIGURES[draw.__name__] + "\n"
    _, plotted = draw(grid_runs(), SPEC)
    table = pd.read_csv(tmp_path / "one.csv")
    assert list(table) == list(plotted) and len(table) == len(plotted)
    column = "bytes" if "bytes" in plotted else "resident_bytes"
    np.testing.assert_array_equal(table[column], plotted[column])


def test_a_logarithmic_axis_has_three_to_five_round_labels():
    assert round_sizes(900, 2e8) == [1e3, 1e5, 1e7]
    assert round_sizes(4e4, 2e6) == [1e5, 3e5, 1e6]
    assert round_sizes(4.4e7, 9.4e7) == pytest.approx([4.5e7, 6e7, 7.5e7, 9e7])
    for high in np.geomspace(1.1, 1e9, 60):
        found = round_sizes(1.0, high)
        assert 3 <= len(found) <= 6 and min(found) >= 1 and max(found) <= high
