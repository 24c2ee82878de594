"""Without these, the switch of languages would leave parts of the page in the other one."""

import gradio as gr

from glmtune.ui.texts import Texts


def test_the_switch_changes_all_texts_of_a_component() -> None:
    texts = Texts()
    button = texts.add(gr.Button("Send", render=False), value="Send")
    box = texts.add(gr.Textbox(render=False), label="Run folder", placeholder="Ask something")
    assert texts.components == [button, box]
    chinese, english = texts.updates("zh"), texts.updates("en")
    assert english[0]["value"] == "Send"
    assert (english[1]["label"], english[1]["placeholder"]) == ("Run folder", "Ask something")
    assert [update["__type__"] for update in chinese] == ["update", "update"]
    shown = [chinese[0]["value"], chinese[1]["label"], chinese[1]["placeholder"]]
    assert all(not text.isascii() for text in shown)
