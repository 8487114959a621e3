"""The compare table: the winner is bold, what noise may have made is underlined, a plain table is always a rival."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import hole, run_row, runs_table, write_run

from c2f import compare
from c2f.compare import compare_table, variance_table, write_compare
from c2f.errors import DataError
from c2f.report import collect
from c2f.stats import holm

USERS = 300
PUBLISHED = '{"source": {"train.txt": "abc"}}'


def evaluated(folder: Path, method: str, seed: int, lift: float, *, shift=0.0, budget="bytes-1000", **changes) -> dict:
    """A run's row, and its per_user.parquet: what users share, the lift of the method, the shift of the run, noise."""
    place = folder / "runs" / changes.get("dataset", "toy") / method / budget / str(seed)
    noise = np.random.default_rng([seed, *method.encode()]).normal(scale=0.05, size=USERS)
    recall = np.random.default_rng(0).uniform(0.2, 0.6, size=USERS) + lift + shift + noise
    table = pd.DataFrame({"user": np.arange(USERS, dtype=np.int32), "recall@20": recall, "ndcg@20": recall / 2})
    place.mkdir(parents=True)
    table.astype({"recall@20": np.float32, "ndcg@20": np.float32}).to_parquet(place / "per_user.parquet", index=False)
    means = {"recall@20": recall.mean(), "ndcg@20": recall.mean() / 2}
    return placed(run_row(method, budget, seed, **means, **changes), place)


def placed(row: dict, folder: Path | str = "nowhere", data: str = PUBLISHED) -> dict:
    return row | {"folder": str(folder), "unsplit_data": data}


def unsplit(recipe: str, k_core: int = 0) -> str:
    """What `collect` writes of data that were split by a recipe."""
    source = {"source": {"train.txt": "abc"}, "recipe": recipe, "k_core": k_core}
    return json.dumps(source | {"num_users": 30, "num_items": 20})


def three_methods(folder: Path, seeds=(1, 2, 3)) -> list[dict]:
    """A winner by 0.1, a twin of it, and the plain table; the seeds move them by 0.002."""
    lifts = {"winner": 0.1, "twin": 0.1, "short-vectors": 0.0}
    shifts = {1: 0.002, 2: -0.002, 3: 0.0}
    return [evaluated(folder, m, seed, lift, shift=shifts[seed]) for m, lift in lifts.items() for seed in seeds]


def compared(*rows: dict) -> pd.DataFrame:
    """The table's NDCG rows by method."""
    table = compare_table(runs_table(*rows), "short-vectors")
    return table[table.metric == "ndcg@20"].set_index("method")


def saved(folder: Path, *rows: dict) -> Path:
    runs_table(*rows).to_parquet(folder / "runs.parquet", index=False)
    return folder / "runs.parquet"


def written(folder: Path, *rows: dict) -> tuple[str, str]:
    write_compare([saved(folder, *rows)], folder / "compare", "short-vectors", "snakemake all")
    return (folder / "compare.md").read_text(), (folder / "compare.tex").read_text()


def test_the_planted_winner_is_the_best_and_beats_the_plain_table(tmp_path):
    table = compared(*three_methods(tmp_path))
    assert table.best[["winner", "twin"]].sum() == 1 and not table.best["short-vectors"]
    loser = table.loc["short-vectors"]
    assert loser.best_difference == pytest.approx(-0.05, abs=0.005)
    assert loser.best_low < -0.05 < loser.best_high < 0 and loser.best_different
    for name in ("winner", "twin"):
        row = table.loc[name]
        assert (row.beats_plain, row.plain_other, row.plain_seeds) == ("yes", "short-vectors", 3)
        assert 0 < row.plain_low < 0.05 < row.plain_high
        assert row.plain_low < row.plain_users_low < row.plain_users_high < row.plain_high
        assert row.plain_p < row.plain_p_holm < 0.01 and row.plain_wilcoxon_p_holm < 0.001
        assert row.plain_effect_size > 1 and 0 < row.plain_detectable < 0.05
    assert table.probability_best.sum() == pytest.approx(1) and table.probability_best["short-vectors"] < 0.01
    plain_best = compared(
        *(
            row | {"method": {"short-vectors": "winner"}.get(row["method"], "short-vectors")}
            for row in three_methods(tmp_path / "turned")
            if row["method"] != "twin"
        )
    )
    assert plain_best.beats_plain["winner"] == "no"


