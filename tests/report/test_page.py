"""The page of a made-up run: complete, half-finished, running, hostile, and of a single stage."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from report.fake_run import HOSTILE, write_run
from tunemill.errors import DataError
from tunemill.report.folder import STAGES
from tunemill.report.page import write_report
from tunemill.report.sections.duplicates import marked_difference
from tunemill.store import Location

EVERY_SECTION = {
    "funnel", "results", "plan", "balance", "latency", "cleaning", "duplicates", "template", "training", "sample", "recipe",
}  # fmt: skip
_VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use"}


class Checker(html.parser.HTMLParser):
    """Collects tags, anchors, links and texts, and holds every tag to be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.add(tag)
        self.open += [] if tag in _VOID else [tag]
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if tag == "section" else []
        self.links += [values[name] for name in ("href", "src", "xlink:href", "data") if name in values]
        assert not any(name.startswith("on") for name in values)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in _VOID else self.open

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost tag."""
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """The report of a complete run."""
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "fake"))


def test_a_finished_run_has_every_section_in_valid_html(finished: Location) -> None:
    """All parts are there, tags close in order and the contents list leads to each part."""
    found = Checker(finished.read_text())
    assert set(found.ids) == EVERY_SECTION
    assert {f"#{name}" for name in EVERY_SECTION} <= set(found.links)


def test_the_page_needs_nothing_else(finished: Location) -> None:
    """No script, no outside address, no second file: it works from a mail attachment without a network."""
    page = finished.read_text()
    found = Checker(page)
    assert all(link.startswith("#") for link in found.links)
    assert not found.tags & {"script", "iframe", "link", "img", "object", "form"}
    assert not re.search(r"url\((?!#)", page)
    assert len(page) < 1_000_000


def test_hostile_texts_stay_texts(finished: Location) -> None:
    """Texts of rows, clusters, pairs, prompts and configuration reach the reader as they are and the browser escaped."""
    page = finished.read_text()
    assert "<script" not in page
    assert page.count("alert(") == page.count("&lt;script&gt;alert(&#39;own&#39;)")
    assert "".join(Checker(page).text).count(HOSTILE) >= 5


def test_the_head_tells_the_result(finished: Location) -> None:
    """Rows, accuracy before and after with its interval, and money stand in the first lines."""
    text = " ".join(Checker(finished.read_text()).text)
    assert re.search(r"240 calls became \d+ training-ready rows", text)
    assert re.search(r"accuracy rose from 0\.\d{3} to [01]\.\d{3} \(difference \+0\.\d{3}, 95 % interval", text)
    assert "Spending cap $5.00" in text
    assert "120 prompts for each model from 3 different ones" in text


def test_right_to_left_texts_set_their_own_direction(finished: Location) -> None:
    """Every place that shows a row's text lets the text choose its direction."""
    page = finished.read_text()
    hebrew = [line for line in page.splitlines() if "השוק" in line and "<" in line]
    assert hebrew
    assert all('dir="auto"' in line for line in hebrew)


@pytest.mark.parametrize("until", ["generate", "dedup", "finetune"])
def test_a_half_finished_run_shows_what_there_is(tmp_path: Path, until: str) -> None:
    """Whatever stage a run stopped after, the page names the rest as not finished."""
    page = write_report(write_run(tmp_path / "run", rows=40, until=until)).read_text()
    text = " ".join(Checker(page).text)
    assert "unfinished" in text
    assert f"Not finished yet: {', '.join(STAGES[STAGES.index(until) + 1 :])}." in text


