"""Figures of evidence: differences are paired, published numbers are compared like with like, nothing is dropped."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_figures import markers, texts
from test_report import hole, run_row, runs_table, saved

from c2f.captions import figure_caption
from c2f.errors import DataError
from c2f.evidence_figures import components, published_vs_ours, read_literature, sensitivity, training_curves
from c2f.figures import write_figure

ROOT = Path(__file__).resolve().parents[1]
BUDGET = "numbers-100"
SHARED = {
    "budget": BUDGET,
    "metrics": ["ndcg@20"],
    "seeds": [1, 2],
    "families": [["legcf", "half", "double"], ["c2f"]],
}
POINTS = [
    {"x": 0.5, "method": "half", "line": "coarse"},
    {"x": 1.0, "method": "legcf", "line": "coarse"},
    {"x": 2.0, "method": "double", "line": "coarse"},
]
SENSITIVITY = SHARED | {"points": POINTS, "lines": {"coarse": "legcf"}, "x": "scale", "default": 1.0}
COMPONENTS = SHARED | {
    "base": "legcf",
    "points": [{"x": "half of it", "method": "half"}, {"x": "twice", "method": "double"}],
    "lines": {},
}
CURVES = SHARED | {"metric": "ndcg@20", "methods": ["legcf", "c2f"]}


def run(method, seed, ndcg, **changes) -> dict:
    return run_row(method, changes.pop("budget", BUDGET), seed, **{"ndcg@20": ndcg}, **changes)


def words(figure) -> str:
    return " ".join(texts(figure).split())


def parts_table() -> pd.DataFrame:
    """Two seeds: `half` is worse by about as much in each, `double` better in one and worse in the other."""
    return runs_table(
        run("legcf", 1, 0.20),
        run("legcf", 2, 0.30),
        run("half", 1, 0.10),
        run("half", 2, 0.21),
        run("double", 1, 0.30),
        run("double", 2, 0.20),
    )


# Sensitivity ----------------------------------------------------------------------------------------------------------


def test_a_point_is_the_mean_over_seeds_with_its_student_interval():
    figure, plotted = sensitivity(parts_table(), SENSITIVITY)
    point = plotted.set_index("method").loc["half"]
    sd = (((0.10 - 0.155) ** 2 + (0.21 - 0.155) ** 2) / (2 - 1)) ** 0.5
    half = stats.t.ppf(0.975, 1) * sd / 2**0.5
    assert point["mean"] == pytest.approx((0.10 + 0.21) / 2)
    assert (point.low, point.high) == pytest.approx((0.155 - half, 0.155 + half))
    (bars,) = figure.axes[0].containers
    assert [list(values) for values in bars.lines[0].get_data()] == [
        [0.5, 1.0, 2.0],
        pytest.approx([0.155, 0.25, 0.25]),
    ]
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((point.low, point.high))


def test_a_value_is_compared_with_the_default_of_its_line_in_pairs():
    _, plotted = sensitivity(parts_table(), SENSITIVITY)
    _, as_parts = components(parts_table(), COMPONENTS)
    columns = ["difference_percent", "difference_low", "difference_high", "pairs", "p_holm"]
    of_points, of_parts = (table.set_index("method").loc[["half", "double"], columns] for table in (plotted, as_parts))
    pd.testing.assert_frame_equal(of_points, of_parts)
    assert plotted[plotted.is_default].p.isna().all()
    _, without = sensitivity(parts_table(), SENSITIVITY | {"default": None})
    assert without.p.isna().all() and without.pairs.eq(0).all()


def test_the_default_is_marked_in_the_picture_and_in_the_table():
    figure, plotted = sensitivity(parts_table(), SENSITIVITY)
    (line,) = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [1.0, 1.0]]
    assert list(plotted.method[plotted.is_default]) == ["legcf"] and line.get_linestyle() != "-"
    assert "default" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_values_may_be_words_and_lines_several():
    points = [
        {"x": "none", "method": "half", "line": "coarse"},
        {"x": "all", "method": "legcf", "line": "coarse"},
        {"x": "all", "method": "double", "line": "fine"},
    ]
    spec = SENSITIVITY | {"points": points, "lines": {"coarse": "legcf", "fine": "c2f"}, "default": "all"}
    figure, _ = sensitivity(parts_table(), spec)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["none", "all"]
    colours = [bars.lines[0].get_color() for bars in figure.axes[0].containers]
    assert len(set(colours)) == 2


def test_of_several_budgets_one_is_drawn_and_of_a_method_without_any_its_only_run():
    runs = pd.concat([parts_table(), runs_table(run("half", 1, 0.9, budget="numbers-200"))], ignore_index=True)
    runs.loc[runs.method == "double", ["budget", "budget_kind"]] = "full"
    _, plotted = sensitivity(runs, SENSITIVITY)
    assert plotted.set_index("method")["mean"].to_dict() == pytest.approx(
        {"half": 0.155, "legcf": 0.25, "double": 0.25}
    )


def test_a_value_without_a_result_is_a_cross_and_one_that_was_not_run_is_named():
    runs = pd.concat(
        [parts_table()[lambda t: t.method == "legcf"], runs_table(hole("half", BUDGET))], ignore_index=True
    )
    figure, plotted = sensitivity(runs, SENSITIVITY)
    (cross,) = markers(figure.axes[-1], "x")
    assert list(cross.get_xdata()) == [0.5]
    assert plotted.set_index("method").status.to_dict() == {"half": "infeasible", "legcf": "ok", "double": "not run"}
    assert "not run: double" in words(figure)


# Components -----------------------------------------------------------------------------------------------------------


def test_a_difference_is_taken_seed_by_seed_in_percent_of_the_base():
    figure, plotted = components(parts_table(), COMPONENTS)
    found = plotted.set_index("x")
    differences = np.array([0.10 - 0.20, 0.21 - 0.30])
    half = stats.t.ppf(0.975, 1) * differences.std(ddof=1) / 2**0.5
    expected = 100 * (differences.mean() + np.array([0, -half, half])) / 0.25
    assert list(found.loc["half of it", ["difference_percent", "difference_low", "difference_high"]]) == pytest.approx(
        list(expected)
    )
    assert found.loc["half of it", "pairs"] == 2 and found.loc["half of it", "interval_over"] == "seeds"
    assert found.loc["twice", "difference_percent"] == pytest.approx(0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["legcf", "half of it", "twice"]
    assert "their intervals are over seeds alone" in words(figure)


def test_what_is_told_apart_from_the_base_has_a_colour_of_its_own():
    """half: -0.095 with an interval of 0.0635 on each side, p 0.033 and of two 0.067; nearer seeds make it 0.003."""
    near = parts_table().replace({"ndcg@20": {0.21: 0.201}})
    for runs, told_apart in ((parts_table(), False), (near, True)):
        figure, plotted = components(runs, COMPONENTS)
        p = plotted.set_index("method").p
        assert plotted.p_holm.dropna().tolist() == pytest.approx([min(2 * p["half"], 1), 1])
        assert (p["half"] < 0.05) and (2 * p["half"] < 0.05) == told_apart
        half, double = (bars.lines[0].get_color() for bars in figure.axes[0].containers)
        apart, not_apart = (handle.get_color() for handle in figure.legends[0].get_lines())
        assert (half, double) == (apart if told_apart else not_apart, not_apart)


def test_with_metrics_by_user_the_interval_is_over_users_too(tmp_path):
    def with_users(method, values):
        folder = tmp_path / method
        folder.mkdir()
        users = pd.DataFrame({"user": np.arange(len(values)), "ndcg@20": values})
        users.to_parquet(folder / "per_user.parquet", index=False)
        return run(method, 1, float(np.mean(values))) | {"folder": str(folder)}

    base = np.linspace(0, 1, 200)
    runs = pd.DataFrame([with_users("legcf", base), with_users("half", base - 0.1), with_users("double", base[::-1])])
    _, plotted = components(runs, COMPONENTS)
    found = plotted.set_index("x")
    assert set(found.interval_over.dropna()) == {"users"}
    assert found.loc["half of it", "difference_percent"] == pytest.approx(-100 * 0.1 / 0.5)
    assert found.loc["half of it", "difference_high"] == pytest.approx(-20)  # every user loses as much
    assert found.loc["twice", "difference_low"] < 0 < found.loc["twice", "difference_high"]


def test_with_one_seed_and_no_metrics_by_user_there_is_no_interval():
    figure, plotted = components(parts_table()[lambda runs: runs.seed == 1], COMPONENTS)
    assert plotted.difference_low.isna().all() and plotted.set_index("x").loc["half of it", "pairs"] == 1
    assert "how far another would lie from it is not known" in words(figure)


def test_a_part_without_a_result_is_a_cross_with_what_happened():
    whole = parts_table()
    runs = pd.concat([whole[whole.method != "half"], runs_table(hole("half", BUDGET))], ignore_index=True)
    figure, plotted = components(runs, COMPONENTS)
    assert len(markers(figure.axes[0], "x")) == 1 and "infeasible" in words(figure)
    assert "280" in plotted.set_index("x").loc["half of it", "reason"]


# Training curves ------------------------------------------------------------------------------------------------------

CURVE = """stage,epoch,seconds,loss,ndcg@5,ndcg@20,recall@20
A,0,0.5,,0.1,0.1,0.1
A,2,1.0,0.7,0.2,0.2,0.2
A,4,1.5,0.6,0.2,0.3,0.2
B,0,1.6,,0.2,0.3,0.2
B,2,2.0,0.5,0.3,0.4,0.3
"""


def with_curve(folder, method="legcf", seed=1, text=CURVE) -> dict:
    folder = folder / f"{method}-{seed}"
    folder.mkdir()
    (folder / "curve.csv").write_text(text)
    return run(method, seed, 0.4) | {"folder": str(folder)}


def test_epochs_count_on_over_the_stages_and_each_stage_has_its_own_dashes(tmp_path):
    figure, plotted = training_curves(pd.DataFrame([with_curve(tmp_path)]), CURVES)
    assert list(plotted.epochs) == [0, 2, 4, 4, 6] and list(plotted.stage) == ["A", "A", "A", "B", "B"]
    first, second, begin = figure.axes[0].lines
    assert [list(line.get_xdata()) for line in (first, second)] == [[0, 2, 4], [4, 6]]
    assert first.get_linestyle() == "--" and second.get_linestyle() == "-"
    assert list(begin.get_xdata()) == [4] and begin.get_marker() == "|"
    loss = figure.axes[1].lines
    assert list(loss[0].get_ydata()) == [0.7, 0.6]  # before the first epoch there is none


def test_curves_may_stand_against_seconds_with_a_line_for_every_seed(tmp_path):
    runs = pd.DataFrame([with_curve(tmp_path, seed=1), with_curve(tmp_path, seed=2)])
    figure, _ = training_curves(runs, CURVES | {"x": "seconds"})
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in lines] == [[0.5, 1.0, 1.5]] * 2
    assert "a line for each of 2 seeds (1, 2)" in words(figure)


def test_a_run_without_a_curve_is_named(tmp_path):
    header = CURVE.splitlines()[0] + "\n"
    runs = pd.DataFrame([with_curve(tmp_path), with_curve(tmp_path, "c2f", text=header)])
    figure, plotted = training_curves(runs, CURVES)
    assert "without a curve: c2f" in words(figure) and set(plotted.method) == {"legcf", "c2f"}


def test_a_curve_that_cannot_be_read_is_named(tmp_path):
    run_without = with_curve(tmp_path)
    shutil.rmtree(run_without["folder"])
    with pytest.raises(DataError, match=r"curve\.csv is missing"):
        training_curves(pd.DataFrame([run_without]), CURVES)
    with pytest.raises(DataError, match="has no `folder` of legcf"):
        training_curves(pd.DataFrame([run("legcf", 1, 0.3) | {"folder": None}]), CURVES)
    with pytest.raises(DataError, match="has not all that is drawn"):
        training_curves(pd.DataFrame([with_curve(tmp_path, text="stage,epoch\n")]), CURVES)


# Published numbers ----------------------------------------------------------------------------------------------------

HEADER = "source,dataset,protocol,method,setting,metric,value,note,our_dataset,our_protocol,entry,budget,reason,caveat"
ROWS = """
Paper,toy,given,legcf,100 codes,ndcg@20,0.25,,toy,given,legcf,numbers-100,,
Paper,toy,given,legcf,100 codes,recall@20,0.40,,toy,given,legcf,numbers-100,,other hardware
Paper,toy,given,legcf,200 codes,ndcg@20,0.30,,toy,given,legcf,numbers-200,,
Other,toy,50/25/25,pep,,recall@20,0.30,,,,,,other split,
Third,toy,legcf,c2f,,ndcg@20,0.30,,toy,legcf,c2f,numbers-100,,
"""


def literature(folder, text=HEADER + ROWS) -> Path:
    path = folder / "literature.csv"
    path.write_text(text)
    return path


def published_runs() -> pd.DataFrame:
    return runs_table(
        run("legcf", 1, 0.24, **{"recall@20": 0.5}), run("legcf", 2, 0.25, **{"recall@20": 0.5}), run("c2f", 1, 0.3)
    )


def test_every_published_number_is_compared_or_has_a_reason(tmp_path):
    figure, plotted = published_vs_ours(published_runs(), SHARED | {"literature": literature(tmp_path)})
    assert len(plotted) == 5 and list(plotted.compared) == [True, True, False, False, False]
    assert plotted.why_not.notna().tolist() == [False, False, True, True, True]
    assert list(plotted.why_not[2:]) == [
        "not among these runs: legcf at numbers-200 on toy",
        "other split",
        "other protocol: toy is given here, not legcf",
    ]
    for text in ("2 of 5 published numbers compared", "Other (pep): other split", "Third (c2f): other protocol"):
        assert text in words(figure)


def test_one_published_number_has_its_room_above_a_long_footer(tmp_path):
    lines = [HEADER, ROWS.split("\n")[1]]
    lines += [f"Other {k},toy,50/25/25,pep,,recall@20,0.3,,,,,,another split of the pairs," for k in range(40)]
    spec = SHARED | {"literature": literature(tmp_path, "\n".join(lines))}
    figure, plotted = published_vs_ours(published_runs(), spec)
    assert plotted.compared.sum() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where it can lay nothing out
        figure.draw_without_rendering()
    (ax,), (footer,) = figure.axes, figure.texts
    assert ax.get_window_extent().height / figure.dpi > 0.4  # inches
    assert footer.get_window_extent().y1 < ax.get_tightbbox().y0


def test_our_mean_is_compared_in_percent_of_the_published_number_and_with_the_tolerance(tmp_path):
    _, plotted = published_vs_ours(published_runs(), SHARED | {"literature": literature(tmp_path)})
    near, far = plotted.iloc[0], plotted.iloc[1]
    assert near["mean"] == pytest.approx((0.24 + 0.25) / 2) and near.results == 2
    assert near.sd == pytest.approx(((0.005**2 + 0.005**2) / (2 - 1)) ** 0.5)
    assert near.difference_percent == pytest.approx(100 * (0.245 - 0.25) / 0.25) and near.within_tolerance
    assert far.difference_percent == pytest.approx(25) and not far.within_tolerance
    strict = SHARED | {"literature": literature(tmp_path), "tolerance": 1}
    assert not published_vs_ours(published_runs(), strict)[1].within_tolerance.iloc[0]


def test_without_anything_to_compare_the_table_is_whole_and_the_picture_says_so(tmp_path):
    figure, plotted = published_vs_ours(runs_table(run("svd", 1, 0.1)), SHARED | {"literature": literature(tmp_path)})
    assert len(plotted) == 5 and not plotted.compared.any() and "Nothing to draw" in words(figure)
    failed = runs_table(hole("legcf", BUDGET))
    _, plotted = published_vs_ours(failed, SHARED | {"literature": literature(tmp_path)})
    assert plotted.why_not.iloc[0] == "no result: infeasible"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,dataset\nA,toy\n", "has no column 'protocol'"),
        (HEADER + "\nPaper,toy,given,legcf,,ndcg@20,0,,toy,given,legcf,numbers-100,,\n", "line 2: value is 0.0"),
        (HEADER + "\nPaper,toy,given,legcf,,ndcg@20,0.2,,toy,,legcf,numbers-100,,\n", "line 2: neither all of"),
        (HEADER + "\nPaper,toy,given,legcf,,ndcg@20,much,,toy,given,legcf,numbers-100,,\n", "cannot be read"),
    ],
)
def test_a_damaged_file_of_published_numbers_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_literature(literature(tmp_path, text))


def test_a_missing_file_of_published_numbers_is_refused(tmp_path):
    with pytest.raises(DataError, match="name the file of published numbers under `literature`"):
        read_literature(tmp_path / "nothing.csv")


def test_the_published_numbers_of_the_project_are_whole_and_name_entries_that_there_are():
    from test_workflow import grid

    table = read_literature(ROOT / "results/published/literature.csv")
    assert len(table) == 39
    entries = grid().entries
    compared = table[table.reason.isna()]
    assert set(compared.entry) <= set(entries)
    assert set(compared.our_dataset) <= set(grid().config["datasets"])
    for row in compared.itertuples():
        assert grid().config["datasets"][row.our_dataset]["recipe"] == row.our_protocol
        assert row.budget in (entries[row.entry].budgets or [row.budget])


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [sensitivity, components, training_curves])
def test_a_figure_without_runs_says_what_is_missing(draw):
    spec = {sensitivity: SENSITIVITY, components: COMPONENTS, training_curves: CURVES}[draw]
    figure, plotted = draw(runs_table(run("another", 1, 0.1)), spec)
    assert "Nothing to draw" in words(figure) and plotted.empty


@pytest.mark.parametrize(
    ("name", "spec", "bars"),
    [("sensitivity", SENSITIVITY, "over seeds"), ("components", COMPONENTS, "over users and seeds")],
)
def test_files_are_written_and_the_caption_names_the_bars(tmp_path, name, spec, bars):
    runs = saved(tmp_path, *parts_table().to_dict("records"))
    write_figure(name, json.loads(json.dumps(spec)), [runs], tmp_path / name)
    assert {path.suffix for path in tmp_path.glob(f"{name}.*")} == {".pdf", ".png", ".csv", ".txt"}
    assert f"bars: 95 % intervals {bars}" in figure_caption(name, [("toy", "given", False)], [1, 2])
