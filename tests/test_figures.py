"""Figures: what is drawn is what the runs say, the csv holds exactly that, and holes are marked."""

import inspect

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from test_report import hole, run_row, runs_table, saved

from c2f.captions import FIGURES, NEEDED_KEYS
from c2f.errors import ConfigError
from c2f.figures import ablation, comparison, drawing, method_styles, write_figure

METHODS = ["lightgcn", "short-vectors", "legcf"]
FAMILIES = [[name] for name in METHODS]
COMPARISON = {
    "draw": "comparison",
    "metrics": ["recall@20", "ndcg@20"],
    "methods": METHODS,
    "seeds": [1, 2],
    "families": FAMILIES,
}
ABLATION = {
    "draw": "ablation",
    "x": "fine codes of 4",
    "metrics": ["recall@20"],
    "seeds": [1, 2],
    "families": FAMILIES,
    "lines": {"before": "short-vectors", "after": "legcf"},
    "points": [{"x": 0, "before": "four", "after": "four"}, {"x": 2, "before": "two", "after": "two+two"}],
}


def grid_runs(**changes) -> pd.DataFrame:
    """lightgcn without a budget; short-vectors infeasible at 100 numbers; legcf at both, with two seeds."""
    return runs_table(
        run_row("lightgcn", "full", numbers=640.0, stored_bytes=2560.0, **{"recall@20": 0.8}),
        hole("short-vectors", "numbers-100"),
        run_row("short-vectors", "numbers-200", **{"recall@20": 0.3}),
        run_row("legcf", "numbers-100", seed=1, **{"recall@20": 0.4}),
        run_row("legcf", "numbers-100", seed=2, **{"recall@20": 0.6}),
        run_row("legcf", "numbers-200", seed=1, **{"recall@20": 0.7} | changes),
    )


def line(ax, label):
    """Return the x and y values of the line with this label; of an error bar's main line too."""
    found = [item for item in ax.get_lines() if item.get_label() == label]
    found += [bars.lines[0] for bars in ax.containers if bars.get_label() == label]
    assert len(found) == 1, label
    return [list(map(float, values)) for values in found[0].get_data()]


def markers(ax, kind):
    return [item for item in ax.get_lines() if item.get_marker() == kind]


def texts(figure):
    return " ".join([text.get_text() for text in figure.texts] + [t.get_text() for ax in figure.axes for t in ax.texts])


def test_comparison_draws_the_mean_over_seeds_against_the_budget():
    figure, _ = comparison(grid_runs()[lambda runs: runs.status == "ok"], COMPARISON)
    recall, ndcg = figure.axes
    assert line(recall, "legcf") == [[100, 200], [pytest.approx((0.4 + 0.6) / 2), 0.7]]
    assert line(recall, "short-vectors") == [[200], [0.3]]
    assert recall.get_xscale() == "log"
    assert [tick.get_text() for tick in ndcg.get_xticklabels()] == ["100", "200"]


def test_comparison_draws_the_standard_deviation_over_seeds():
    figure, _ = comparison(grid_runs(), COMPARISON)
    (bars,) = [bars for bars in figure.axes[0].containers if bars.get_label() == "legcf"]
    (low, high), _ = (segment[:, 1] for segment in bars.lines[2][0].get_segments())
    assert (high - low) / 2 == pytest.approx((((0.4 - 0.5) ** 2 + (0.6 - 0.5) ** 2) / (2 - 1)) ** 0.5)


def test_a_method_without_a_budget_is_a_dashed_line_with_its_size():
    figure, _ = comparison(grid_runs(), COMPARISON)
    assert line(figure.axes[0], "lightgcn")[1] == [0.8, 0.8]
    (reference,) = [item for item in figure.axes[0].get_lines() if item.get_label() == "lightgcn"]
    assert reference.get_linestyle() == "--"
    assert "lightgcn 640" in texts(figure)


def test_an_infeasible_cell_is_a_cross_in_a_strip_below_the_panels_and_stands_in_the_csv():
    figure, plotted = comparison(grid_runs(), COMPARISON)
    recall, ndcg, strip = figure.axes
    assert not markers(recall, "x") + markers(ndcg, "x")
    assert strip.get_ylabel() == "no result"
    assert [label.get_text() for label in strip.get_yticklabels()] == ["short-vectors"]
    (cross,) = markers(strip, "x")
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([100], [0])
    assert strip.get_xlim() == recall.get_xlim()  # below the budget that it is about
    (bars,) = [bars for bars in recall.containers if bars.get_label() == "short-vectors"]
    assert cross.get_color() == bars.lines[0].get_color()
    row = plotted[(plotted.method == "short-vectors") & (plotted.budget == "numbers-100")].iloc[0]
    assert row.status == "infeasible" and "280" in row.reason and np.isnan(row["mean"])