def test_a_running_training_shows_its_curve(tmp_path: Path) -> None:
    """metrics.jsonl alone, its last line half-written, is enough for the curve so far."""
    run = write_run(tmp_path / "run", rows=40, until="template")
    lines = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4, "tokens_per_s": 100.0} for step in range(1, 9)]
    run.join("finetune", "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9, "lo')
    found = Checker(write_report(run).read_text())
    assert "training" in found.ids
    assert "it is at step 8, 100 tokens/s" in " ".join(found.text)


def test_the_plan_is_what_the_run_kept_of_it(tmp_path: Path) -> None:
    """Where the topics file is gone, the figures that generate's manifest holds are shown."""
    run = write_run(tmp_path / "run", rows=40, until="generate")
    config = run.join("run.yaml").read_text()
    run.join("run.yaml").write_text(re.sub(r"topics:\n(\s+- .*\n)+", "topics: {file: gone.json}\n", config))
    manifest = json.loads(run.join("generate", "manifest.json").read_text())
    between = {"low": 70_001.0, "high": 70_002.0}
    figures = {"calls": 20, "input_tokens": between, "counted": True, "output_tokens": between, "usd": None}
    models = {name: {**figures, "hours": None, "bound_by": ""} for name in manifest["details"]["models"]}
    foreseen = {"prompts": 20, "combinations": 7, "example": "Say.", "hours": None, "usd": None, "models": models}
    manifest["details"]["foreseen"] = foreseen
    run.join("generate", "manifest.json").write_text(json.dumps(manifest))
    text = " ".join(Checker(write_report(run).read_text()).text)
    assert "gone.json" in text
    assert "20 prompts for each model from 7 different ones" in text
    assert "70,001 to 70,002" in text


def test_missing_columns_and_details_leave_their_part_out(tmp_path: Path) -> None:
    """A table without label, model and latency, and a manifest without details, still make a page."""
    run = write_run(tmp_path / "run", rows=40)
    for file in run.join("generate", "data").files() + run.join("dedup", "dropped").files():
        table = pq.read_table(file.path)
        kept = [name for name in table.column_names if name not in ("label", "model", "latency_s", "similarity")]
        pq.write_table(table.select(kept), file.path)
    for stage in ("clean", "template", "evaluate", "finetune"):
        manifest = run.join(stage, "manifest.json")
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"details": {}}))
    found = Checker(write_report(run).read_text())
    assert not {"latency", "results", "template"} & set(found.ids)
    assert {"funnel", "balance", "duplicates", "sample"} <= set(found.ids)


def test_an_approximate_search_shows_its_recall_with_an_interval(tmp_path: Path) -> None:
    """Whoever gave up exactness sees what it cost, and how many rows came too close to a protected one."""
    write_run(tmp_path, until="dedup")
    file = tmp_path / "dedup" / "manifest.json"
    manifest = json.loads(file.read_text())
    recall = {"sampled_rows": 1000, "true_pairs": 400, "found": 390, "recall": 0.975, "low": 0.9546, "high": 0.9864}
    manifest["details"] |= {"near_protected": 7, "engine": {"method": "approximate (ivf)", "recall": recall}}
    file.write_text(json.dumps(manifest))
    page = " ".join(write_report(Location(str(tmp_path))).read_text().split())
    assert "recall 0.9750, 95 % interval 0.9546 to 0.9864" in page
    assert "7 rows were too close to a protected row" in page


def test_a_stage_called_alone_has_a_page_too(tmp_path: Path) -> None:
    """The folder of a single dedup run is reported with its duplicates."""
    run = write_run(tmp_path / "run", rows=40, until="dedup")
    found = Checker(write_report(run.join("dedup")).read_text())
    assert found.ids == ["funnel", "balance", "duplicates", "sample", "recipe"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """The message says what is missing, and nothing is written."""
    with pytest.raises(DataError, match="is not the folder of a run"):
        write_report(Location.of(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_differing_words_are_marked_and_equal_ones_are_not() -> None:
    """Only what one text has and the other lacks is marked; scripts without spaces by character."""
    left, right = marked_difference("a red bridge & river", "a blue old bridge & river")
    assert left == "a <mark>red</mark> bridge &amp; river"
    assert right == "a <mark>blue old</mark> bridge &amp; river"
    assert marked_difference("老图书馆很好", "旧图书馆很好")[1] == "<mark>旧</mark>图书馆很好"


def test_texts_that_share_little_are_not_marked() -> None:
    """Where everything differs marks say nothing."""
    assert marked_difference("one two three", "vier fünf sechs") == ("one two three", "vier fünf sechs")
