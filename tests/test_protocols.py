"""The protocol table: a planted change of places has the right tau and names, and noise is not taken for one."""

import numpy as np
import pandas as pd
import pytest
from test_compare import placed, unsplit
from test_page import report
from test_report import hole, run_row, runs_table
from test_report import saved as saved_runs

from c2f.__main__ import main
from c2f.errors import DataError
from c2f.protocols import order_table, protocol_table, sentences, write_protocol_effect

GIVEN = {"legcf": 0.4, "pq": 0.3, "hashing": 0.2}
LEGCF = {"legcf": 0.2, "hashing": 0.15, "pq": 0.1}


def runs_of(recipe: str, recalls: dict, *, step=0.001, capped=None, full=0.5, k_core=0, dataset=None) -> list[dict]:
    """Two seeds of every method, `step` apart around its mean, and the full table; ndcg is half of recall."""
    name = dataset or {"given": "toy"}.get(recipe, f"toy-{recipe}")
    rows = []
    for method, mean in {**recalls, "lightgcn": full}.items():
        for seed in (1, 2):
            recall = mean + step * (seed - 1.5)
            budget = "full" if method == "lightgcn" else "bytes-1000"
            values = {"recall@20": recall, "ndcg@20": recall / 2}
            row = placed(
                run_row(method, budget, seed, dataset=name, protocol=recipe, **values), "no", unsplit(recipe, k_core)
            )
            rows.append(row | {"recall_capped@20": recall + (capped or {}).get(method, 0.0)})
    return rows


def planted(**changes) -> list[dict]:
    """legcf, pq, hashing under `given`; legcf, hashing, pq under `legcf`."""
    return [*runs_of("given", GIVEN, **changes), *runs_of("legcf", LEGCF, full=0.25, **changes)]