def test_the_best_is_bold_and_a_tie_within_noise_is_underlined(tmp_path):
    text, latex = written(tmp_path, *three_methods(tmp_path))
    bold, underlined = re.findall(r"\| \*\*(0\.\d+) ± ", text), re.findall(r"\| <u>(0\.\d+) ± ", text)
    assert (len(bold), len(underlined)) == (2, 2)  # recall and NDCG; of the twins one each
    table = pd.read_csv(tmp_path / "compare.csv")
    twin = table[(table.metric == "ndcg@20") & table.best_different.eq(False)]
    assert set(twin.method) < {"winner", "twin"} and f"{twin['mean'].item():.4f}" in underlined
    assert latex.count(r"\textbf{") == 2 and latex.count(r"\underline{") == 2
    assert "Made by `snakemake all`." in text and "\n300 users.\n" in text and "Trained at commit: " in text
    assert re.search(r"\| 0\.00\d \| 0\.0\d\d\d \|", text)  # p and the detectable size of the plain table
    assert latex.count(r"\caption{") == 1
    assert "beats a plain table of the same bytes? NDCG@20" in text and "| yes, +0.0" in text
    rows = [line for line in latex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert rows.pop(0).startswith(r"\caption{")
    assert len(rows) == 4 and len({line.count("&") for line in rows}) == 1


def test_the_difference_and_its_interval_are_those_of_the_users_on_common_seeds(tmp_path):
    """The winner has seeds 1 2 3, the plain table 2 and 3: they are compared on these two."""
    rows = [row for row in three_methods(tmp_path) if (row["method"], row["seed"]) != ("short-vectors", 1)]
    winner = compared(*rows).loc["winner"]
    by_seed = []
    for seed in (2, 3):
        one, two = (
            pd.read_parquet(tmp_path / f"runs/toy/{method}/bytes-1000/{seed}/per_user.parquet")["ndcg@20"]
            for method in ("winner", "short-vectors")
        )
        by_seed.append((one - two).to_numpy(float))
    users, seeds = np.mean(by_seed, axis=0), np.mean(by_seed, axis=1)
    assert winner.results == 3 and winner.plain_seeds == 2
    assert winner.plain_difference == pytest.approx(users.mean(), abs=1e-7)
    arm = np.hypot(1.96 * users.std(ddof=1) / np.sqrt(USERS), 12.7062 * seeds.std(ddof=1) / np.sqrt(2))
    assert (winner.plain_high - winner.plain_low) / 2 == pytest.approx(arm, rel=0.05)


def test_one_seed_is_marked_as_being_about_these_models_alone(tmp_path):
    text, latex = written(tmp_path, *three_methods(tmp_path, seeds=(1,)))
    assert text.count("] † |") == 2 + 2 * 2  # two against the best; recall and NDCG of two against the plain table
    assert "* †: one seed in common: about these two trained models alone." in text
    assert latex.count(r"$^\dagger$") == 2 * 2 + 1  # and in the caption
    several, _ = written(tmp_path / "several", *three_methods(tmp_path / "several"))
    assert "] †" not in several


def test_a_hole_stays_with_its_status_and_says_why_there_is_no_answer(tmp_path):
    rows = [
        *three_methods(tmp_path, seeds=(1,)),
        placed(hole("legcf", "bytes-1000")),
        placed(hole("short-vectors", "bytes-50")),
        evaluated(tmp_path, "winner", 1, 0.1, budget="bytes-50"),
        evaluated(tmp_path, "twin", 1, 0.1, budget="bytes-50"),
        evaluated(tmp_path, "twin", 1, 0.1, budget="bytes-20"),
        placed(hole("twin", "bytes-10")),
    ]
    text, _ = written(tmp_path, *rows)
    table = pd.read_csv(tmp_path / "compare.csv", keep_default_na=False)
    table = table[table.metric == "ndcg@20"].set_index(["budget", "method"])
    assert table.beats_plain["bytes-50", "winner"] == "short-vectors: infeasible"
    assert table.beats_plain["bytes-20", "twin"] == "short-vectors was not run"
    assert table.beats_plain["bytes-1000", "legcf"] == table.beats_plain["bytes-1000", "short-vectors"] == ""
    assert "| legcf | 0 of 1 | infeasible | - | - |" in text
    assert "### bytes-10\n\nNo run has a result.\n" in text
    assert not table.best["bytes-20", "twin"]  # without a rival no contest


def test_methods_without_a_seed_in_common_are_not_compared(tmp_path):
    rows = [evaluated(tmp_path, "winner", 1, 0.1), evaluated(tmp_path, "short-vectors", 2, 0.0)]
    table = compared(*rows)
    assert table.beats_plain["winner"] == "no seed in common"
    assert table.best["winner"] and pd.isna(table.best_difference["short-vectors"])
    assert "| no seed in common |" in written(tmp_path, *rows)[0]


def test_references_without_a_budget_are_in_the_csv_and_compared_with_nothing(tmp_path):
    rows = [*three_methods(tmp_path), *(evaluated(tmp_path, "lightgcn", s, 0.3, budget="full") for s in (1, 2, 3))]
    text, _ = written(tmp_path, *rows)
    assert "lightgcn" not in text
    lightgcn = compared(*rows).loc["lightgcn"]
    assert lightgcn.low < lightgcn["mean"] < lightgcn.high
    assert not lightgcn.best and pd.isna(lightgcn.best_difference) and pd.isna(lightgcn.probability_best)
    assert lightgcn.beats_plain == ""


def test_holm_s_family_is_every_pair_of_methods_of_a_budget_and_metric(tmp_path):
    """Three pairs, and at the second budget one; the best and the plain table are one pair, in two rows."""
    rows = three_methods(tmp_path)
    few = [row | {"budget": "bytes-2000", "budget_amount": 2000.0} for row in rows if row["method"] != "twin"]
    table = compare_table(runs_table(*rows, *few), "short-vectors")
    for (budget, _), family in table.groupby(["budget", "metric"]):
        pairs = {}
        for row in family.to_dict("records"):
            for against in ("best", "plain"):
                if not pd.isna(row[f"{against}_p"]):
                    key = tuple(sorted([row["method"], row[f"{against}_other"]]))
                    numbers = [row[f"{against}_{p}{family}"] for p in ("p", "wilcoxon_p") for family in ("", "_holm")]
                    assert pairs.setdefault(key, numbers) == numbers
        assert len(pairs) == {"bytes-1000": 3, "bytes-2000": 1}[budget]
        p_values, p_holm, wilcoxon, wilcoxon_holm = zip(*pairs.values(), strict=True)
        np.testing.assert_allclose(holm(p_values), p_holm)
        np.testing.assert_allclose(holm(wilcoxon), wilcoxon_holm)
    text, _ = written(tmp_path, *rows, *few)
    assert "all pairs of methods at a budget (1 to 3 on toy)" in text


def test_p_is_below_5_percent_where_the_interval_leaves_out_0(tmp_path):
    rows = three_methods(tmp_path)
    rows += [evaluated(tmp_path, f"near{size}", seed, 0.1 + size / 1000) for size in range(8) for seed in (1, 2, 3)]
    found = compared(*rows)
    for against in ("best", "plain"):
        known = found.dropna(subset=f"{against}_p")
        without_0 = (known[f"{against}_low"] > 0) | (known[f"{against}_high"] < 0)
        assert (known[f"{against}_p"] < 0.05).tolist() == without_0.tolist()
        assert (known[f"{against}_p_holm"] >= known[f"{against}_p"]).all()
    assert 0 < (found.best_p < 0.05).sum() < len(found) - 1


def test_what_is_said_goes_by_the_corrected_p_and_not_by_the_interval(tmp_path):
    """A few methods just below the best: the intervals of some leave out 0, and that is luck among so many pairs."""
    rows = three_methods(tmp_path)
    rows += [evaluated(tmp_path, f"near{size}", seed, 0.04 + size / 400) for size in range(9) for seed in (1, 2, 3)]
    found = compared(*rows)
    judged = found.dropna(subset="plain_p")
    only_alone = judged[(judged.plain_p < 0.05) & (judged.plain_p_holm >= 0.05)]
    assert len(only_alone) and set(only_alone.beats_plain) == {"not told apart"}
    assert set(judged.beats_plain[judged.plain_p_holm < 0.05]) == {"yes"}
    assert found.best_different.eq(True).tolist() == (found.best_p_holm < 0.05).tolist()
    text, _ = written(tmp_path, *rows)
    every = pd.read_csv(tmp_path / "compare.csv")
    alone = (every.best_low > 0) | (every.best_high < 0)
    assert text.count("| <u>") == every.best_p_holm.ge(0.05).sum() > (every.best_p.notna() & ~alone).sum()


def test_of_equal_methods_the_corrected_p_calls_none_different_from_the_best_in_95_of_100_budgets(monkeypatch):
    """Users and seeds are chance. The interval, of one comparison, errs more with the best than 1 in 20: see METHOD.

    With 30 methods and 100 budgets, which took minutes, these assertions held too, a quarter in place of 15 %.
    """
    generator, methods, seeds, budgets = np.random.default_rng(0), [f"m{place}" for place in range(8)], range(5), 60
    rows = [placed(run_row(name, seed=seed)) for name in methods for seed in seeds]
    wrong_p, wrong_interval = 0, 0.0
    for _ in range(budgets):
        values = {}
        for name in methods:
            tastes = generator.normal(scale=0.1, size=60)  # of 60 users for what the method does
            for seed in seeds:
                values[name, seed] = tastes + generator.normal(scale=0.02) + generator.normal(scale=0.1, size=60)
        monkeypatch.setattr(compare, "_per_user", lambda runs, metrics, values=values: {"ndcg@20": values})
        runs = runs_table(*(row | {"ndcg@20": values[row["method"], row["seed"]].mean()} for row in rows))
        table = compare_table(runs, methods[0]).query("metric == 'ndcg@20' and best_seeds > 0")
        wrong_p += (table.best_p_holm < 0.05).any()
        wrong_interval += ((table.best_low > 0) | (table.best_high < 0)).mean()
    assert wrong_p <= 0.05 * budgets + 2 * np.sqrt(0.05 * 0.95 * budgets)
    assert 0.05 * budgets < wrong_interval <= 0.15 * budgets


def test_the_same_runs_give_the_same_table(tmp_path):
    rows = three_methods(tmp_path)
    pd.testing.assert_frame_equal(compared(*rows), compared(*rows))


def test_splits_of_the_same_data_are_told_from_seeds(tmp_path):
    """Two splits, 0.2 apart, of two seeds each, 0.02 apart: 0.02 / sqrt 2 by seed, the rest by split."""
    rows = [
        placed(run_row("legcf", seed=seed, dataset=name, **{"recall@20": 0.3 + split + 0.02 * seed}))
        for name, split in [("toy", 0.0), ("toy-split1", 0.2)]
        for seed in (1, 2)
    ]
    table = variance_table(runs_table(*rows)).set_index("metric")
    row = table.loc["recall@20"]
    assert (row.datasets, row.splits, row.runs) == ("toy, toy-split1", 2, 4)
    assert row.sd_model_seed == pytest.approx(0.02 / np.sqrt(2))
    assert row.sd_split_seed == pytest.approx(np.sqrt((0.2**2 - 0.02**2 / 2) / 2))
    others = [each | {"unsplit_data": each["dataset"]} for each in rows]  # other data, not another split
    assert variance_table(runs_table(*others)).empty


def test_another_recipe_is_no_other_split(tmp_path):
    """Two entries with the same files, as `like:` makes them: what collect writes of them differs in the recipe."""
    rows = [
        placed(run_row("legcf", seed=seed, dataset=f"toy-{recipe}", protocol=recipe), data=unsplit(recipe))
        for recipe in ("given", "legcf")
        for seed in (1, 2)
    ]
    assert variance_table(runs_table(*rows)).empty
    assert not variance_table(runs_table(*(row | {"protocol": "given", "unsplit_data": "same"} for row in rows))).empty


def test_the_spread_by_split_stands_in_the_text_where_there_are_splits(tmp_path):
    rows = [
        evaluated(tmp_path, method, seed, 0.1, shift=shift + 0.01 * seed, dataset=dataset)
        for dataset, shift in [("toy", 0.0), ("toy-split1", 0.1)]
        for method in ("winner", "short-vectors")
        for seed in (1, 2)
    ]
    text, _ = written(tmp_path, *rows)
    assert "## Spread by model seed and split seed" in text and "| toy, toy-split1 | given | bytes-1000 |" in text
    assert len(pd.read_csv(tmp_path / "compare-variance.csv")) == 4
    alone, _ = written(tmp_path / "alone", *three_methods(tmp_path / "alone"))
    assert "## Spread" not in alone and pd.read_csv(tmp_path / "alone" / "compare-variance.csv").empty


def test_made_up_data_is_named_as_such(tmp_path):
    rows = [row | {"made_up": True} for row in three_methods(tmp_path)]
    text, latex = written(tmp_path, *rows)
    assert "Nothing is to be concluded from made-up data." in text and "## toy (made up, protocol given)" in text
    assert "toy (made up), bytes-1000" in latex


def test_what_is_missing_or_does_not_belong_is_named(tmp_path):
    rows = three_methods(tmp_path, seeds=(1,))
    with pytest.raises(DataError, match="has another mean recall@20 than the runs table"):
        compared(*(row | {"recall@20": 0.5} for row in rows))
    users = tmp_path / "runs/toy/twin/bytes-1000/1/per_user.parquet"
    pd.read_parquet(users).assign(user=range(1, USERS + 1)).to_parquet(users)
    with pytest.raises(DataError, match="has other users than"):
        compared(*rows)
    users.unlink()
    with pytest.raises(DataError, match=r"twin/bytes-1000/1/per_user.parquet cannot be read .*evaluate"):
        compared(*rows)
    pd.DataFrame([run_row()]).to_parquet(tmp_path / "old.parquet")
    with pytest.raises(DataError, match=r"no column '\w+', so they are of another version.*collect"):
        write_compare([tmp_path / "old.parquet"], tmp_path / "compare", "short-vectors")


def test_collect_says_where_a_run_lies_and_of_which_split_it_is(tmp_path):
    run = write_run(tmp_path / "one", {"recall@20": 0.5})
    sha = {"train": "a" * 64, "valid": "b" * 64, "test": "c" * 64}
    stats = {"name": "toy", "split_seed": 3, "source": {"train.txt": "abc"}, "recipe": "given", "sha256": sha}
    stats |= {"num_users": 30, "num_items": 20, "mask_at_test": ["train"], "k_core": 0}
    (tmp_path / "stats.json").write_text(pd.Series(stats).to_json())
    collect([run], tmp_path, {"files": {}}, tmp_path / "runs.parquet")
    row = pd.read_parquet(tmp_path / "runs.parquet").iloc[0]
    assert (row.folder, row.split_seed) == (str(run), 3)
    assert '"train.txt": "abc"' in row.unsplit_data and "split_seed" not in row.unsplit_data
