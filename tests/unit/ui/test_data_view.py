"""Without these, the page could colour what is not learnt, or show a file's text as HTML of its own."""

import json
import re
from pathlib import Path

from glmtune.ui.data_view import coloured_samples


def test_the_answer_is_coloured_and_the_question_is_not(tmp_path: Path) -> None:
    row = {"instruction": "<b>问</b>", "input": "", "output": "<script>答</script>"}
    (tmp_path / "data.json").write_text(json.dumps([row]), encoding="utf-8")
    shown = coloured_samples(str(tmp_path / "data.json"), "", "你是客服。", 256)
    learnt = "".join(re.findall(r'<span class="learnt">(.*?)</span>', shown))
    assert "&lt;script&gt;答&lt;/script&gt;" in learnt
    assert "&lt;b&gt;问&lt;/b&gt;" in shown
    assert "你是客服" in shown
    assert "问" not in learnt
    assert "<b>" not in shown
    assert "<script>" not in shown
