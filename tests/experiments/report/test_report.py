import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

from experiments.report import write_html

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
