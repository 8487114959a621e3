"""What is behind a figure: exactly the runs that it shows, with data, commit and command; other paths are refused."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest
from test_report import SHA, hole, run_row, runs_table

from c2f.__main__ import main
from c2f.captions import seeds_in_words, seeds_of
from c2f.errors import ConfigError, DataError
from c2f.explain import explain
from c2f.report import write_table


def output(folder: Path) -> Path:
    """An output folder: four runs and one that c2f starts from, and a figure of three cells that draws seed 1."""
    home = folder / "results"
    (home / "tables").mkdir(parents=True)
    (home / "figures").mkdir()
    coarse = run_row("c2f-coarse", role="start", command="python -m c2f train --method coarse.json")
    rows = [
        run_row("c2f", starts_from=coarse["folder"]),
        run_row("c2f", seed=2),
        run_row("legcf", commit="def5678+"),
        run_row("legcf", "numbers-200"),
        hole("short-vectors", "numbers-100"),
        coarse,
    ]
    runs = home / "tables" / "runs-toy.parquet"
    runs_table(*rows).to_parquet(runs, index=False)
    write_table([runs], home / "tables" / "main", made_by="snakemake --cores 2 all")
    for name in ("pareto.png", "pareto.pdf"):
        (home / "figures" / name).write_bytes(b"drawn")
    drawn = pd.DataFrame({"dataset": "toy", "method": ["c2f", "legcf", "short-vectors"], "budget": "numbers-100"})
    drawn.to_csv(home / "figures" / "pareto.csv", index=False)
    (home / "figures" / "pareto.txt").write_text("NDCG against size. Data: toy. One seed (1): how far another lies.\n")
    return home


def runs_in(text: str) -> list[tuple[str, str, int]]:
    """The method, budget and seed of every run that is listed, without those that others start from."""
    part = re.search(r"^Runs \(\d+\)\n.*\n((?:.+\n)*)", text, re.MULTILINE)[1]
    return [(method, budget, int(seed)) for _, method, budget, seed, *_ in map(str.split, part.splitlines())]


def test_a_published_figure_is_explained_by_the_runs_tables_that_lie_beside_it(tmp_path):
    """As in results/published: no folders figures/ and tables/, and no times of files, which git does not keep."""
    home = output(tmp_path)
    there = explain(home / "figures" / "pareto.png")
    published = tmp_path / "published"
    published.mkdir()
    for file in (*(home / "figures").iterdir(), home / "tables" / "runs-toy.parquet"):
        file.rename(published / file.name)
    os.utime(published / "pareto.png", (0, 0))
    here = explain(published / "pareto.png")
    assert runs_in(here) == runs_in(there) and "OUT OF DATE" not in here


@pytest.mark.parametrize("ending", ["png", "pdf", "csv", "txt"])
def test_a_figure_is_explained_by_the_runs_of_its_csv_and_the_seeds_of_its_caption(tmp_path, ending):
    text = explain(output(tmp_path) / "figures" / f"pareto.{ending}")
    assert runs_in(text) == [
        ("c2f", "numbers-100", 1),
        ("legcf", "numbers-100", 1),
        ("short-vectors", "numbers-100", 1),
    ]
    assert "NDCG against size." in text
    assert "numbers-200" not in text and "--seed 2" not in text


def test_data_commits_versions_and_commands_are_listed(tmp_path):
    text = explain(output(tmp_path) / "figures" / "pareto.png")
    for pairs, checksum in SHA.items():
        assert re.search(rf"^toy +given +real +{pairs} +{checksum}$", text, re.MULTILINE)
    assert re.search(r"^2 +abc1234 +a machine, 2 cores +python 3.11.7, torch 2.13.0$", text, re.MULTILINE)
    assert re.search(r"^1 +def5678\+ ", text, re.MULTILINE)
    commands = text[text.index("Commands of the runs alone\n") :].splitlines()[1:]
    assert len(commands) == 1 + 3
    assert "python -m c2f train --method legcf.json --budget numbers-100 --seed 1" in commands
    assert "All of it again\nsnakemake --cores 2 all\n" in text
    (tmp_path / "results" / "tables" / "main.md").unlink()
    assert "All of it" not in explain(tmp_path / "results" / "figures" / "pareto.png")


def test_the_runs_that_these_start_from_are_listed_too(tmp_path):
    home = output(tmp_path)
    text = explain(home / "figures" / "pareto.png")
    assert "Runs that these start from (1)" in text and "python -m c2f train --method coarse.json" in text
    pd.DataFrame({"dataset": ["toy"], "method": ["legcf"], "budget": ["numbers-100"]}).to_csv(
        home / "figures" / "pareto.csv", index=False
    )
    assert "c2f-coarse" not in explain(home / "figures" / "pareto.png")


def test_a_table_shows_its_rows_and_the_report_every_run(tmp_path):
    home = output(tmp_path)
    (home / "report.html").write_text("<p>")
    assert len(runs_in(explain(home / "tables" / "main.md"))) == 5
    assert len(runs_in(explain(home / "report.html"))) == 5


def test_seeds_of_the_csv_win_and_a_csv_without_methods_lists_all(tmp_path):
    home = output(tmp_path)
    drawn = pd.DataFrame({"dataset": ["toy"], "method": ["c2f"], "budget": ["numbers-100"], "seed": [2]})
    drawn.to_csv(home / "figures" / "pareto.csv", index=False)
    assert runs_in(explain(home / "figures" / "pareto.png")) == [("c2f", "numbers-100", 2)]
    pd.DataFrame({"x": [1]}).to_csv(home / "figures" / "pareto.csv", index=False)
    text = explain(home / "figures" / "pareto.png")
    assert len(runs_in(text)) == 5 and "pareto.csv names no methods: all runs of the tables are listed" in text


def test_beside_published_numbers_the_runs_are_ours_and_those_of_compared_numbers_alone(tmp_path):
    home = output(tmp_path)
    drawn = {"dataset": "a paper's", "method": "C2F", "our_dataset": "toy", "entry": ["c2f", "legcf"]}
    drawn |= {"budget": "numbers-100", "compared": [True, False]}
    pd.DataFrame(drawn).to_csv(home / "figures" / "pareto.csv", index=False)
    text = explain(home / "figures" / "pareto.png")
    assert runs_in(text) == [("c2f", "numbers-100", 1)] and "no run in the tables" not in text


def test_a_row_without_its_run_is_named(tmp_path):
    home = output(tmp_path)
    drawn = pd.DataFrame({"dataset": "toy", "method": ["c2f", "gone"], "budget": "numbers-100"})
    drawn.to_csv(home / "figures" / "pareto.csv", index=False)
    assert "no run in the tables for 1 rows of pareto.csv: toy gone numbers-100" in explain(
        home / "figures" / "pareto.png"
    )


def test_a_figure_older_than_its_runs_is_said_to_be_out_of_date(tmp_path):
    home = output(tmp_path)
    figure, table = home / "figures" / "pareto.png", home / "tables" / "runs-toy.parquet"
    os.utime(table, (1000, 1000))
    assert "OUT OF DATE" not in explain(figure)
    os.utime(figure, (999, 999))
    assert "OUT OF DATE: it is older than runs-toy.parquet" in explain(figure)


def test_paths_that_show_nothing_are_refused_with_the_way_out(tmp_path):
    home = output(tmp_path)
    with pytest.raises(
        ConfigError, match=r"run\.json is no figure, table or report beside its runs; name a file such as"
    ):
        explain(home / "runs" / "run.json")
    with pytest.raises(ConfigError, match=r"no file .*parto\.png; beside it are pareto"):
        explain(home / "figures" / "parto.png")
    with pytest.raises(ConfigError, match=r"runs-toy\.parquet is no figure"):
        explain(home / "tables" / "runs-toy.parquet")
    (home / "figures" / "pareto.csv").unlink()
    with pytest.raises(DataError, match=r"pareto\.csv is missing; run the step that writes it: `python -m c2f figure`"):
        explain(home / "figures" / "pareto.png")
    (home / "tables" / "runs-toy.parquet").unlink()
    with pytest.raises(DataError, match=r"tables has no runs table .*run `python -m c2f collect`"):
        explain(home / "figures" / "pareto.png")


def test_the_command_takes_a_path_and_ends_with_2_for_a_mistake(tmp_path, capsys):
    home = output(tmp_path)
    assert main(["explain", str(home / "figures" / "pareto.png")]) == 0
    assert "Runs (3)" in capsys.readouterr().out
    assert main(["explain", str(home / "other.txt")]) == 2
    assert capsys.readouterr().err.startswith(f"ERROR: {home / 'other.txt'} is no figure, table or report")


def test_the_seeds_of_a_caption_are_read_as_they_are_written():
    for seeds in ([7], [1, 2, 3]):
        assert seeds_of(f"Recall. {seeds_in_words(seeds, 'comparison')}.") == seeds
    assert seeds_of("Recall against the budget.") == []
