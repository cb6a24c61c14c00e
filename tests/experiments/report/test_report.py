import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from experiments.report import write_budgets_html, write_html
from experiments.report.text import aligned, markdown, number

VOID = {"meta", "br"}
SECTIONS = ["Results", "Channels per group", "Search", "Accuracy against MACs", "Provenance"]


class Page(HTMLParser):
    """Checks that tags nest, and collects headings, tags, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
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


def test_full_report_is_well_formed_and_self_contained(tmp_path):
    path = tmp_path / "report.html"
    write_html(path, full_report(), full_episodes(), full_strategy())
    text = path.read_text()
    page = Page(text)
    assert page.headings == SECTIONS
    assert page.tags["svg"] == 3
    assert max(page.ids.values()) == 1
    assert page.tags.keys().isdisjoint({"script", "img", "link", "iframe"})
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used <= set(page.ids)
    for shown in ("50.0\N{NO-BREAK SPACE}%", "1.80×", "94.60", "92.00", "abc123", "ddpg", "16 / 64"):
        assert shown in page.text


def test_names_are_escaped_in_text_and_plots(tmp_path):
    path = tmp_path / "report.html"
    write_html(path, full_report(), full_episodes(), full_strategy())
    text = path.read_text()
    assert "<script" not in text
    assert "small &amp; &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "$a$ &lt;script&gt;" in text
    assert "b" * 80 not in text


def test_missing_parts_leave_their_sections_out(tmp_path):
    path = tmp_path / "report.html"
    stage = {"top1": 90.0, "macs": 1000, "params": 10}
    write_html(path, {"dense": stage, "pruned": stage}, [], {})
    page = Page(path.read_text())
    assert page.headings == ["Results"]
    assert page.tags["svg"] == 0
    assert "Fine-tuned" not in page.text
    assert "Speed-up" not in page.text


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
    fronts = {cost: {"return": episodes[:1], "top1": []} for cost in ("macs", "params")}
    write_html(tmp_path / "report.html", report, episodes, full_strategy(), fronts)
    page = Page((tmp_path / "report.html").read_text())
    assert page.headings == [
        "Results", "Channels per group", "Search", "Likeness against MACs", "Pareto fronts", "Provenance",
    ]  # fmt: skip
    assert page.tags["svg"] == 4  # one front, that of the return
    assert "likeness during the search" in page.text
    assert "Dense–94.60" in page.text
    assert all(
        word not in page.text
        for word in ("None", "0.00\N{NO-BREAK SPACE}%", "Top-1 accuracy", "top-1 during")
    )


def test_budgets_of_a_network_without_accuracy_have_the_front_of_the_return_alone(tmp_path):
    episodes = without_accuracy()
    fronts = {cost: {"return": episodes[:2], "top1": []} for cost in ("macs", "params")}
    rows = [["", "MACs M"], ["dense", "94.60"]]
    write_budgets_html(
        tmp_path / "budgets.html", {}, rows, episodes, fronts, dense={"top1": None}, chosen=episodes[:1]
    )
    page = Page((tmp_path / "budgets.html").read_text())
    assert page.headings == ["Budgets", "Pareto fronts"]
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
