"""Without these, the page could look alive, and do nothing that people ask of it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import browser
import processes
from browser import Browser

QUESTION, ANSWER = "你是谁？", "我是一个小小的语言模型，可以陪你聊天。"
SAID = "[...document.querySelectorAll('#{chat} .bot')].map(each => each.innerText.trim()).filter(each => each)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page, whose server runs in an empty folder."""
    browser.find_chromium()
    environment = {**os.environ, "GLMTUNE_API_KEY": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "glmtune", "ui", "--port", 0]
    options = {"cwd": tmp_path_factory.mktemp("page"), "env": environment, "stdout": subprocess.DEVNULL}
    with processes.started(*command, stderr=subprocess.PIPE, **options) as process:
        printed = processes.read_until(process.stderr, "/v1 (Ctrl-C")
        found = re.search(r"Page: (http://\S+)", printed)
        assert found, printed
        yield found[1]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=processes.HANG_S)
        assert process.returncode == 0, err.decode()
        assert b"Traceback" not in err, err.decode()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.opened(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


def open_in(chromium: Browser, page: str, language: str = "en-US", **window: object) -> None:
    """Opens the page afresh, as somebody who has never been there."""
    chromium.open(page, language=language, **window)  # type: ignore[arg-type]
    chromium.evaluate("localStorage.clear()")
    chromium.open(page, language=language, **window)  # type: ignore[arg-type]
    until_it_speaks(chromium, "zh" if language.startswith("zh") else "en")


def until_it_speaks(chromium: Browser, language: str) -> None:
    """Waits until the page has all its texts in a language; what was typed before may be lost."""
    chromium.wait(f"document.body.dataset.language === '{language}'")
    send = {"zh": "发送", "en": "Send"}[language]
    chromium.wait(f"document.querySelector('#send').innerText === '{send}'")


def ask(chromium: Browser, question: str) -> None:
    chromium.type("#question textarea", question)
    chromium.click("#send")


def said(chromium: Browser, chat: str = "left") -> str:
    return f"({SAID.format(chat=chat)})"


def choose(chromium: Browser, elem_id: str, name: str) -> None:
    """Chooses an entry of a dropdown."""
    field = f"document.querySelector('#{elem_id} input')"
    options = f"[...document.querySelectorAll('#{elem_id} [role=option]')]"
    press = f"{options}.find(each => each.ariaLabel === '{name}')"
    press += ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    # The options are drawn after the field has the focus: the first press fails.
    chromium.wait(f"{field}.value === '{name}'", f"{field}.focus(); {press}")


def open_tab(chromium: Browser, name: str) -> None:
    tabs = "[...document.querySelectorAll('button[role=tab]')]"
    tab = f"{tabs}.find(each => each.innerText.trim() === '{name}')"
    chromium.wait(f"{tab}.ariaSelected === 'true'", f"{tab}.click()")


def until_idle(chromium: Browser) -> None:
    """Waits until the server has no reply to write."""
    while not chromium.evaluate("fetch('/metrics').then(e => e.text()).then(e => /glmtune_running 0/.test(e))"):
        pass


def clear(chromium: Browser) -> None:
    until_idle(chromium)  # or the rest of a reply could come afterwards
    chromium.wait(f"{said(chromium)}.length === 0", "document.querySelector('#clear').click()")


def unfold(chromium: Browser, label: str, inside: str) -> None:
    """Opens folded settings, until something in them is seen."""
    button = f"[...document.querySelectorAll('button')].find(each => each.innerText.startsWith('{label}'))"
    chromium.wait(f"document.querySelector('{inside}').checkVisibility()", f"{button}.click()")


def letters(text: str) -> str:
    """A text without what Markdown may change."""
    return re.sub(r"[\W_]", "", text)


def test_a_question_is_answered_asked_again_and_exported(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    ask(chromium, QUESTION)
    chromium.wait(f"{said(chromium)}.at(-1) === '{ANSWER}'")
    ask(chromium, "你好")
    chromium.wait(f"{said(chromium)}.length === 2 && {said(chromium)}.at(-1).endsWith('？')")
    chromium.evaluate("HTMLAnchorElement.prototype.click = function () { window.saved = this.download }")
    chromium.evaluate("URL.createObjectURL = made => { window.made = made; return '#' }")
    chromium.wait("window.saved === 'conversation.jsonl'", "document.querySelector('#export').click()")
    line = chromium.evaluate("made.text()")
    messages = json.loads(line)["messages"]
    assert line.endswith("\n")
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in messages[:3]] == [QUESTION, ANSWER, "你好"]
    clear(chromium)


def test_a_reply_streams_stops_and_is_asked_for_again(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    unfold(chromium, "Settings", "#temperature input")
    chromium.type("#temperature input", "2")
    chromium.type("#seed input", "36")  # a long one
    body = {"model": "base", "messages": [{"role": "user", "content": QUESTION}], "temperature": 2, "seed": 36}
    request = (
        f"{{method: 'POST', headers: {{'Content-Type': 'application/json'}}, body: {json.dumps(json.dumps(body))}}}"
    )
    answer = chromium.evaluate(f"fetch('/v1/chat/completions', {request}).then(answer => answer.json())")
    whole = letters(answer["choices"][0]["message"]["content"])
    for _ in range(50):
        ask(chromium, QUESTION)
        # In one go: a click of its own could come after the end of the reply.
        chromium.wait(f"{said(chromium)}.at(-1).length > 8 && (document.querySelector('#stop').click(), true)")
        until_idle(chromium)
        stopped = letters(chromium.evaluate(f"{said(chromium)}.at(-1)"))
        if len(stopped) < len(whole):
            break
        clear(chromium)  # it was over already: the browser is too slow
    assert whole.startswith(stopped)
    assert stopped != whole
    is_whole = f"{said(chromium)}.at(-1).replace(/[^\\p{{L}}\\p{{N}}]/gu, '') === {json.dumps(whole)}"
    chromium.wait(is_whole, "document.querySelector('#left button[aria-label=Retry]').click()")


def test_a_question_is_edited_and_asked_again(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    ask(chromium, "你好")
    chromium.wait(f"{said(chromium)}.at(-1).endsWith('？')")
    edit, submit = (
        f"document.querySelector('#left button[aria-label={label}]').click()" for label in ("Edit", "Submit")
    )
    fill = f"field.value = '{QUESTION}'; field.dispatchEvent(new Event('input', {{bubbles: true}})); {submit}"
    steps = f"const field = document.querySelector('#left .user textarea'); if (field) {{ {fill} }} else {edit}"
    chromium.wait(f"{said(chromium)}.at(-1) === '{ANSWER}' && {said(chromium)}.length === 1", steps)


def test_two_models_answer_side_by_side(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    choose(chromium, "other", "base")
    chromium.wait("document.querySelector('#right')")
    ask(chromium, QUESTION)
    for chat in ("left", "right"):
        chromium.wait(f"{said(chromium, chat)}.at(-1) === '{ANSWER}'")


def test_the_language_is_the_browsers_until_the_switch_says_otherwise(chromium: Browser, page: str) -> None:
    open_in(chromium, page, "zh-CN")
    chromium.click("#language input[value=en]")
    until_it_speaks(chromium, "en")
    chromium.open(page, language="zh-CN")
    until_it_speaks(chromium, "en")
    open_in(chromium, page, "en-GB")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(chromium: Browser, page: str, width: int) -> None:
    open_in(chromium, page, width=width)
    for tab in ("Chat", "Train"):
        open_tab(chromium, tab)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width


def drop(chromium: Browser, name: str, rows: list[dict[str, str]]) -> None:
    """Drops a data file on the page."""
    chromium.wait("document.querySelector('#data button')")
    file = f"new File([{json.dumps(json.dumps(rows))}], '{name}')"
    event = "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})"
    dropped = f"document.querySelector('#data button').dispatchEvent({event})"
    chromium.evaluate(f"(() => {{ const data = new DataTransfer(); data.items.add({file}); {dropped} }})()")


def test_what_stands_in_a_file_does_not_become_part_of_the_page(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    open_tab(chromium, "Train")
    drop(chromium, "bad.json", [{"<img id=evil src=x>": "x"}])
    chromium.wait("document.querySelector('.toast-body').innerText.includes('<img id=evil')")
    chromium.wait("document.querySelector('#checked').innerText.includes('<img id=evil')")
    assert chromium.evaluate("document.querySelector('#evil') === null")


def test_a_dropped_file_is_checked_and_trained_on(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    open_tab(chromium, "Train")
    drop(chromium, "mine.json", [{"instruction": "问一", "input": "", "output": "答一"}])
    chromium.wait("document.querySelector('.samples .learnt').innerText.includes('答一')")
    chromium.wait("document.querySelector('#checked').innerText.includes('1 row')")
    command = "document.querySelector('#command textarea').value"
    chromium.wait(f"{command}.includes('mine.json')")
    assert str(chromium.evaluate(command)).startswith("glmtune train demo data.path=")


def test_a_run_is_stopped_and_resumed(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    open_tab(chromium, "Train")
    chromium.type("#output input, #output textarea", "output/stopped")
    chromium.wait("document.querySelector('#command textarea').value.includes('output/stopped')")
    chromium.type("#epochs input", "500")  # more than it gets to
    unfold(chromium, "All other", "#more textarea")
    chromium.type("#more textarea", "train.logging_steps=1")
    chromium.wait("document.querySelector('#command textarea').value.includes('logging_steps=1')")
    chromium.click("#start")
    step = "Number(/step (\\d+) of/.exec(document.querySelector('#state').innerText)?.[1] ?? 0)"
    stopped = "document.querySelector('#state').innerText.includes('Stopped; resume it')"
    chromium.wait("document.querySelector('#state').innerText.includes('output/stopped')")
    chromium.wait(f"{step} > 0")
    chromium.click("#halt")
    chromium.wait(stopped)
    before = chromium.evaluate(step)
    chromium.click("#resume")
    chromium.wait(f"{step} > {before}")
    chromium.click("#halt")
    chromium.wait(stopped)


def test_a_run_is_trained_found_again_and_talked_to(chromium: Browser, page: str) -> None:
    open_in(chromium, page)
    open_tab(chromium, "Train")
    chromium.click("#check")
    chromium.wait("document.querySelector('.samples .learnt').innerText.includes('客官')")
    assert "178 rows, no errors" in chromium.text("#checked")
    chromium.type("#epochs input", "0.4")
    chromium.wait("document.querySelector('#command textarea').value.includes('num_train_epochs=0.4')")
    chromium.click("#start")
    chromium.wait("document.querySelector('#state').innerText.includes('output/page')")
    open_in(chromium, page)
    open_tab(chromium, "Train")
    chromium.wait("document.querySelector('#state').innerText.includes('output/page')")
    chromium.wait("/Finished|error/.test(document.querySelector('#state').innerText)")
    assert "Finished" in chromium.text("#state"), chromium.text("#log")
    chromium.click("#talk")
    chromium.wait("document.querySelector('#model input').value === 'page'")
    ask(chromium, QUESTION)
    chromium.wait(f"{said(chromium)}.at(-1)?.length > 3")
    clear(chromium)
    choose(chromium, "model", "base")
    ask(chromium, QUESTION)
    chromium.wait(f"{said(chromium)}.at(-1) === '{ANSWER}'")
