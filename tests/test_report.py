"""The runs table, the main table and the report: what is in them comes from the runs, and holes are named."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from c2f.errors import DataError
from c2f.report import collect, main_table, size_in_words, summarise, write_report, write_table

SHA = "a" * 64


def run_row(method="legcf", budget="numbers-100", seed=1, **changes) -> dict:
    """One row of a runs table; recall@20 and ndcg@20 as given, the rest plausible."""
    kind, _, amount = budget.partition("-")
    row = {
        "dataset": "toy",
        "protocol": "given",
        "method": method,
        "budget": budget,
        "budget_kind": kind,
        "budget_amount": float(amount or "inf"),
        "seed": seed,
        "status": "ok",
        "reason": None,
        "numbers": 96.0,
        "stored_bytes": 400.0,
        "serving_bytes": 900.0,
        "epochs": 10,
        "seconds": 2.0,
        "seconds_per_epoch": 0.2,
        "peak_rss_bytes": 300_000_000,
        "device": "cpu",
        "threads": 2,
        "machine": "a machine, 2 cores",
        "commit": "abc1234",
        "starts_from": None,
        "command": f"python -m c2f train --method {method}.json --budget {budget} --seed {seed}",
        "versions": json.dumps({"python": "3.11.7", "torch": "2.13.0"}),
        "inputs_sha256": json.dumps({"train": SHA, "valid": "b" * 64, "method": "c" * 64}),
        "users": 30,
        "recall@20": 0.5,
        "ndcg@20": 0.25,
    }
    assert set(changes) <= set(row), changes
    return row | changes


def hole(
    method: str, budget: str, status="infeasible", reason="budget is below the 280 that it needs", **changes
) -> dict:
    """A row of a run without a result."""
    nothing = dict.fromkeys(("numbers", "stored_bytes", "serving_bytes", "recall@20", "ndcg@20"), np.nan)
    return run_row(method, budget, **{"status": status, "reason": reason, **nothing, **changes})


def runs_table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"reason": "string", "starts_from": "string"})


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
        "footprint": {"parts": {}, "numbers": 96, "stored": 400, "serving": 900},
        "stages": [{"epochs": 5, "seconds_per_epoch": 0.5}, {"epochs": 10, "seconds_per_epoch": 0.25}],
        "seconds": 6.5,
        "peak_rss_bytes": 1000,
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": "2.13.0"},
        "machine": "a machine",
        "commit": "abc1234",
        "inputs_sha256": {"train": SHA},
        "starts_from": None,
        "command": "python -m c2f train",
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record | changes))
    (folder / "metrics.json").write_text(json.dumps({"users": 30 if means else 0, "means": means}))
    return folder


def test_collect_writes_one_row_per_run_with_sizes_costs_and_metrics(tmp_path):
    folder = write_run(tmp_path / "run", {"recall@20": 0.5, "ndcg@20": 0.25})
    collect([folder], tmp_path / "runs.parquet")
    (row,) = pd.read_parquet(tmp_path / "runs.parquet").to_dict("records")
    assert (row["budget_kind"], row["budget_amount"], row["seed"]) == ("bytes", 2000, 7)
    assert (row["numbers"], row["stored_bytes"], row["serving_bytes"]) == (96, 400, 900)
    assert row["epochs"] == 5 + 10
    assert row["seconds_per_epoch"] == 0.25  # of the last stage
    assert (row["users"], row["recall@20"], row["ndcg@20"]) == (30, 0.5, 0.25)


def test_collect_keeps_a_run_without_a_result_as_a_row_with_its_reason(tmp_path):
    good = write_run(tmp_path / "good", {"recall@20": 0.5})
    bad = write_run(tmp_path / "bad", {}, status="infeasible", reason="too small", footprint=None, stages=[])
    collect([good, bad], tmp_path / "runs.parquet")
    row = pd.read_parquet(tmp_path / "runs.parquet").iloc[1]
    assert (row.status, row.reason) == ("infeasible", "too small")
    assert pd.isna(row.numbers) and pd.isna(row["recall@20"])


def test_collect_names_the_record_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/run\.json is missing"):
        collect([tmp_path / "nowhere"], tmp_path / "runs.parquet")
    assert not (tmp_path / "runs.parquet").exists()


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
    assert "| toy | numbers-100 | short-vectors | 0 of 1 | infeasible | - |" in text
    assert "* toy, numbers-100, short-vectors: infeasible: budget is below the 280 that it needs" in text
    table = pd.read_csv(tmp_path / "main.csv")
    assert table.reason[table.method == "short-vectors"].item() == "budget is below the 280 that it needs"


def test_csv_has_the_unrounded_means(tmp_path):
    rows = [run_row(seed=1, **{"recall@20": 0.1}), run_row(seed=2, **{"recall@20": 0.2}), run_row(seed=3)]
    write_table([saved(tmp_path, *rows)], tmp_path / "main")
    assert pd.read_csv(tmp_path / "main.csv")["recall@20"].item() == pytest.approx((0.1 + 0.2 + 0.5) / 3, abs=1e-15)


def test_latex_escapes_names_and_is_balanced(tmp_path):
    write_table([saved(tmp_path, run_row("c2f_100%"))], tmp_path / "main")
    text = (tmp_path / "main.tex").read_text()
    assert r"c2f\_100\%" in text
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1))
    assert all(line.count("&") == columns - 1 for line in text.splitlines() if line.endswith(r"\\"))


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
    write_report([tmp_path / "main.csv"], [tmp_path / "comparison.png"], [runs], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "prefers-color-scheme: dark" in page
    assert "needs &lt;280&gt; numbers" in page and "<280>" not in page
    for evidence in ("abc1234", SHA, "torch 2.13.0", "a machine, 2 cores", "python -m c2f train --method legcf.json"):
        assert evidence in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere


def test_report_without_figures_and_holes_says_so(tmp_path):
    runs = saved(tmp_path, run_row())
    write_table([runs], tmp_path / "main")
    write_report([tmp_path / "main.csv"], [], [runs], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "None asked for." in page and "None: every run ended well." in page
