import base64
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from experiments.report import write_budgets_html, write_html
from experiments.report.answers import (
    change,
    convergence,
    gain,
    interval_of_speedup,
    load_snippet,
    next_steps,
    point_command,
    warnings,
)
from experiments.report.charts import Level, Series, chart
from experiments.report.html import _run_it, write_compared_html
from experiments.report.plots import learning_svg
from experiments.report.plots_quantized import chain_svg
from experiments.report.quantization import chain_rows
from experiments.report.sections import durations, runtimes
from experiments.report.text import aligned, duration, markdown, number

VOID = {"meta", "br"}
QUESTIONS = [
    "What did I gain?",
    "What did it cost?",
    "Which layers?",
    "Has the search converged?",
    "What next?",
]


class Page(HTMLParser):
    """Checks that tags nest, and collects headings, tags, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.text = ""
        self.unlabelled = 0
        self.unnamed = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.unlabelled += tag == "td" and "data-label" not in dict(attrs)
        self.unnamed += tag == "svg" and "viewbox" in dict(attrs) and "role" not in dict(attrs)
        self.ids.update(value for key, value in attrs if key == "id" and value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids.update(value for key, value in attrs if key == "id" and value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def full_report() -> dict[str, Any]:
    def stage(top1: float, macs: int, latency: float) -> dict[str, Any]:
        return {"top1": top1, "macs": macs, "params": macs // 10, "latency_ms": {"onnxruntime": latency}}

    return {
        "dense": stage(93.0, 94_600_000, 2.7),
        "pruned": stage(61.0, 47_300_000, 1.5),
        "finetuned": stage(92.0, 47_300_000, 1.5),
        "macs_ratio": 0.5,
        "speedup": {"onnxruntime": 1.8},
        "search": {"agent": "ddpg", "episodes": 3, "best_return": 0.7, "seconds": 12.5, "evaluations": 3},
        "seed": 7,
        "model": "small & <script>alert(1)</script>",
        "data": "digits",
        "provenance": {"commit": "abc123", "versions": {"torch": "2.14"}, "command": "amc search seed=7"},
    }


def full_episodes() -> list[dict[str, Any]]:
    numbers = [(0.3, "warmup"), (0.7, "search"), (0.5, "search")]
    return [
        {"episode": i, "return": top1, "top1": 100 * top1, "macs_ratio": 0.5, "phase": phase}
        for i, (top1, phase) in enumerate(numbers)
    ]


def full_strategy() -> dict[str, Any]:
    groups = [{"name": "$a$ <script>", "dense": 64, "kept": 16}, {"name": "b" * 80, "dense": 32, "kept": 32}]
    return {"groups": groups, "budget": {"resource": "macs", "ratio": 0.5}}


def test_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one.html", "two.html"):
        write_html(tmp_path / name, full_report(), full_episodes(), full_strategy())
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_the_page_is_well_formed_and_answers_five_questions_in_order(tmp_path):
    path = tmp_path / "report.html"
    write_html(path, full_report(), full_episodes(), full_strategy())
    text = path.read_text()
    page = Page(text)
    assert page.headings == [*QUESTIONS, "Provenance"]
    assert max(page.ids.values(), default=1) == 1
    assert page.unlabelled == page.unnamed == 0
    for shown in ("50.0%", "94.60", "92.00", "abc123", "ddpg", "16 / 64", "number 1", "amc search seed=7"):
        assert shown in page.text, shown


def test_the_page_loads_nothing_and_runs_its_own_script_alone(tmp_path):
    path = tmp_path / "report.html"
    write_html(path, full_report(), full_episodes(), full_strategy())
    text = path.read_text()
    assert Page(text).tags.keys().isdisjoint({"img", "link", "iframe", "object"})
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_names_are_escaped_in_text_and_plots(tmp_path):
    path = tmp_path / "report.html"
    report = full_report()
    report["search"]["reward"] = "<script>reward"
    report["left_whole"] = [["<script>x", "3", "<b>why"]]
    write_html(path, report, full_episodes(), full_strategy())
    text = path.read_text()
    assert text.count("<script") == 1
    assert "<b>" not in text
    assert "small &amp; &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "$a$ &lt;script&gt;" in text
    assert "b" * 80 not in re.sub(r'title="[^"]*"', "", text)


def test_a_worse_network_and_few_images_are_warned_of(tmp_path):
    report = full_report()
    report["dense"]["images"] = 500
    report["search_images_in_test"] = 40
    report["limits"] = [
        {"kind": "macs", "ratio": 0.5, "reached": 0.5},
        {"kind": "size", "ratio": 0.125, "reached": 0.125004},
    ]
    report["finetuned"] |= {"top1": 60.0, "lost": 170, "gained": 5}
    write_html(tmp_path / "report.html", report, full_episodes(), full_strategy())
    page = Page((tmp_path / "report.html").read_text())
    assert "Fine-tuning has made it worse on the test images, 61.00% → 60.00%" in page.text
    assert "40 of the search images are test images" in page.text
    missed = "The limit on the size is missed: 12.5004% of the dense network's, 12.5000% are allowed."
    assert page.text.count("is missed") == 1
    assert missed in page.text
    assert "12.5004%, missed" in page.text
    assert "There are 500 test images: one of them is 0.20 points." in page.text
    assert re.search(r"-33\.00 \[-37\.\d\d, -28\.\d\d\] points", page.text)


@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(0, 0, 100), (5, 5, 1000), (30, 2, 360), (0, 3, 10_000)]
)
def test_the_interval_encloses_the_change_and_is_narrower_for_more_images(lost, gained, images):
    def found(factor):
        told = change({"lost": factor * lost, "gained": factor * gained}, factor * images)
        return [float(number) for number in re.findall(r"[+-][\d.]+", told)]

    value, low, high = found(1)
    assert low < value < high
    _, lower, higher = found(100)
    assert higher - lower < (high - low) / 3


def test_a_budget_that_all_networks_use_up_gives_no_plot_of_a_vertical_line(tmp_path):
    points = [{**own, "params_ratio": 0.4, "widths": [own["episode"], 1]} for own in full_episodes()]
    fronts = {cost: {"return": points[:2], "top1": points[:2]} for cost in ("macs", "params")}
    write_html(tmp_path / "report.html", full_report(), points, full_strategy(), fronts)
    text = (tmp_path / "report.html").read_text()
    assert text.count('class="chart"') == 1
    assert "MACs, % of dense" not in text


def test_the_network_that_fits_a_front_point_has_a_command():
    report = {
        "folder": "my runs/a",
        "provenance": {"command": "amc run_dir=x data=fake budget.macs_ratio=0.3"},
    }
    command = point_command(report, {"strategy": "pareto/macs_01.json", "macs_ratio": 0.42101})
    assert command.startswith("amc 'run_dir=my runs/a_macs_01' 'strategy=my runs/a/pareto/macs_01.json'")
    assert "data=fake budget=macs budget.macs_ratio=0.4211" in command
    assert "0.3" not in command
    report["provenance"]["command"] += " finetune.until=0.9 finetune.epochs=3"
    command = point_command(report, {"strategy": "pareto/macs_01.json", "macs_ratio": 0.42101})
    assert "finetune.epochs=3" in command
    assert "until" not in command  # which is refused beside model.checkpoint


def test_a_search_that_is_advised_takes_a_remembered_strategy_back():
    report = {
        "folder": "a",
        "provenance": {"command": "amc run_dir=a strategy=/b/macs_00.json stages=[prune,report]"},
        "dense": {"top1": 90.0},
    }
    assert any("amc run_dir=a strategy=null stages=[search" in step for step in next_steps(report, []))


def test_advised_commands_make_again_what_the_run_has():
    found = {"top1": 80.0, "macs": 1, "params": 1}
    report = {"folder": "a", "dense": {**found, "top1": 90.0}, "pruned": found, "provenance": {}}
    timed, quantized = {"latency": [{"backend": "onnxruntime"}]}, {"quantized": found}
    exported, rest = {"export": {"files": []}}, {"compare": {}, "serve": {}}
    after = {"finetune": "finetune,", "search": "search,prune,finetune,"}
    episodes = [{"return": place, "episode": place} for place in range(10)]
    for own, made in (
        ({}, "report]"),
        (exported, "export,report]"),
        (quantized, "quantize,report]"),
        (timed | quantized | exported, "quantize,export,benchmark,report]"),
        (timed | exported | rest, "compare,export,benchmark,serve,report]"),
    ):
        for tuned in ({}, {"finetuned": found}):
            steps = " ".join(next_steps(report | own | tuned, episodes))
            assert all(f"stages=[{stages}{made}" in steps for stages in after.values())
        command = point_command(report | own, {"strategy": "pareto/macs_01.json", "macs_ratio": 0.4})
        assert command.endswith(f"'stages=[train,prune,finetune,{made}'")


def test_an_advised_search_chooses_as_the_run_did_and_integers_are_made_for_their_files():
    found = {"top1": 80.0, "macs": 1, "params": 1}
    report = {"folder": "a", "dense": {**found, "top1": 90.0}, "pruned": found, "provenance": {}}
    episodes = [{"return": place, "episode": place} for place in range(10)]
    steps = " ".join(next_steps(report | {"choose": {}, "compare": {}}, episodes))
    assert "stages=[search,choose,prune,finetune,compare,report]" in steps
    assert "stages=[quantize,export,report]" in steps  # which leaves what compare has found as it is


def test_the_command_of_a_front_point_takes_the_limits_of_a_recipe_back():
    report = {"folder": "a", "provenance": {"command": "amc experiment=vgg16_imagenet data.root=D"}}
    point = {"strategy": "pareto/params_03.json", "params_ratio": 0.41, "macs_ratio": 0.5}
    words = point_command(report, point).split()
    assert {"budget.params_ratio=0.41", "budget.macs_ratio=null", "budget.latency_ratio=null"} <= {*words}


def quantized_report() -> dict[str, Any]:
    """Of a network that was pruned, fine-tuned and quantized."""

    def against(milliseconds: float) -> dict[str, Any]:
        dense, other = ({"median_ms": own, "samples_ms": [own] * 8} for own in (4.0, milliseconds))
        return {"dense": dense, "pruned": other, "speedup": 4.0 / milliseconds}

    sizes = {"dense": 4096000, "pruned": 2048000, "quantized": 512000}
    timed = {"backend": "onnxruntime", "batch": 1, "unavailable": None, "comparison": against(2.0)}
    return full_report() | {
        "quantized": {"top1": 90.5, "macs": 47_300_000, "params": 4_730_000},
        "latency": [timed | {"others": {"quantized": against(1.0)}, "file_bytes": sizes}],
    }


def test_the_gain_of_a_quantized_network_is_told_beside_that_of_the_pruned_one():
    report = quantized_report()
    told = gain(report)
    assert "onnxruntime takes 2.00 ms for an image instead of 4.00 ms, 2.00 times as fast" in told
    assert "quantized, onnxruntime takes 1.00 ms for an image instead of 4.00 ms, 4.00 times as fast" in told
    assert told.endswith("its file shrinks from 4000.0 KiB to 2000.0 KiB; quantized, to 500.0 KiB.")
    head, *rows = runtimes(report)
    assert head[3] == "Smaller, ms"
    assert [(row[0], row[3]) for row in rows] == [
        ("onnxruntime, pruned", "2.00"),
        ("onnxruntime, quantized", "1.00"),
    ]
    del report["quantized"]
    assert "quantized" not in gain(report)
    assert [row[0] for row in runtimes(report)] == ["Runtime", "onnxruntime"]


def test_what_failed_for_the_quantized_network_is_told(tmp_path):
    file = {"format": "onnx", "file": "exports/model_static_int8.onnx", "bytes": 5, "runtimes": []}
    failed = file | {"failure": "the file could not be compared: XYZ"}
    made = {"method": "static_int8", "left_out": {"coreml": "coreml holds none"}, "files": [failed]}
    report = quantized_report() | {"export": {"files": [], "left_out": {}, "quantized": made}}
    told = list(warnings(report))
    assert "No coreml file of the quantized network: coreml holds none" in told
    assert "exports/model_static_int8.onnx: the file could not be compared: XYZ" in told
    write_html(tmp_path / "report.html", report, full_episodes(), full_strategy())
    page = Page((tmp_path / "report.html").read_text())
    assert "Quantized file in each runtime" not in page.headings
    assert "see below" not in page.text


def test_commands_hold_in_folders_of_any_name():
    predict = [{"file": "exports/predict.py", "needs": "onnxruntime", "network": "model.onnx"}]
    dense = {"top1": 90.0, "macs": 2, "params": 2}
    report = {"folder": "my run #1", "dense": dense, "pruned": dense, "export": {"predict": predict}}
    steps = [step for step in next_steps(report, []) if "amc" in step]
    assert len(steps) == 3
    assert all("amc 'run_dir=my run #1' stages=[" in step for step in steps)
    assert _run_it(report).endswith("python 'my run #1/exports/predict.py' PICTURE.jpg --network model.onnx")


def test_links_hold_to_folders_of_any_name(tmp_path):
    path = tmp_path / "compared.html"
    write_compared_html(path, "2 runs", [["run"]], [], [("my run #1", "my run #1/report.html")], [], {})
    assert 'href="my%20run%20%231/report.html"' in path.read_text()


@pytest.mark.parametrize(
    ("model", "loads"),
    [
        ("resnet20", "amc.load_pruned('r')"),
        ("timm:resnet18.a1_in1k", "amc.load_pruned('r')"),
        ("mine.nets.make", "import make\n\n"),
        ("mine.nets:make", "make()"),
    ],
)
def test_the_lines_that_load_a_network_build_that_of_a_user(model, loads):
    text = load_snippet({"folder": "r", "model": model})
    assert loads in text
    compile(text, "snippet", "exec")


def test_the_interval_of_a_speedup_needs_six_rounds():
    def timed(count):
        dense = [2.0 + 0.01 * place for place in range(count)]
        return {"dense": {"samples_ms": dense}, "pruned": {"samples_ms": [1.0] * count}}

    assert interval_of_speedup(timed(5)) is None
    low, high = interval_of_speedup(timed(30))
    assert 2.0 < low < 2.145 < high < 2.29


@pytest.mark.parametrize("levels", [[], [Level("dense", 3.0)]])
def test_a_chart_has_a_title_for_each_mark_and_needs_two_places(levels):
    places = [(0.0, 1.0, "first"), (1.0, 2.5, "second <b>")]
    drawn = chart("What it shows", [Series("s", "accent", places, "line")], "x", "y", levels)
    assert Page(drawn).tags["circle"] == 2
    assert "<title>second &lt;b&gt;</title>" in drawn
    assert ("dense: 3.00" in drawn) == bool(levels)
    assert chart("one", [Series("s", "accent", places[:1])], "x", "y", levels) == ""


def test_a_series_without_marks_is_left_out():
    places = [(0.0, 1.0, "first"), (1.0, 2.5, "second")]
    some, none = (Series(name, "accent", own, "steps") for name, own in (("some", places), ("none", [])))
    assert chart("t", [none, some], "x", "y") == chart("t", [some], "x", "y") != ""


@pytest.mark.parametrize("phase", [None, "relaxed"])
def test_a_search_without_a_network_within_the_budget_is_compared_with_another(tmp_path, phase):
    relaxed = [own | {"phase": phase} for own in full_episodes() if phase]
    searches = {"stopped": relaxed, "ended": full_episodes()}
    write_compared_html(tmp_path / "compared.html", "2 runs", [["run"]], [], [], [], searches)
    page = Page((tmp_path / "compared.html").read_text())
    assert page.tags["polyline"] == 1
    assert "stopped" not in page.text


def test_the_best_return_and_the_network_that_unseen_images_chose_are_told_apart():
    episodes, judged = full_episodes(), {"held_out_best": 0.4, "best_episode": 0}
    best = "The best of 3 episodes is number 1, the last of 2 improvements"
    assert convergence(episodes, {}).startswith(best)
    assert convergence(episodes, judged | {"best_episode": 1}).startswith(best)
    told = convergence(episodes, judged)
    assert told.startswith("The best return of 3 episodes is that of number 1, the last of 2 improvements")
    assert "Number 0 was chosen on the unseen images." in told
    relaxed = [own | {"phase": "relaxed"} for own in episodes]
    assert convergence(relaxed, {}) == "No network within the budget was evaluated."


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_sticks_out_of_the_page_in_a_browser(tmp_path, width):
    write_html(tmp_path / "report.html", full_report(), full_episodes(), full_strategy())
    frame = f"""<iframe id="f" src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
    <script>document.getElementById("f").onload = function () {{
      var own = this.contentDocument, out = [];
      own.querySelectorAll("main *").forEach(function (e) {{
        if (e.getBoundingClientRect().right > {width} + 1 && !e.closest("thead")) out.push(e.tagName);
      }});
      document.title = "out:" + out.join() + ";hints:" + own.querySelectorAll(".hint").length;
    }};</script>"""
    (tmp_path / "frame.html").write_text(frame)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=3000",
    ]
    place = (tmp_path / "frame.html").as_uri()
    ended = subprocess.run(
        [CHROMIUM, *options, "--enable-logging=stderr", "--dump-dom", place],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>out:;hints:1</title>" in ended.stdout
    assert "CONSOLE" not in ended.stderr


def test_missing_parts_leave_their_sections_out(tmp_path):
    path = tmp_path / "report.html"
    stage = {"top1": 90.0, "macs": 1000, "params": 10}
    write_html(path, {"dense": stage, "pruned": stage}, [], {})
    page = Page(path.read_text())
    assert page.headings == ["What did it cost?", "What next?"]
    assert page.tags["svg"] == 0
    assert "Fine-tuned" not in page.text
    assert "as fast" not in page.text


def test_runtime_measured_for_one_stage_only_shows_a_dash(tmp_path):
    report = full_report()
    report["pruned"]["latency_ms"] = {}
    write_html(tmp_path / "report.html", report, [], {})
    assert "–" in Page((tmp_path / "report.html").read_text()).text


def without_accuracy() -> list[dict[str, Any]]:
    widths = ([16, 32], [8, 8], [16, 16])
    return [
        {**episode, "top1": None, "likeness": -0.1, "params_ratio": 0.4, "widths": own}
        for episode, own in zip(full_episodes(), widths, strict=True)
    ]


def test_a_network_without_accuracy_shows_its_likeness_and_no_percentage(tmp_path):
    report, episodes = full_report(), without_accuracy()
    for stage in ("dense", "pruned", "finetuned"):
        report[stage]["top1"] = None
    report["search"] |= {"best_top1": None, "dense_top1": None, "dense_return": -0.0}
    episodes[0] |= {"params_ratio": 0.3, "macs_ratio": 0.4}
    fronts = {cost: {"return": episodes[:2], "top1": []} for cost in ("macs", "params")}
    write_html(tmp_path / "report.html", report, episodes, full_strategy(), fronts)
    page = Page((tmp_path / "report.html").read_text())
    assert page.headings == [*QUESTIONS, "Provenance"]
    assert "Dense–94.60" in page.text
    assert all(word not in page.text for word in ("None", "0.00\N{NO-BREAK SPACE}%", "top-1 in the search"))


def test_budgets_of_a_network_without_accuracy_have_the_front_of_the_return_alone(tmp_path):
    episodes = without_accuracy()
    episodes[0] |= {"params_ratio": 0.3}
    fronts = {cost: {"return": episodes[:2], "top1": []} for cost in ("macs", "params")}
    rows = [["", "MACs M"], ["dense", "94.60"]]
    write_budgets_html(
        tmp_path / "budgets.html",
        {},
        rows,
        episodes,
        fronts,
        dense={"top1": None},
        chosen=episodes[:1],
        links=[("macs_0.50", "macs_0.50/report.html")],
    )
    page = Page((tmp_path / "budgets.html").read_text())
    assert page.headings == [
        "What did each budget give?", "The report of each run", "How much accuracy for how much cost?"
    ]  # fmt: skip
    assert 'href="macs_0.50/report.html"' in (tmp_path / "budgets.html").read_text()
    assert page.tags["svg"] == 1
    assert "top-1" not in page.text


def test_a_markdown_table_escapes_bars_and_line_breaks():
    assert markdown([["a", "b"], ["x | y", "1\n2"]]) == "| a | b |\n|---|---|\n| x \\| y | 1 2 |"


def test_a_terminal_table_is_aligned():
    assert aligned([["", "MACs"], ["dense", "1.5"]]) == "       MACs\ndense   1.5"


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (-123.45, "-123.5"), (1.234, "1.23"), (0.12345, "0.1235")]
)
def test_numbers_have_three_or_four_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("told", "panels"),
    [
        ([{"critic_rank": 0.5, "explored": 0.1}, {"critic_rank": None, "explored": 0.0}], 2),
        ([{"explored": 0.1}, {"explored": 0.2}], 1),
        ([{"explored": 0.1}, None], 1),
        ([None, {"critic_rank": 0.3}], 1),
        ([{"loss": 2.0}, {"loss": 1.0}], 0),
        ([None, None], 0),
    ],
)
def test_what_an_agent_tells_of_its_learning_is_drawn(told, panels):
    episodes = [
        {"episode": place} | ({} if each is None else {"learning": each}) for place, each in enumerate(told)
    ]
    drawn = learning_svg(episodes)
    assert len(re.findall('id="learning-axes_', drawn)) == panels
    assert bool(drawn) == bool(panels)


def test_every_runtime_of_a_chain_is_drawn():
    names = [f"runtime{number}" for number in range(7)]
    point = {"label": "dense", "top1": 90.0, "bytes": 2048, "latency_ms": dict.fromkeys(names, 1.0)}
    drawn = chain_svg([point, {**point, "label": "pruned"}])
    assert all(f">{name}<" in drawn for name in names)


def test_sizes_are_those_of_a_runtime_that_runs_the_quantized_network():
    """The first runtime has no file, the second none of the quantized network."""
    report, own = full_report(), ({}, {"dense": 9216}, {"dense": 8192, "quantized": 2048})
    report["latency"] = [{"comparison": None, "file_bytes": each} for each in own]
    del report["pruned"], report["finetuned"]
    report["quantized"] = {"top1": 91.0}
    assert [row[2] for row in chain_rows(report)] == ["File, KiB", "8.0", "2.0"]
    assert "its file shrinks from 8.0 KiB to 2.0 KiB" in gain(report)
    del report["latency"][2]
    assert [row[2] for row in chain_rows(report)][1:] == ["9.0", "–"]


def test_the_time_of_a_stage_that_was_taken_up_again_is_a_least():
    report = {"stage_seconds": {"train": 3.0, "search": 20.0}, "resumed": ["search"]}
    rows = [["train", "3 s"], ["search", "at least 20 s"], ["together", "at least 23 s"]]
    assert durations(report)[1:] == rows
    assert durations({**report, "resumed": []})[-1] == ["together", "23 s"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.031, "0.031 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7800, "2 h 10 min")]
)
def test_durations_are_told_in_two_units(seconds, text):
    assert duration(seconds) == text