def test_the_strip_has_a_line_for_each_method_with_a_hole_and_is_absent_without_one():
    runs = pd.concat([grid_runs(), runs_table(hole("legcf", "numbers-200", seed=2))], ignore_index=True)
    strip = comparison(runs, COMPARISON)[0].axes[-1]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["short-vectors", "legcf"]
    assert sorted((*cross.get_xdata(), *cross.get_ydata()) for cross in markers(strip, "x")) == [(100, 0), (200, 1)]
    without, _ = comparison(grid_runs()[lambda runs: runs.status == "ok"], COMPARISON)
    assert len(without.axes) == 2


def test_a_method_without_a_budget_that_failed_is_marked_too():
    runs = pd.concat([grid_runs(), runs_table(hole("lightgcn", "full", "oom", seed=2))], ignore_index=True)
    strip = comparison(runs, COMPARISON)[0].axes[-1]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["lightgcn", "short-vectors"]
    assert sorted(float(cross.get_ydata()[0]) for cross in markers(strip, "x")) == [0, 1]


def test_no_axis_goes_below_zero():
    low = {"recall@20": 0.001, "ndcg@20": 0.001}
    runs = runs_table(run_row("legcf", **low), run_row("legcf", "numbers-200"), hole("short-vectors", "numbers-100"))
    for ax in comparison(runs, COMPARISON)[0].axes[:2]:
        assert ax.get_ylim()[0] == 0


def test_a_run_stopped_by_its_time_limit_has_an_open_marker():
    figure, _ = comparison(grid_runs(status="timeout", reason="stopped after 9 seconds"), COMPARISON)
    opened = [
        item for item in figure.axes[0].get_lines() if item.get_markerfacecolor() == "white" and len(item.get_xdata())
    ]
    assert [list(item.get_xdata()) for item in opened] == [[200]]


def test_numbers_and_bytes_get_a_panel_each():
    runs = pd.concat([grid_runs(), runs_table(run_row("legcf", "bytes-500000"))], ignore_index=True)
    figure, _ = comparison(runs, COMPARISON)
    assert len(figure.axes) == (2 + 1) * 2  # (metrics and a strip) x kinds
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == ["0.5 MB"]
    assert "lightgcn 2.56 kB" in texts(figure)


def test_a_method_has_its_colour_whatever_else_is_drawn():
    def colour(**changes):
        figure, _ = comparison(grid_runs(), COMPARISON | changes)
        (bars,) = [bars for bars in figure.axes[0].containers if bars.get_label() == "legcf"]
        return matplotlib.colors.to_hex(bars.lines[0].get_color()), bars.lines[0].get_marker()

    assert colour() == colour(methods=["legcf"]) == colour(methods=["legcf", "short-vectors"])


def test_no_two_methods_look_alike_and_a_family_has_one_colour():
    families = [[f"m{place}", *(f"m{place}-{variant}" for variant in range(place % 3))] for place in range(40)]
    styles = method_styles(families)
    assert len({tuple(style.values()) for style in styles.values()}) == len(styles) == 40 + 39
    for family in families:
        assert len({styles[name]["color"] for name in family}) == 1
    more = method_styles([*families[:-1], [*families[-1], "new"], ["another"]])
    assert {name: more[name] for family in families for name in family[:1]} == {
        name: styles[name] for family in families for name in family[:1]
    }


def crowd(count: int) -> tuple[pd.DataFrame, dict]:
    """Runs of so many methods at two budgets, with almost equal values, and the figure's spec."""
    names = [f"method-{place}" for place in range(count)]
    rows = [
        run_row(name, budget, **{"recall@20": 0.5 + place / 1e4})
        for place, name in enumerate(names)
        for budget in ("numbers-100", "numbers-200")
    ]
    return runs_table(*rows), COMPARISON | {"methods": names, "families": [[name] for name in names]}


def test_many_lines_are_named_at_their_ends_without_overlap_and_in_their_order():
    figure, _ = comparison(*crowd(25))
    labels = [text for text in figure.axes[0].texts if text.get_text().startswith("method-")]
    heights = [label.xyann[1] for label in sorted(labels, key=lambda label: label.xy[1])]
    assert len(heights) == 25
    inches = figure.axes[0].get_position().height * figure.get_figheight()
    assert min(np.diff(heights)) * inches > 0.09  # of small letters
    assert heights[0] >= 0 and heights[-1] <= 1
    assert len(figure.legends[0].get_texts()) == 25


def test_a_few_lines_are_named_in_the_legend_alone():
    figure, _ = comparison(*crowd(6))
    assert len(figure.axes[0].texts) == 0


def test_the_footer_names_data_protocol_seeds_and_commit():
    figure, _ = comparison(grid_runs(), COMPARISON)
    footer = " ".join(texts(figure).split())
    for evidence in ("toy (protocol given)", "mean over 2 seeds (1, 2), bars: one standard", "commit: abc1234"):
        assert evidence in footer


@pytest.mark.parametrize(("draw", "spec", "method"), [(comparison, COMPARISON, "legcf"), (ablation, ABLATION, "four")])
def test_made_up_data_and_a_single_seed_are_named_in_the_picture(draw, spec, method):
    figure, _ = draw(runs_table(run_row(method, made_up=True)), spec)
    footer = " ".join(texts(figure).split())
    assert "toy (made up, protocol given); nothing is to be concluded from made-up data" in footer
    assert "one seed (1): how far another would lie from it is not known" in footer
    assert figure.axes[0].get_title().startswith("toy (made up)")


