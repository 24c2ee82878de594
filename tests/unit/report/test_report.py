"""Without these, a run would end without the page that says what it was, or with one that is wrong."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glmtune.errors import ConfigError
from glmtune.evaluation.evaluate import evaluate
from glmtune.report.blocks import Chart, Series
from glmtune.report.curves import line_chart, thinned
from glmtune.report.facts import RunFacts
from glmtune.report.settings import differing_settings, settings_in_words
from glmtune.report.write import write_report
from glmtune.training import finish
from glmtune.training.run import TrainResult

StartRun = Callable[..., TrainResult]
ATTACK = "<script>alert(1)</script>"


class Texts(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_every_run_ends_with_a_report(finished: Path) -> None:
    page, text = Texts(finished / "report.html"), (finished / "report.md").read_text(encoding="utf-8")
    for shown in ("training loss", "Curves", "loss (mean cross entropy", "norm of the gradient", "learning rate"):
        assert shown in page.text
        assert shown in text
    assert "svg" in page.tags
    assert "你是小满。" in page.text
    assert "samples, " in page.text
    assert f"glmtune chat {finished}" in text
    assert "GiB" in page.text
    assert "transformers" in page.text


def test_the_page_needs_nothing_beside_it(finished: Path) -> None:
    html = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|\bsrc=|@import|url\(", html)


def test_the_answers_given_in_training_are_shown(finished: Path) -> None:
    page = Texts(finished / "report.html")
    assert "第0个问题？" in page.text
    assert "before training" in page.text
    assert "这是第0个回答，没有别的。" in page.text


def test_what_is_wrong_with_the_data_is_shown_with_its_rows(finished: Path, eval_data: Path) -> None:
    text = Texts(finished / "report.html").text
    assert "8 of 8 rows for evaluation stand in training, too" in text
    assert re.search(rf"rows: {re.escape(str(eval_data))} 1 \+ \S+ 1, 2 \+", text)
    assert "Remove them from one of the two" in (finished / "report.md").read_text(encoding="utf-8")


def test_an_evaluation_is_shown_with_its_differences(run: Path, eval_data: Path) -> None:
    evaluate(run, eval_data, max_new_tokens=2)
    text = write_report([run]).with_name("report.md").read_text(encoding="utf-8")
    assert "| metric | base | run | difference |" in text
    loss = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))["candidates"][1]
    assert f"{loss['metrics']['data']['loss']:.4f}" in text
    assert "- base: " in text


def test_texts_of_the_data_stay_texts(run: Path) -> None:
    row = {"step": 9, "prompt": ATTACK, "label": ATTACK, "predict": f"| {ATTACK}\n# x"}
    (run / "eval_samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    page = Texts(write_report([run]))
    assert "script" not in page.tags
    assert ATTACK in page.text
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\n# x" not in text


def test_equal_questions_keep_an_answer_each(run: Path) -> None:
    rows = [{"step": 2, "index": index, "prompt": "q", "predict": text} for index, text in enumerate("ab")]
    again = [{**rows[1], "predict": "c"}]  # the run was resumed
    (run / "eval_samples.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in [*rows, *again]), encoding="utf-8"
    )
    assert [row["predict"] for row in RunFacts.read(run).samples] == ["a", "c"]


def test_the_report_is_in_the_users_language(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMTUNE_LANG", "zh")
    page = Texts(write_report([run]))
    assert "训练损失" in page.text
    assert "training loss" not in page.text


def test_a_run_that_was_interrupted_has_a_report_too(run: Path) -> None:
    (run / "all_results.json").unlink()
    with (run / "trainer_log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 3, "loss"')
    assert "The run has not ended" in Texts(write_report([run])).text


def test_runs_are_compared_with_the_settings_that_differ(finished: Path, run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "glmtune.json").read_text(encoding="utf-8"))
    record["config"]["lora"]["r"] = 64
    (run / "glmtune.json").write_text(json.dumps(record), encoding="utf-8")
    other = run.rename(tmp_path / "other")
    runs = [RunFacts.read(finished), RunFacts.read(other)]
    assert differing_settings(runs) == [("lora.r", ["8", "64"])]
    page = write_report([finished, other], tmp_path / "both")
    assert page.parent == tmp_path / "both"
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "| lora.r | 8 | 64 |" in text
    assert re.search(r"\| training loss \| ([\d.]+) \| \1 \|", text)


def test_runs_in_folders_of_the_same_name_are_told_apart(finished: Path, run: Path, tmp_path: Path) -> None:
    assert run.name == finished.name
    text = write_report([finished, run], tmp_path / "both").with_suffix(".md").read_text(encoding="utf-8")
    assert "All settings are the same." in text
    for folder in (finished, run):
        assert f"- {folder}: ".replace("_", "\\_") in text


def test_settings_are_said_in_words(finished: Path) -> None:
    words = dict(settings_in_words(RunFacts.read(finished)))
    assert words["samples per step"] == "8"
    assert words["length of the run"] == "2 steps"
    assert words["LoRA"] == "r=8, alpha=32, dropout=0.1"
    assert "eval_generate=3" in words["further settings"]


def test_what_is_no_run_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    for place in (tmp_path / "nowhere", tiny_base):
        with pytest.raises(ConfigError, match="expected a run folder"):
            write_report([place])


def test_a_report_that_fails_does_not_fail_the_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, start_run: StartRun
) -> None:
    def fail(runs: object) -> None:
        raise RuntimeError("no page today")

    monkeypatch.setattr(finish, "write_report", fail)
    result = start_run("train.max_steps=1")
    assert (result.output_dir / "all_results.json").is_file()
    assert "no page today" in caplog.text


def test_a_chart_has_the_ends_of_its_axes_and_one_point_is_seen() -> None:
    chart = line_chart(Chart("loss", [Series("a", [(5.0, 2.0)])], "{:.2f}"))
    assert "stroke-linecap:round" in chart
    assert chart.count("<path") == 5
    assert "nan" not in line_chart(Chart("flat", [Series("a", [(1.0, 0.0), (2.0, 0.0)])]))


def test_many_points_are_thinned_to_their_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    found = thinned(points)
    assert len(found) <= 400
    assert found[-1][0] == 9999
    assert all(abs(value - 0.5) < 0.05 for _, value in found)


def test_a_line_and_its_average_have_one_colour() -> None:
    points = [(1.0, 2.0), (2.0, 1.0)]
    lines = [Series("raw", points, is_faint=True), Series("average", points), Series("evaluation", points)]
    colours = re.findall(r"fill:none;stroke:([^;]+)", line_chart(Chart("loss", lines)))
    assert colours[0] == colours[1] != colours[2]