def effect(*rows: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = runs_table(*rows)
    table = protocol_table(runs, "lightgcn")
    return table, order_table(runs, table)


def written(folder, *rows: dict) -> str:
    write_protocol_effect([saved_runs(folder, *rows)], folder / "protocol_effect", "lightgcn", "snakemake all")
    return (folder / "protocol_effect.md").read_text()


def test_the_planted_change_of_places_has_its_tau_and_its_names():
    """Of three pairs one turns round: tau = (2 - 1) / 3."""
    _, orders = effect(*planted())
    row = orders[orders.first_metric == "ndcg@20"].iloc[0]
    assert (row["data"], row.budget, row["first"], row.second) == ("toy", "bytes-1000", "toy", "toy-legcf")
    assert (row.methods, row.pairs, row.changed, row.changed_pairs) == (3, 3, 1, "pq/hashing")
    assert row.tau == pytest.approx(1 / 3)


def test_a_change_of_places_is_told_apart_only_where_seeds_agree_on_both_sides():
    """Means 0.05 apart or more; Student's interval of two seeds is 12.7 standard errors wide on each side.

    Seeds shift all methods alike, or (below) against one another by 0.02: 12.7 * 0.01 is more than 0.05.
    """
    _, orders = effect(*planted())
    assert set(orders.apart_pairs[orders.changed > 0]) == {"pq/hashing"}
    noisy = [
        row
        | {metric: row[metric] + 0.02 * (row["seed"] - 1.5) for metric in ("recall@20", "ndcg@20", "recall_capped@20")}
        if (row["method"], row["protocol"]) == ("pq", "legcf")
        else row
        for row in planted()
    ]
    _, orders = effect(*noisy)
    assert (orders.changed.sum(), orders.apart.sum()) == (3, 0)


def test_rank_and_kept_share_are_those_of_the_same_protocol():
    table, _ = effect(*planted())
    rows = table[table.metric == "recall@20"].set_index(["dataset", "method"])
    assert rows.loc["toy", "rank"].dropna().to_dict() == {"legcf": 1, "pq": 2, "hashing": 3}
    assert rows.loc["toy-legcf", "rank"].dropna().to_dict() == {"legcf": 1, "hashing": 2, "pq": 3}
    assert rows.kept["toy", "pq"] == pytest.approx(0.3 / 0.5) and rows.kept["toy-legcf", "pq"] == pytest.approx(
        0.1 / 0.25
    )
    assert rows.kept["toy", "lightgcn"] == 1 and np.isnan(rows["rank"]["toy", "lightgcn"])
    assert rows.sd["toy", "pq"] == pytest.approx(0.001 / np.sqrt(2))


def test_the_two_kinds_of_recall_are_compared_under_one_protocol():
    """Capped recall lifts hashing under `given` from 0.2 to 0.35, above pq: one of three pairs."""
    rows = [*runs_of("given", GIVEN, capped={"hashing": 0.15}), *runs_of("legcf", LEGCF)]
    _, orders = effect(*rows)
    recalls = orders[orders.first_metric != orders.second_metric].set_index("first")
    assert recalls.changed_pairs["toy"] == "pq/hashing" and recalls.changed_pairs["toy-legcf"] == ""
    assert recalls.tau.round(3).to_dict() == {"toy": 0.333, "toy-legcf": 1.0}


def test_words_are_made_from_the_numbers():
    """Factors 0.4 / 0.2, 0.3 / 0.1 and 0.2 / 0.15; kept 80, 60, 40 % against 80, 40, 60 %."""
    [(label, words)] = sentences(*effect(*planted()))
    assert label == "toy, bytes-1000"
    assert "A method has, under its highest protocol, 1.33 to 3.00 times the Recall@20" in words
    assert "differs by percentage points: 0.0 to 20.0 in Recall@20" in words
    assert "in 1 of 3 cases (1 told apart from noise) by Recall@20 and 1 of 3" in words
    assert words.endswith("Both kinds of recall are the same here: no user with a hit has more than 20 held-out items.")
    [(_, words)] = sentences(*effect(*planted(capped={"pq": 0.01})))
    assert words.endswith("Between the two kinds of recall under one protocol they do so in 0 of 6 cases.")


def test_the_page_sets_protocols_side_by_side_and_names_data_seeds_and_commit(tmp_path):
    text = written(tmp_path, *planted())
    assert "Made by `snakemake all`." in text and "Levels under different protocols are not comparable" in text
    assert "## toy under given (toy) and legcf (toy-legcf)" in text
    section = text[text.index("### bytes-1000, Recall@20") :]
    assert section.splitlines()[2:7] == [
        "| method | given | given: rank | given: kept | legcf | legcf: rank | legcf: kept |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| legcf | 0.4000 ± 0.0007 | 1 | 80.0% | 0.2000 ± 0.0007 | 1 | 80.0% |",
        "| pq | 0.3000 ± 0.0007 | 2 | 60.0% | 0.1000 ± 0.0007 | 3 | 40.0% |",
        "| hashing | 0.2000 ± 0.0007 | 3 | 40.0% | 0.1500 ± 0.0007 | 2 | 60.0% |",
    ]
    assert "| lightgcn (full) | 0.5000 ± 0.0007 | - | 100.0% |" in section
    assert "| given, Recall@20 | legcf, Recall@20 | 0.33 | 1 of 3 | 1 | **pq/hashing** |" in text
    assert "toy (protocol given), toy-legcf (protocol legcf). Seeds: 1, 2. Trained at commit: abc1234." in text
    assert "capped Recall@20 |" not in text  # the same numbers
    assert "### bytes-1000, capped Recall@20" in written(tmp_path, *planted(capped={"pq": 0.01}))
    assert len(pd.read_csv(tmp_path / "protocol_effect.csv")) == 2 * 4 * 3
    assert len(pd.read_csv(tmp_path / "protocol_effect-orders.csv")) == 3 + 2


def test_a_method_without_a_result_is_named_with_its_status_and_left_out_of_the_order(tmp_path):
    missing = hole("cerp", "bytes-1000", dataset="toy-legcf", protocol="legcf")
    missing = placed(missing, "no", unsplit("legcf")) | {"recall_capped@20": np.nan}
    rows = [*runs_of("given", {**GIVEN, "cerp": 0.1}), *runs_of("legcf", LEGCF), missing]
    _, orders = effect(*rows)
    assert set(orders.methods[orders.second == "toy-legcf"]) == {3}
    assert "| cerp | 0.1000 ± 0.0007 | 4 | 20.0% | infeasible | - | - |" in written(tmp_path, *rows)


def test_a_second_split_by_one_recipe_has_the_dataset_s_name_and_is_no_other_protocol(tmp_path):
    rows = [*planted(), *runs_of("legcf", LEGCF, dataset="toy-again")]
    _, orders = effect(*rows)
    across = orders[orders.first_metric == orders.second_metric]
    assert set(zip(across["first"], across.second, strict=True)) == {("toy", "toy-legcf"), ("toy", "toy-again")}
    assert "| method | given | given: rank | given: kept | toy-legcf | toy-legcf: rank" in written(tmp_path, *rows)


def test_other_data_are_not_set_side_by_side(tmp_path):
    core = [*runs_of("given", GIVEN), *runs_of("legcf", LEGCF, k_core=5)]
    assert effect(*core)[0].empty
    with pytest.raises(DataError, match="no data was run under more than one protocol; add an entry such as"):
        written(tmp_path, *core)
    table, _ = effect(*planted(), *runs_of("holdout", LEGCF, k_core=5))
    assert set(table.dataset) == {"toy", "toy-legcf"}


def test_methods_without_a_budget_alone_have_levels_and_no_order(tmp_path):
    rows = [row for row in planted() if row["budget"] == "full"]
    assert effect(*rows)[1].empty
    assert "| lightgcn | 0.5000 ± 0.0007 | - | 100.0% | 0.2500 ± 0.0007 | - | 100.0% |" in written(tmp_path, *rows)


def test_the_step_reads_runs_tables_and_says_what_is_wrong_with_one(tmp_path, capsys):
    words = ["--output", str(tmp_path / "effect"), "--full", "lightgcn"]
    assert main(["protocol_effect", "--runs", str(saved_runs(tmp_path, *planted())), *words]) == 0
    assert (tmp_path / "effect.md").is_file() and (tmp_path / "effect-orders.csv").is_file()
    assert main(["protocol_effect", "--runs", str(tmp_path / "none.parquet"), *words]) == 2
    assert "none.parquet is missing; run the step that writes it" in capsys.readouterr().err


def test_the_report_shows_the_table_where_there_is_one(tmp_path):
    written(tmp_path, *planted())
    page = report(tmp_path, *planted(), protocols=[tmp_path / "protocol_effect.csv"]).read_text()
    assert '<h2 id="protocols">Protocols</h2>' in page and "<b>pq/hashing</b>" in page
    assert "<li><b>toy, bytes-1000.</b> A method" in page
    assert 'id="protocols"' not in report(tmp_path, *planted()).read_text()