def test_every_drawing_has_a_caption_and_says_which_keys_it_needs():
    assert list(FIGURES) == list(NEEDED_KEYS)
    assert all(inspect.isfunction(drawing(name)) for name in FIGURES)


def test_the_caption_lies_beside_the_picture(tmp_path):
    write_figure("comparison", COMPARISON | {"caption": "Read me."}, [saved(tmp_path, run_row())], tmp_path / "figure")
    assert (tmp_path / "figure.txt").read_text() == "Read me.\n"


@pytest.mark.parametrize(("draw", "spec"), [(comparison, COMPARISON), (ablation, ABLATION)])
def test_a_figure_without_runs_says_what_is_missing(draw, spec):
    figure, plotted = draw(runs_table(run_row("another")), spec)
    assert "no runs of" in texts(figure) and plotted.empty


def test_a_figure_of_holes_alone_can_be_drawn():
    figure, plotted = comparison(runs_table(hole("legcf", "numbers-100")), COMPARISON)
    assert len(markers(figure.axes[-1], "x")) == 1 and plotted["mean"].isna().all()


def test_ablation_draws_before_and_after_at_each_point():
    values = {"four": 0.5, "two": 0.4, "two+two": 0.6}
    runs = runs_table(*(run_row(method, "full", **{"recall@20": value}) for method, value in values.items()))
    figure, plotted = ablation(runs, ABLATION)
    assert line(figure.axes[0], "before the fine stage") == [[0, 2], [0.5, 0.4]]
    assert line(figure.axes[0], "after the fine stage") == [[0, 2], [0.5, 0.6]]
    assert figure.axes[0].get_xlabel() == "fine codes of 4"
    assert plotted.set_index(["line", "x"])["mean"].to_dict() == {
        ("before the fine stage", 0): 0.5,
        ("before the fine stage", 2): 0.4,
        ("after the fine stage", 0): 0.5,
        ("after the fine stage", 2): 0.6,
    }


def test_ablation_has_a_row_of_panels_for_each_dataset():
    runs = runs_table(*(run_row("four", "full", dataset=dataset) for dataset in ("toy", "other")))
    figure, _ = ablation(runs, {**ABLATION, "metrics": ["ndcg@20", "recall@20"]})
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["toy: NDCG@20", "toy: Recall@20", "other: NDCG@20", "other: Recall@20"]


def test_csv_holds_exactly_the_numbers_drawn(tmp_path):
    runs = saved(tmp_path, *grid_runs().to_dict("records"))
    write_figure("comparison", COMPARISON, [runs], tmp_path / "figure")
    table = pd.read_csv(tmp_path / "figure.csv")
    figure, plotted = comparison(grid_runs(), COMPARISON)
    pd.testing.assert_series_equal(table["mean"], plotted["mean"])
    drawn = line(figure.axes[0], "legcf")[1] + line(figure.axes[0], "lightgcn")[1][:1]
    listed = table[(table.metric == "recall@20") & table.method.isin(["legcf", "lightgcn"])]["mean"]
    assert sorted(drawn) == sorted(listed)
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_equal_runs_give_equal_files(tmp_path):
    runs = saved(tmp_path, *grid_runs().to_dict("records"))
    for name in ("one", "two"):
        write_figure("comparison", COMPARISON, [runs], tmp_path / name)
    for ending in ("pdf", "png", "csv"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_only_the_figure_s_own_seeds_are_drawn(tmp_path):
    runs = saved(tmp_path, *grid_runs().to_dict("records"))
    write_figure("comparison", COMPARISON | {"seeds": [2]}, [runs], tmp_path / "figure")
    table = pd.read_csv(tmp_path / "figure.csv")
    (row,) = table[(table.method == "legcf") & (table.metric == "recall@20")].to_dict("records")
    assert (row["mean"], row["runs"], row["budget"]) == (
        0.6,
        1,
        "numbers-100",
    )  # seed 1 has 0.4 there, and another budget


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({}, "metrics"),
        ({"metrics": [], "families": [], "methods": []}, "seeds"),
        ({key: value for key, value in COMPARISON.items() if key != "methods"}, "methods"),
        ({key: value for key, value in ABLATION.items() if key != "lines"}, "lines"),
        (COMPARISON | {"draw": "rank_changes", "metric": "ndcg@20"}, "size"),
    ],
)
def test_a_spec_that_lacks_a_key_is_refused_by_its_name(tmp_path, spec, key):
    with pytest.raises(
        ConfigError, match=rf"the spec of figures\.comparison has no '{key}'; it takes metric.*, seeds, families, "
    ):
        write_figure("comparison", spec, [saved(tmp_path, run_row())], tmp_path / "figure")


def test_an_unknown_drawing_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'comparison'"):
        write_figure("mine", {"draw": "comparisn"}, [saved(tmp_path, run_row())], tmp_path / "figure")
