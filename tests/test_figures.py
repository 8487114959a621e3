"""Figures: what is drawn is what the runs say, the csv holds exactly that, and holes are marked."""

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from test_report import hole, run_row, runs_table, saved

from c2f.errors import ConfigError
from c2f.figures import ablation, comparison, write_figure

METHODS = ["lightgcn", "short-vectors", "legcf"]
COMPARISON = {"draw": "comparison", "metrics": ["recall@20", "ndcg@20"], "methods": METHODS, "palette": METHODS}
ABLATION = {
    "draw": "ablation",
    "x": "fine codes of 4",
    "metrics": ["recall@20"],
    "palette": METHODS,
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
    figure, _ = comparison(grid_runs(), COMPARISON)
    recall = figure.axes[0]
    assert line(recall, "legcf") == [[100, 200], [pytest.approx((0.4 + 0.6) / 2), 0.7]]
    assert line(recall, "short-vectors") == [[200], [0.3]]
    assert recall.get_xscale() == "log"
    assert [tick.get_text() for tick in recall.get_xticklabels()] == ["100", "200"]


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
    assert "lightgcn\n640" in texts(figure)


def test_an_infeasible_cell_is_a_cross_in_its_methods_colour_and_stands_in_the_csv():
    figure, plotted = comparison(grid_runs(), COMPARISON)
    (cross,) = markers(figure.axes[0], "x")
    (bars,) = [bars for bars in figure.axes[0].containers if bars.get_label() == "short-vectors"]
    assert list(cross.get_xdata()) == [100]
    assert cross.get_color() == bars.lines[0].get_color()
    row = plotted[(plotted.method == "short-vectors") & (plotted.budget == "numbers-100")].iloc[0]
    assert row.status == "infeasible" and "280" in row.reason and np.isnan(row["mean"])


def test_a_run_stopped_by_its_time_limit_has_an_open_marker():
    figure, _ = comparison(grid_runs(status="timeout", reason="stopped after 9 seconds"), COMPARISON)
    opened = [
        item for item in figure.axes[0].get_lines() if item.get_markerfacecolor() == "white" and len(item.get_xdata())
    ]
    assert [list(item.get_xdata()) for item in opened] == [[200]]


def test_numbers_and_bytes_get_a_panel_each():
    runs = pd.concat([grid_runs(), runs_table(run_row("legcf", "bytes-500000"))], ignore_index=True)
    figure, _ = comparison(runs, COMPARISON)
    assert len(figure.axes) == 2 * 2  # metrics x kinds
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["0.5 MB"]
    assert "lightgcn\n2.56 kB" in texts(figure)


def test_colours_depend_on_the_palette_alone_and_differ():
    figure, _ = comparison(grid_runs(), COMPARISON)
    alone, _ = comparison(grid_runs()[lambda runs: runs.method == "legcf"], COMPARISON)

    def colours(figure):
        return {
            bars.get_label(): matplotlib.colors.to_hex(bars.lines[0].get_color()) for bars in figure.axes[0].containers
        }

    assert colours(alone)["legcf"] == colours(figure)["legcf"]
    assert len(set(colours(figure).values())) == 2


def test_the_footer_names_data_protocol_seeds_and_commit():
    figure, _ = comparison(grid_runs(), COMPARISON)
    footer = " ".join(texts(figure).split())
    for evidence in ("toy (protocol given)", "seeds: 1, 2", "commit: abc1234"):
        assert evidence in footer


@pytest.mark.parametrize(("draw", "spec"), [(comparison, COMPARISON), (ablation, ABLATION)])
def test_a_figure_without_runs_says_what_is_missing(draw, spec):
    figure, plotted = draw(runs_table(run_row("another")), spec)
    assert "no runs of" in texts(figure) and plotted.empty


def test_a_figure_of_holes_alone_can_be_drawn():
    figure, plotted = comparison(runs_table(hole("legcf", "numbers-100")), COMPARISON)
    assert len(markers(figure.axes[0], "x")) == 1 and plotted["mean"].isna().all()


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


def test_an_unknown_drawing_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'comparison'"):
        write_figure("mine", {"draw": "comparisn"}, [saved(tmp_path, run_row())], tmp_path / "figure")
