"""The runs table, the tables and the report: what is in them comes from the runs, and holes are named."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from c2f.captions import COLUMNS
from c2f.errors import DataError
from c2f.inference import COLUMNS as COSTS
from c2f.page import write_report
from c2f.report import (
    collect,
    in_one_unit,
    main_table,
    memory_table,
    read_runs,
    size_in_words,
    summarise,
    write_memory,
    write_table,
)

PARTS = {"codebook": {"bytes": 384, "kind": "codebook"}, "codes": {"bytes": 16, "kind": "indices"}}
SHA = {"train": "a" * 64, "valid": "b" * 64, "test": "c" * 64}


def run_row(method="legcf", budget="numbers-100", seed=1, **changes) -> dict:
    """One row of a runs table; recall@20 and ndcg@20 as given, the rest plausible."""
    kind, _, amount = budget.partition("-")
    row = {
        "dataset": "toy",
        "protocol": "given",
        "made_up": False,
        "method": method,
        "role": "compared",
        "budget": budget,
        "budget_kind": kind,
        "budget_amount": float(amount or "inf"),
        "seed": seed,
        "status": "ok",
        "reason": None,
        "numbers": 96.0,
        "stored_bytes": 400.0,
        "serving_bytes": 900.0,
        "parts": json.dumps({"codebook": 300, "indices": 100}),
        "leftover": None,
        "served": "ok",
        "file_bytes": 1000.0,
        "load_seconds": 0.01,
        "resident_bytes": 3e7,
        "latency_p50_ms": 0.1,
        "latency_p95_ms": 0.2,
        "users_per_second": 5000.0,
        "epochs": 10,
        "seconds": 2.0,
        "seconds_with_starts": 2.0,
        "seconds_per_epoch": 0.2,
        "peak_rss_bytes": 300_000_000,
        "device": "cpu",
        "threads": 2,
        "machine": "a machine, 2 cores",
        "commit": "abc1234",
        "starts_from": None,
        "command": f"python -m c2f train --method {method}.json --budget {budget} --seed {seed}",
        "versions": json.dumps({"python": "3.11.7", "torch": "2.13.0"}),
        "data_sha256": json.dumps(SHA),
        "users": 30,
        "recall@20": 0.5,
        "ndcg@20": 0.25,
    }
    assert set(changes) <= set(row), changes
    row |= changes
    return {"folder": f"results/runs/{row['dataset']}/{row['method']}/{budget}/{seed}"} | row


def hole(
    method: str, budget: str, status="infeasible", reason="budget is below the 280 that it needs", **changes
) -> dict:
    """A row of a run without a result."""
    nothing = dict.fromkeys(("numbers", "stored_bytes", "serving_bytes", "recall@20", "ndcg@20", *COSTS), np.nan)
    unserved = {"parts": None, "served": "no model"}
    return run_row(method, budget, **{"status": status, "reason": reason, **nothing, **unserved, **changes})


def runs_table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"reason": "string", "starts_from": "string", "parts": "string"})


def saved(folder: Path, *rows: dict) -> Path:
    path = folder / "runs-toy.parquet"
    runs_table(*rows).to_parquet(path, index=False)
    return path


def write_run(folder: Path, means: dict, **changes) -> Path:
    """Write run.json and metrics.json as the train and evaluate steps do."""
    record = {
        "status": "ok",
        "reason": None,
        "dataset": "toy",
        "protocol": "given",
        "method": "legcf",
        "budget": "bytes-2kB",
        "seed": 7,
        "footprint": {"parts": PARTS, "numbers": 96, "stored": 400, "serving": 900},
        "leftover": None,
        "stages": [{"epochs": 5, "seconds_per_epoch": 0.5}, {"epochs": 10, "seconds_per_epoch": 0.25}],
        "seconds": 6.5,
        "peak_rss_bytes": 1000,
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": "2.13.0"},
        "machine": "a machine",
        "commit": "abc1234",
        "inputs_sha256": {"train": SHA["train"]},
        "starts_from": None,
        "command": "python -m c2f train",
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | changes))
    (folder / "metrics.json").write_text(
        json.dumps({"users": 30 if means else 0, "means": means, "test_sha256": SHA["test"]})
    )
    return folder


def collected(
    folder: Path, *runs: Path, spec: dict | None = None, methods: list | None = None, inference: Path | None = None
) -> Path:
    """Collect runs on the dataset `toy` below `folder`; return the runs table."""
    (folder / "toy").mkdir(exist_ok=True)
    stats = {"name": "toy", "sha256": SHA, "num_users": 30, "num_items": 20, "mask_at_test": ["train"]}
    (folder / "toy" / "stats.json").write_text(json.dumps(stats))
    collect(list(runs), folder / "toy", spec or {"files": {}}, folder / "runs.parquet", methods, inference)
    return folder / "runs.parquet"


def test_collect_writes_one_row_per_run_with_sizes_costs_and_metrics(tmp_path):
    folder = write_run(tmp_path / "run", {"recall@20": 0.5, "ndcg@20": 0.25})
    (row,) = pd.read_parquet(collected(tmp_path, folder)).to_dict("records")
    assert (row["budget_kind"], row["budget_amount"], row["seed"]) == ("bytes", 2000, 7)
    assert (row["numbers"], row["stored_bytes"], row["serving_bytes"]) == (96, 400, 900)
    assert row["epochs"] == 5 + 10
    assert row["seconds_per_epoch"] == 0.25  # of the last stage
    assert (row["users"], row["recall@20"], row["ndcg@20"]) == (30, 0.5, 0.25)


def test_collect_keeps_a_run_without_a_result_as_a_row_with_its_reason(tmp_path):
    good = write_run(tmp_path / "good", {"recall@20": 0.5})
    bad = write_run(tmp_path / "bad", {}, status="infeasible", reason="too small", footprint=None, stages=[])
    row = pd.read_parquet(collected(tmp_path, good, bad)).iloc[1]
    assert (row.status, row.reason) == ("infeasible", "too small")
    assert pd.isna(row.numbers) and pd.isna(row["recall@20"])


def test_collect_names_the_record_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/run\.json is missing"):
        collected(tmp_path, tmp_path / "nowhere")
    assert not (tmp_path / "runs.parquet").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", "{}", "run.json has no 'dataset', so it is of another kind or version; run `python -m c2f train`"),
        ("run.json", "[1]", "run.json has no 'dataset'"),
        ("run.json", '{"dataset": ', "run.json is not valid JSON"),
        (
            "metrics.json",
            '{"users": 3, "means": {}, "test_sha256": "0"}',
            "metrics.json was made with other test pairs than toy has here; run `python -m c2f evaluate` again",
        ),
        ("metrics.json", '{"users": 3}', "metrics.json has no 'means', so it is of another kind or version; run"),
    ],
)
def test_collect_names_what_is_damaged_or_of_another_kind(tmp_path, file, content, message):
    folder = write_run(tmp_path / "run", {"recall@20": 0.5})
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(message)):
        collected(tmp_path, folder)
    assert not (tmp_path / "runs.parquet").exists()


def test_what_is_read_of_a_table_is_written_into_it(tmp_path):
    """A column that collect no longer wrote would have every table refused as another one."""
    runs = collected(tmp_path, write_run(tmp_path / "run", {"recall@20": 0.5, "ndcg@20": 0.2}))
    write_table([runs], tmp_path / "main")
    write_report([tmp_path / "main.csv"], [], [runs], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "is missing"), (b"PAR1 but no more", "cannot be read"), (b"", "cannot be read")],
)
@pytest.mark.parametrize("file", ["runs-toy.parquet", "main.csv", "comparison.png", "comparison.txt"])
def test_a_report_names_the_file_that_is_missing_or_damaged(tmp_path, file, content, problem):
    runs = saved(tmp_path, run_row())
    write_table([runs], tmp_path / "main")
    (tmp_path / "comparison.png").write_bytes(b"\x89PNG made up")
    (tmp_path / "comparison.txt").write_text("Recall and NDCG.\n")
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(b"\xff\xfe" + content if file == "comparison.txt" else content)
    if file == "main.csv" and content:
        problem = "has no 'dataset'"
    with pytest.raises(DataError, match=rf"{re.escape(file)} {problem}.*python -m c2f \w+`"):
        write_report([tmp_path / "main.csv"], [tmp_path / "comparison.png"], [runs], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_parquet_file_that_is_no_runs_table_is_named(tmp_path):
    pd.DataFrame({"user": [0], "recall@20": [0.5]}).to_parquet(tmp_path / "per_user.parquet")
    with pytest.raises(DataError, match=r"per_user\.parquet has no 'dataset', .*; run `python -m c2f collect` again"):
        read_runs([tmp_path / "per_user.parquet"])


def test_collect_refuses_a_run_on_other_pairs(tmp_path):
    folder = write_run(tmp_path / "run", {"recall@20": 0.5}, inputs_sha256={"train": "0" * 64})
    with pytest.raises(DataError, match="was trained on toy with other training pairs than toy has here"):
        collected(tmp_path, folder)


def test_the_seconds_of_every_run_that_a_run_starts_from_are_added(tmp_path):
    search = write_run(tmp_path / "search", {}, method="search", seconds=100.0)
    coarse = write_run(tmp_path / "coarse", {}, method="coarse", seconds=20.0, starts_from=str(search))
    fine = write_run(tmp_path / "fine", {"recall@20": 0.5}, method="fine", seconds=3.0, starts_from=str(coarse))
    table = pd.read_parquet(collected(tmp_path, fine)).set_index("method")
    assert table.seconds.to_dict() == {"fine": 3, "coarse": 20, "search": 100}
    assert table.seconds_with_starts.to_dict() == {"fine": 3 + 20 + 100, "coarse": 20 + 100, "search": 100}


def test_runs_that_are_only_started_from_or_drawn_are_told_from_those_compared(tmp_path):
    coarse = write_run(tmp_path / "coarse", {"recall@20": 0.4}, method="coarse")
    fine = write_run(tmp_path / "fine", {"recall@20": 0.5}, method="fine", starts_from=str(coarse))
    drawn = write_run(tmp_path / "drawn", {"recall@20": 0.6}, method="drawn")
    path = collected(tmp_path, fine, drawn, methods=["fine"])
    assert read_runs([path])[["method", "role"]].to_numpy().tolist() == [["fine", "compared"], ["drawn", "figure"]]
    assert list(read_runs([path], starts=True).method) == ["coarse"]
    both = collected(tmp_path, coarse, fine)
    assert list(read_runs([both]).role) == ["compared", "compared"]  # asked for itself: no row beside that
    assert read_runs([both], starts=True).empty


@pytest.mark.parametrize(("spec", "made_up"), [({"generate": {}}, True), ({"files": {}}, False)])
def test_made_up_data_is_marked_as_such_and_the_test_pairs_checksum_is_kept(tmp_path, spec, made_up):
    (row,) = pd.read_parquet(collected(tmp_path, write_run(tmp_path / "run", {}), spec=spec)).to_dict("records")
    assert row["made_up"] == made_up
    assert json.loads(row["data_sha256"]) == SHA


def test_summary_is_the_mean_and_standard_deviation_over_the_runs_with_a_result():
    rows = [
        run_row(seed=1, **{"recall@20": 0.4}),
        run_row(seed=2, **{"recall@20": 0.6}),
        hole("legcf", "numbers-100", "diverged", "loss is not finite", seed=3),
    ]
    summary = summarise(runs_table(*rows), ["recall@20"]).iloc[0]
    assert summary["mean"] == pytest.approx((0.4 + 0.6) / 2)
    assert summary.sd == pytest.approx((((0.4 - 0.5) ** 2 + (0.6 - 0.5) ** 2) / (2 - 1)) ** 0.5)
    assert (summary.results, summary.runs, summary.status) == (2, 3, "2 ok, 1 diverged")
    assert summary.reason == "loss is not finite"


def test_main_table_goes_from_small_to_large_budgets_and_ends_with_full():
    budgets = ["full", "bytes-500", "numbers-200", "numbers-100", "bytes-2000"]
    table = main_table(runs_table(*(run_row(budget=budget) for budget in budgets)))
    assert list(table.budget) == ["numbers-100", "numbers-200", "bytes-500", "bytes-2000", "full"]


def parts(text: str) -> dict[str, str]:
    """The text of main.md below each of its headings."""
    return dict(re.findall(r"^#+ (.+)\n\n((?:(?!^#).*\n)*)", text, re.MULTILINE))


def test_each_budget_has_a_part_with_its_methods_from_best_to_worst_and_holes_last(tmp_path):
    rows = [
        hole("short-vectors", "numbers-100"),
        run_row("legcf", **{"ndcg@20": 0.2}),
        run_row("c2f", **{"ndcg@20": 0.3}),
        run_row("c2f", "numbers-200"),
    ]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    found = parts((tmp_path / "main.md").read_text())
    methods = {budget: re.findall(r"^\| (\S+) \| \d of", found[budget], re.MULTILINE) for budget in list(found)[3:5]}
    assert methods == {"numbers-100": ["c2f", "legcf", "short-vectors"], "numbers-200": ["c2f"]}


def test_methods_by_budgets_come_first_in_the_order_of_the_grid_with_what_happened_in_holes(tmp_path):
    rows = [hole("short-vectors", "numbers-100"), run_row("short-vectors", "numbers-200"), run_row("c2f")]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    found = parts((tmp_path / "main.md").read_text())
    assert list(found)[:4] == ["toy (protocol given)", "Recall@20 by budget", "NDCG@20 by budget", "numbers-100"]
    assert found["NDCG@20 by budget"].splitlines() == [
        "| method | numbers-100 | numbers-200 |",
        "| --- | ---: | ---: |",
        "| short-vectors | infeasible | 0.2500 |",
        "| c2f | 0.2500 |  |",
        "",
    ]


def test_runs_for_figures_alone_are_no_rivals(tmp_path):
    rows = [
        run_row("legcf", "full", **{"recall@20": 0.5}),
        run_row("c2f-100+20", "full", role="figure", **{"recall@20": 0.9}),
    ]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    found = parts((tmp_path / "main.md").read_text())
    assert "c2f-100+20" not in found["full"]
    assert "| c2f-100+20 | full |" in found["Runs for the figures alone"]


def test_a_run_for_figures_alone_is_bold_in_no_table_of_those_compared(tmp_path):
    rows = [
        run_row("legcf", **{"recall@20": 0.5, "ndcg@20": 0.2}),
        run_row("hashing", **{"recall@20": 0.4, "ndcg@20": 0.1}),
        run_row("c2f", role="figure", **{"recall@20": 0.9, "ndcg@20": 0.8}),
        run_row("legcf", "numbers-200"),
    ]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    found = parts((tmp_path / "main.md").read_text())
    assert "| legcf | **0.5000** |" in found["Recall@20 by budget"]
    assert set(re.findall(r"\*\*(.+?)\*\*", found["numbers-100"])) == {"0.5000", "0.2000"}
    assert "**" not in found["Runs for the figures alone"]
    assert set(re.findall(r"\\textbf\{(.+?)\}", (tmp_path / "main.tex").read_text())) == {"0.5000", "0.2000"}


def test_the_table_says_what_made_it_what_its_columns_mean_and_which_data_it_was(tmp_path):
    path = saved(tmp_path, run_row(made_up=True))
    write_table([path], tmp_path / "main", made_by="snakemake --cores 2 all --configfile config/smoke.yaml")
    text = (tmp_path / "main.md").read_text()
    assert text.startswith("Made by `snakemake --cores 2 all --configfile config/smoke.yaml`.\n")
    assert "Nothing is to be concluded from made-up data." in text and "## toy (made up, protocol given)" in text
    for name, meaning in COLUMNS.items():
        assert f"* {name}: {meaning}" in parts(text)["Columns"]
    for pairs, checksum in SHA.items():
        assert f"| toy | {pairs} | {checksum} |" in parts(text)["Data"]
    assert r"toy (made up), numbers-100" in (tmp_path / "main.tex").read_text()


def test_every_column_that_is_printed_is_explained(tmp_path):
    write_table([saved(tmp_path, run_row())], tmp_path / "main")
    header = re.search(r"^\| method \| runs .*", (tmp_path / "main.md").read_text(), re.MULTILINE).group()
    explained = " ".join(COLUMNS)
    for title in header.strip("| ").split(" | ")[1:]:
        assert re.sub(r" \(.*\)|@20", "", title) in explained


def test_a_column_of_sizes_has_one_unit():
    assert in_one_unit(pd.Series([51_200, 9_870_000, np.nan])) == ("kB", ["51.2", "9,870.0", "-"])
    assert in_one_unit(pd.Series([102_400, 36_269_568])) == ("kB", ["102", "36,270"])
    assert in_one_unit(pd.Series([495e6, 1.2e9])) == ("MB", ["495", "1,200"])
    assert in_one_unit(pd.Series([69, 160])) == ("kB", ["0.069", "0.160"])
    assert in_one_unit(pd.Series([np.nan])) == ("kB", ["-"])


def test_only_the_best_of_each_budget_is_bold(tmp_path):
    rows = [
        run_row("legcf", **{"recall@20": 0.5, "ndcg@20": 0.2}),
        run_row("c2f", **{"recall@20": 0.6, "ndcg@20": 0.1}),
        run_row("alone", "numbers-200", **{"recall@20": 0.9}),
        hole("short-vectors", "numbers-100"),
    ]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    text = (tmp_path / "main.md").read_text()
    assert set(re.findall(r"\*\*(.+?)\*\*", text)) == {"0.6000", "0.2000"}
    assert "0.9000" in text  # without a contest
    assert set(re.findall(r"\\textbf\{(.+?)\}", (tmp_path / "main.tex").read_text())) == {"0.6000", "0.2000"}


def test_a_hole_stands_in_the_table_with_status_and_reason(tmp_path):
    write_table([saved(tmp_path, run_row(), hole("short-vectors", "numbers-100"))], tmp_path / "main")
    text = (tmp_path / "main.md").read_text()
    assert "| short-vectors | 0 of 1 | infeasible | - |" in parts(text)["numbers-100"]
    assert "* toy, short-vectors, numbers-100: infeasible: budget is below the 280 that it needs" in text
    table = pd.read_csv(tmp_path / "main.csv")
    assert table.reason[table.method == "short-vectors"].item() == "budget is below the 280 that it needs"


def test_holes_for_one_reason_stand_together(tmp_path):
    rows = [
        hole("short-vectors", budget, reason=f"budget {budget} is below the 280 numbers that this method needs here")
        for budget in ("numbers-100", "numbers-200")
    ]
    write_table([saved(tmp_path, *rows, hole("short-vectors", "bytes-900"))], tmp_path / "main")
    assert parts((tmp_path / "main.md").read_text())["Holes"].splitlines() == [
        "* toy, short-vectors, numbers-100, numbers-200: infeasible: "
        "budget numbers-100 is below the 280 numbers that this method needs here",
        "* toy, short-vectors, bytes-900: infeasible: budget is below the 280 that it needs",
        "",
    ]


def test_csv_has_the_unrounded_means(tmp_path):
    rows = [run_row(seed=1, **{"recall@20": 0.1}), run_row(seed=2, **{"recall@20": 0.2}), run_row(seed=3)]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    assert pd.read_csv(tmp_path / "main.csv")["recall@20"].item() == pytest.approx((0.1 + 0.2 + 0.5) / 3, abs=1e-15)


def test_latex_escapes_names_and_is_balanced(tmp_path):
    write_table([saved(tmp_path, run_row("c2f_100%"))], tmp_path / "main")
    text = (tmp_path / "main.tex").read_text()
    assert r"c2f\_100\%" in text
    columns = len(re.search(r"\\begin\{longtable\}\{(\w+)\}", text).group(1))
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert rows and all(line.count("&") == columns - 1 for line in rows)


def test_sizes_are_printed_with_decimal_units():
    assert size_in_words(25_600, "numbers") == "25.6k"
    assert size_in_words(9_067_392, "numbers") == "9.07M"
    assert size_in_words(500_000, "bytes") == "0.5 MB"
    assert size_in_words(32_000, "bytes") == "32 kB"
    assert size_in_words(float("nan"), "bytes") == "-"


def test_report_is_one_file_with_results_figures_holes_and_provenance(tmp_path):
    runs = saved(tmp_path, run_row(), hole("short-vectors", "numbers-100", reason="needs <280> numbers"))
    write_table([runs], tmp_path / "main")
    (tmp_path / "comparison.png").write_bytes(b"\x89PNG made up")
    (tmp_path / "comparison.txt").write_text("Recall <and> NDCG against the budget.\n")
    made_by = "snakemake --cores 2 all --configfile config/small.yaml"
    write_report([tmp_path / "main.csv"], [tmp_path / "comparison.png"], [runs], tmp_path / "report.html", made_by)
    page = (tmp_path / "report.html").read_text()
    assert f"<dt>made by</dt><dd>{made_by}</dd>" in page
    assert "<figcaption>Recall &lt;and&gt; NDCG against the budget. The numbers drawn are in comparison.csv" in page
    assert "data:image/png;base64," in page and "prefers-color-scheme: dark" in page
    assert "needs &lt;280&gt; numbers" in page and "<280>" not in page
    for evidence in (
        "abc1234",
        *SHA.values(),
        "torch 2.13.0",
        "a machine, 2 cores",
        "python -m c2f train --method legcf.json",
    ):
        assert evidence in page
    own = page[: page.index('<script type="application/json"')]
    assert not re.search(r'(src|href)="(?!data:|#)', own)  # nothing is loaded from elsewhere


def test_report_without_figures_and_holes_says_so(tmp_path):
    runs = saved(tmp_path, run_row())
    write_table([runs], tmp_path / "main")
    write_report([tmp_path / "main.csv"], [], [runs], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "None asked for." in page and "None: every run ended well." in page


def test_the_report_says_which_data_is_made_up_and_lists_runs_that_others_start_from(tmp_path):
    start = run_row("c2f-coarse", role="start", made_up=True, seconds=118.0, **{"recall@20": np.nan, "ndcg@20": np.nan})
    runs = saved(tmp_path, run_row("c2f", made_up=True, seconds=2.0, seconds_with_starts=120.0), start)
    write_table([runs], tmp_path / "main")
    write_report([tmp_path / "main.csv"], [], [runs], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "toy (made up, protocol given); nothing is to be concluded from made-up data" in page
    assert "<h3>toy (made up, protocol given)</h3>" in page
    starts = page[page.index("Runs that others start from") :]
    assert '<th scope="row">c2f-coarse</th><td>numbers-100</td><td>ok</td>' in starts and "118.0" in starts
    assert "2.0 minutes of training in all" in page  # (2 + 118) / 60


def test_a_picture_without_its_caption_is_named(tmp_path):
    runs = saved(tmp_path, run_row())
    write_table([runs], tmp_path / "main")
    (tmp_path / "comparison.png").write_bytes(b"\x89PNG made up")
    with pytest.raises(DataError, match=r"comparison\.txt is missing"):
        write_report([tmp_path / "main.csv"], [tmp_path / "comparison.png"], [runs], tmp_path / "report.html")


def test_a_long_table_can_be_folded(tmp_path):
    """25 methods at 4 budgets: the metrics by budget stand open, each budget's table is opened on demand."""
    rows = [run_row(f"m{place}", f"numbers-{budget}") for place in range(25) for budget in (100, 200, 300, 400)]
    runs = saved(tmp_path, *rows)
    write_table([runs], tmp_path / "main")
    write_report([tmp_path / "main.csv"], [], [runs], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<details open><summary>NDCG@20 by budget</summary>" in page
    assert "<details><summary>numbers-300</summary>" in page


# The memory table ------------------------------------------------------------


def test_collect_adds_what_serving_costs_and_says_why_a_run_was_not_served(tmp_path):
    served, other = (write_run(tmp_path / name, {"recall@20": 0.5}) for name in ("one", "two"))
    header = f"run,status,reason,{','.join(COSTS)},num_users,memory_limit,machine"
    rows = [f"{served},ok,,1000,0.5,2000,0.1,0.2,300,20,64,m", f"{other},oom,more than 64 bytes,,,,,,,20,64,m"]
    (tmp_path / "inference.csv").write_text("\n".join([header, *rows]) + "\n")
    table = pd.read_parquet(collected(tmp_path, served, other, inference=tmp_path / "inference.csv"))
    one, two = table.itertuples()
    assert (one.served, one.file_bytes, one.latency_p95_ms, one.users_per_second) == ("ok", 1000, 0.2, 300)
    assert two.served == "oom: more than 64 bytes"
    assert pd.isna(two.file_bytes)
    assert json.loads(one.parts) == {"codebook": 384, "indices": 16}


def test_the_memory_table_says_what_was_asked_for_used_and_stored_and_why_not_more(tmp_path):
    rows = [
        run_row("legcf", "numbers-100", seed=1, numbers=96.0, leftover="one more code takes 8 numbers more"),
        run_row("legcf", "numbers-100", seed=2, numbers=90.0, parts=json.dumps({"codebook": 100})),
        run_row("svd", "bytes-1000"),
        run_row("lightgcn", "full"),
        hole("pq", "bytes-1000"),
    ]
    table = memory_table(runs_table(*rows)).set_index("method")
    assert table.index.tolist() == ["legcf", "svd", "lightgcn"]  # nothing was stored of the last
    legcf = table.loc["legcf"]
    assert (legcf.requested, legcf.achieved, legcf.share) == (100, 96, 0.96)  # the larger of both seeds
    assert (legcf.codebook, legcf.indices, legcf.masks) == ((300 + 100) / 2, (100 + 0) / 2, 0)
    assert legcf.leftover == "one more code takes 8 numbers more"
    assert table.loc["svd", "share"] == 400 / 1000
    assert np.isnan(table.loc["lightgcn", "requested"])
    write_memory([saved(tmp_path, *rows)], tmp_path / "memory", "snakemake all")
    text = (tmp_path / "memory.md").read_text()
    assert "Made by `snakemake all`." in text
    assert "| legcf | numbers-100 | 100 | 96 | 96.0% | one more code takes 8 numbers more |" in text
    assert "| svd | bytes-1000 | 1,000 | 400 | 40.0% |" in text
    assert "## toy: where the stored bytes are (kB)" in text
    assert "0.100 | 0.200 | 5,000 | ok |" in text
    assert len(pd.read_csv(tmp_path / "memory.csv")) == 3


def test_the_memory_table_of_nothing_is_empty(tmp_path):
    write_memory([saved(tmp_path, hole("pq", "numbers-100"))], tmp_path / "memory")
    assert (tmp_path / "memory.md").read_text() == ""
