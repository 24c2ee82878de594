"""Without these, a misspelt or impossible generation option would be ignored in silence."""

import pytest
import torch

from glmtune.errors import ConfigError
from glmtune.inference.options import build_generation_config, remembered_prompt


def test_defaults_are_greedy_and_fit_the_model(tiny):
    generation = build_generation_config(tiny.tokenizer, 512, {})
    assert generation.do_sample is False
    assert generation.max_new_tokens == 256
    assert generation.eos_token_id == tiny.tokenizer.stop_token_ids
    assert build_generation_config(tiny.tokenizer, 8192, {}).max_new_tokens == 512


def test_options_are_passed_on(tiny):
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    generation = build_generation_config(tiny.tokenizer, 512, options | {"num_beams": None})
    assert {name: vars(generation)[name] for name in options} == options
    assert generation.num_beams is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.5}, "did you mean temperature?"),
        ({"xyzzy": 1}, "xyzzy: unknown generation option"),
        ({"max_length": 100}, "use max_new_tokens"),
        ({"eos_token_id": 3}, "eos_token_id: not an option"),
        ({"do_sample": True, "temperature": 0}, "in place of temperature 0, use do_sample=false"),
        ({"do_sample": "yes"}, "do_sample: expected true or false, found 'yes'"),
        ({"do_sample": True, "top_p": 1.5}, "top_p: expected"),
        ({"temperature": 0.5}, "add do_sample=true"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number"),
        ({"max_time": float("inf")}, "max_time: expected a number of seconds"),
        ({"max_new_tokens": True}, "max_new_tokens: expected a whole number"),
        ({"max_new_tokens": 512}, "leaves no room for a prompt"),
        ({"early_stopping": "perhaps"}, "early_stopping"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature: expected"),
        ({"stop_strings": "x"}, "stop_strings: unknown generation option; the options are max_new_tokens"),
    ],
)
def test_faults(tiny, options, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("(", r"\(")):
        build_generation_config(tiny.tokenizer, 512, options)


def test_whole_numbers_will_do_where_transformers_wants_a_fraction(tiny):
    generation = build_generation_config(
        tiny.tokenizer, 512, {"do_sample": True, "temperature": 2, "repetition_penalty": 2, "max_new_tokens": 2}
    )
    output = tiny.model.generate(input_ids=torch.tensor([[3, 5, 100]]), generation_config=generation)
    assert 3 < output.shape[1] <= 3 + 2


def test_all_faults_at_once(tiny):
    with pytest.raises(ConfigError) as caught:
        build_generation_config(tiny.tokenizer, 512, {"temprature": 1.0, "top_p": 2, "max_new_tokens": 600})
    assert all(name in str(caught.value) for name in ("temprature", "top_p", "max_new_tokens", "do_sample"))


def test_prompt_that_the_tokenizer_remembers(tiny, monkeypatch):
    assert remembered_prompt(tiny.tokenizer, None, None) == ("chatglm3", None)
    monkeypatch.setitem(tiny.tokenizer.init_kwargs, "prompt_template", "tutorial")
    monkeypatch.setitem(tiny.tokenizer.init_kwargs, "system_prompt", "你是甄嬛")
    assert remembered_prompt(tiny.tokenizer, None, None) == ("tutorial", "你是甄嬛")
    assert remembered_prompt(tiny.tokenizer, "chatglm3", "") == ("chatglm3", "")
