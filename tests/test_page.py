"""The report in a browser: the plot is drawn, its views switch, tables sort, and nothing is asked for on a network."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_compare import three_methods
from test_report import hole, run_row, runs_table, saved

from c2f.__main__ import main
from c2f.compare import write_compare
from c2f.page import plot_data, write_report
from c2f.report import write_table

CHROMIUM = shutil.which("chromium")
METHODS = ["lightgcn", "short-vectors", "pq", "legcf"]


def grid_runs() -> list[dict]:
    """Two datasets, four methods, three budgets, two seeds; short-vectors lack a result at the smallest budget."""
    rows = []
    for dataset in ("toy", "other"):
        for place, method in enumerate(METHODS):
            for size in (100, 200, 400):
                for seed in (1, 2):
                    value = 0.1 * place + size / 4000 + seed / 1000
                    changes = {"dataset": dataset, "stored_bytes": 4.0 * size, "serving_bytes": 9.0 * size}
                    changes |= {"numbers": float(size), "recall@20": value, "ndcg@20": value / 2}
                    rows.append(run_row(method, f"bytes-{size}", seed, **changes))
    missing = [row for row in rows if (row["method"], row["budget"]) == ("short-vectors", "bytes-100")]
    holes = [hole("short-vectors", "bytes-100", dataset=row["dataset"], seed=row["seed"]) for row in missing]
    return [row for row in rows if row not in missing] + holes


def report(folder: Path, *rows: dict, script: str = "", **more) -> Path:
    """Write the report of these runs; `script` is run in it after its own."""
    runs = saved(folder, *rows)
    write_table([runs], folder / "main")
    page = folder / "report.html"
    write_report([folder / "main.csv"], [], [runs], page, plain="short-vectors", full="lightgcn", **more)
    if script:
        page.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    return page


def browser(profile: Path, address: str, *more: str) -> subprocess.CompletedProcess:
    """Open an address in headless Chromium; return the page as it stands afterwards, and what its console said."""
    off = ["quic", "background-networking", "component-update", "sync"]
    flags = ["--no-first-run", *(f"--disable-{name}" for name in off)]
    flags += ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    words = [CHROMIUM, *flags, f"--user-data-dir={profile}", *more, "--dump-dom", address]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


# What is drawn --------------------------------------------------------------------------------------------------------


def test_a_point_has_its_sizes_in_every_view_its_mean_spread_interval_seeds_and_command():
    rows = [run_row("pq", "bytes-1000", seed, **{"ndcg@20": 0.2 + seed / 50}) for seed in (1, 2)]
    (point,) = plot_data(runs_table(*rows))["points"]
    assert point["sizes"] == {"paper": 4 * 96, "stored": 400, "serving": 900}
    mean, sd, low, high, best_in = point["metrics"]["ndcg@20"]
    half = 12.706 * sd / 2**0.5
    assert (mean, sd) == (pytest.approx(0.23), pytest.approx(0.01 * 2**0.5))
    assert (low, high) == (pytest.approx(mean - half, abs=1e-5), pytest.approx(mean + half, abs=1e-5))
    assert best_in == ["paper", "stored", "serving"]
    assert (point["seeds"], point["command"]) == ("1, 2", rows[0]["command"])


def test_one_seed_has_no_interval_and_a_method_without_a_result_no_point():
    data = plot_data(runs_table(run_row("pq"), hole("svd", "numbers-100"), run_row("c2f", role="figure")))
    assert list(data["methods"]) == ["pq"]
    assert data["points"][0]["metrics"]["ndcg@20"][:4] == [0.25, None, None, None]
    json.dumps(data, allow_nan=False)


def test_the_frontier_is_of_each_view_and_metric():
    small = run_row("pq", "bytes-100", stored_bytes=100.0, serving_bytes=2000.0, **{"ndcg@20": 0.1, "recall@20": 0.9})
    large = run_row("svd", "bytes-100", stored_bytes=500.0, serving_bytes=600.0, **{"ndcg@20": 0.2, "recall@20": 0.1})
    best = {point["method"]: point["metrics"] for point in plot_data(runs_table(small, large))["points"]}
    assert best["pq"]["ndcg@20"][4] == ["stored"]  # equal numbers, but fewer bytes stored
    assert best["svd"]["ndcg@20"][4] == ["paper", "stored", "serving"]
    assert best["pq"]["recall@20"][4] == ["paper", "stored", "serving"]
    assert best["svd"]["recall@20"][4] == ["serving"]  # where it is the smaller one


def test_methods_of_one_family_have_one_colour():
    rows = [run_row(name) for name in ("pq", "pq-final", "svd")]
    looks = plot_data(runs_table(*rows), [["pq", "pq-final"]])["methods"]
    assert looks["pq"]["color"] == looks["pq-final"]["color"] != looks["svd"]["color"]
    assert looks["pq"]["symbol"] != looks["pq-final"]["symbol"]


def test_what_is_said_of_differences_is_from_the_compare_table(tmp_path):
    runs = saved(tmp_path, *three_methods(tmp_path))
    write_table([runs], tmp_path / "main")
    write_compare([runs], tmp_path / "compare", "short-vectors")
    words = ["report", "--tables", tmp_path / "main.csv", "--runs", runs, "--output", tmp_path / "report.html"]
    assert main([*map(str, words), "--compare", str(tmp_path / "compare.csv"), "--plain", "short-vectors"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "the evidence does not separate the two" in page and "Of 2 others it is beaten by 2" in page
    assert main([*map(str, words), "--plain", "short-vectors"]) == 0
    assert "There was no compare table" in (tmp_path / "report.html").read_text()


def test_text_of_a_run_ends_no_element_of_the_page(tmp_path):
    row = run_row("pq", command="python -m c2f train --seed '</script><b>'")
    page = report(tmp_path, row).read_text()
    assert "'</script><b>'" not in page and "'<\\/script><b>'" in page


def test_every_heading_picture_and_table_box_has_a_name(tmp_path):
    page = report(tmp_path, *grid_runs()).read_text()
    own = page[: page.index('<script type="application/json"')]
    assert re.findall(r"<h1", own) == ["<h1"] and '<html lang="en">' in own
    assert own.count("<table") == len(
        re.findall(r'<div class="scroll" role="region" tabindex="0" aria-label="[^"]+"><table', own)
    )
    assert all(f'id="{name}"' in own for name in re.findall(r'href="#([^"]+)"', own))


# In a browser ---------------------------------------------------------------------------------------------------------

PROBE = """
const said = {};
const shot = () => ({
  title: plot.layout.title.text,
  frontier: plot.data.at(-1).x,
  bars: plot.data.map((trace) => trace.error_y?.array?.length ?? 0),
});
said.first = shot();
document.getElementById("view").value = "serving";
document.getElementById("view").dispatchEvent(new Event("change"));
said.second = shot();
said.address = location.hash;
location.hash = "#view=paper&metric=recall@20&dataset=other&method=pq";
follow();
said.third = shot();
const table = [...document.querySelectorAll("table")].find((one) => one.tHead.textContent.includes("bytes-100"));
const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const heads = table.tHead.rows[0].cells;
said.order = [order()];
for (const column of [1, 1, 0]) { heads[column].querySelector("button").click(); said.order.push(order()); }
said.sorted = [...heads].map((head) => head.getAttribute("aria-sort"));
const answers = document.createElement("table");
const cells = ["not told apart, +0.0012 [-0.0010, +0.0034]", "", "yes, +0.0547 [0.0501, 0.0593]", "no, -0.01 [-1, 0]"];
answers.innerHTML = "<thead><tr><th class=n>beats?</th></tr></thead><tbody></tbody>";
for (const cell of cells) answers.tBodies[0].insertRow().insertCell().textContent = cell;
sortBy(answers, 0, answers.tHead.rows[0].cells[0]);
said.answers = [...answers.tBodies[0].rows].map((row) => row.cells[0].textContent.split(",")[0]);
said.width = [document.documentElement.scrollWidth, innerWidth];
const names = performance.getEntriesByType("resource").map((entry) => entry.name);
said.asked = names.filter((name) => !/^(data|blob):/.test(name));
plot.emit("plotly_click", { points: [{ customdata: data.points[0] }] });
said.chosen = document.getElementById("chosen").textContent;
const result = document.createElement("pre");
result.id = "said";
result.textContent = JSON.stringify(said);
document.body.append(result);
"""


def probed(folder: Path, width: int) -> tuple[str, dict, str]:
    """The report in a window so wide: its elements, what the probe found, and the console."""
    if CHROMIUM is None:
        pytest.skip("needs the program chromium (Debian package chromium), which this machine does not have")
    page = report(folder, *grid_runs(), script=PROBE)
    done = browser(folder / "profile", f"file://{page}#metric=ndcg@20&view=stored", f"--window-size={width},900")
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said, done.stderr[-2000:]
    return done.stdout, json.loads(html.unescape(said[1])), done.stderr


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple[str, dict, str]:
    """The report in a wide window."""
    return probed(tmp_path_factory.mktemp("page"), 1400)


@pytest.mark.slow
def test_the_plot_is_drawn_without_complaint(opened):
    page, said, console = opened
    assert 'class="main-svg"' in page and re.search(r'<div id="plot"[^>]*js-plotly-plot', page)
    assert said["first"]["title"] == "toy: NDCG@20 by bytes stored"
    assert "CONSOLE" not in console


@pytest.mark.slow
def test_nothing_is_asked_for_on_a_network(opened):
    page, said, _ = opened
    elements = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert said["asked"] == []
    assert not re.findall(r'(?:src|href|data|action)="(?!data:|blob:|#)[^"]*"', elements)
    assert (
        "modebar-btn" in elements and "Share chart" not in elements and "plotly-logomark" not in elements
    )  # buttons that lead to plotly's servers
    assert "url(http" not in elements and "@import" not in elements
    assert "default-src 'none'" in elements  # and the browser would refuse it


@pytest.mark.slow
def test_a_choice_switches_the_view_and_stands_in_the_address(opened):
    _, said, _ = opened
    assert said["first"]["frontier"][:-1] == [400, 800, 1600]  # legcf is best at every size: 4 bytes a number
    assert said["second"]["frontier"][:-1] == [900, 1800, 3600]
    assert said["second"]["title"] == "toy: NDCG@20 by bytes to serve"
    assert "view=serving" in said["address"]
    assert said["first"]["bars"][:4] == [3, 2, 3, 3]  # two seeds: every point has an interval


@pytest.mark.slow
def test_an_address_opens_a_view(opened):
    _, said, _ = opened
    assert said["third"]["title"] == "other: Recall@20 by bytes counted by the paper"


@pytest.mark.slow
def test_a_click_on_a_head_sorts_numbers_from_the_largest_and_what_is_no_number_stands_last(opened):
    _, said, _ = opened
    given, down, up, by_name = said["order"]
    assert sorted(given) == sorted(down)
    assert down == ["legcf", "pq", "lightgcn", "short-vectors"]
    assert up == ["lightgcn", "pq", "legcf", "short-vectors"]  # infeasible
    assert by_name == ["legcf", "lightgcn", "pq", "short-vectors"]
    assert said["sorted"][0] == "ascending" and set(said["sorted"][1:]) == {None}


@pytest.mark.slow
def test_an_answer_with_a_difference_is_sorted_by_the_difference(opened):
    _, said, _ = opened
    assert said["answers"] == ["yes", "not told apart", "no", ""]


@pytest.mark.slow
def test_a_click_on_a_point_keeps_its_command(opened):
    _, said, _ = opened
    assert "python -m c2f train --method lightgcn.json" in said["chosen"] and "seeds: 1, 2" in said["chosen"]


@pytest.mark.slow
def test_the_page_is_not_wider_than_its_window(opened, tmp_path):
    for _, said, _ in (opened, probed(tmp_path, 500)):  # Chromium has no narrower one
        content, window = said["width"]
        assert content <= window
