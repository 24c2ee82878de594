"""Without these, a request could load what it must not, or be answered by another model than it names."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from glmtune.config import embedded_base
from glmtune.errors import AdapterError, ConfigError, ModelError
from glmtune.inference.engine import engine as engine_module
from glmtune.inference.engine.engine import Engine
from glmtune.loading.bases import load_base
from glmtune.server.auth import ApiKeys, read_keys
from glmtune.server.models import Models, find_runs, name_of
from glmtune.server.running import address_of, is_open_to_network, open_socket


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> Path:
    """A folder with an adapter `shouty` that changes what the embedded base says, and one outside of it."""
    import torch

    folder = tmp_path_factory.mktemp("runs")
    model = get_peft_model(load_base(None)[0], LoraConfig(r=2, target_modules=["query_key_value"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    model.peft_config["default"].base_model_name_or_path = str(embedded_base())
    for place in ("allowed/shouty", "outside/other"):
        model.save_pretrained(folder / place)
    (folder / "allowed" / "link").symlink_to(folder / "outside" / "other")
    (folder / "allowed" / "empty").mkdir()
    return folder


def say(client, model):
    answer = client.post(
        "/v1/chat/completions",
        json={"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "你是谁？"}]},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_adapters_come_and_go_while_the_server_runs(connect, adapters):
    client = connect(allowed=(str(adapters / "allowed"),))
    base = say(client, "base")
    assert client.post("/v1/adapters", json={"path": "shouty"}).json()["id"] == "shouty"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["shouty", "base"]
    assert say(client, "shouty") != base == say(client, "base")
    assert client.post("/v1/adapters", json={"path": "shouty"}).status_code == 409
    assert client.post("/v1/adapters", json={"path": "shouty", "name": "again"}).json()["id"] == "again"
    assert client.delete("/v1/adapters/again").json()["deleted"]
    assert client.delete("/v1/adapters/shouty").status_code == 200
    assert client.delete("/v1/adapters/shouty").status_code == 404
    assert client.delete("/v1/adapters/base").status_code == 409
    assert client.get("/v1/models/shouty").status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../outside/other", 403),
        ("shouty/../../outside/other", 403),
        ("/etc", 403),
        ("link", 403),
        ("..", 403),
        ("nowhere", 404),
        ("empty", 404),
        (".", 404),
        ("a\0b", 400),
        ("x" * 4000, 400),
    ],
)
def test_nothing_is_loaded_from_outside_of_the_allowed_folders(connect, adapters, path, status):
    client = connect(allowed=(str(adapters / "allowed"),))
    answer = client.post("/v1/adapters", json={"path": path})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert len(client.get("/v1/models").json()["data"]) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "base", "..", "a b", "<script>"])
def test_names_that_lead_elsewhere_are_refused(connect, adapters, name):
    client = connect(allowed=(str(adapters / "allowed"),))
    assert client.post("/v1/adapters", json={"path": "shouty", "name": name}).status_code == 400


def test_without_an_allowed_folder_nothing_is_loaded(client, adapters):
    assert client.post("/v1/adapters", json={"path": str(adapters / "allowed" / "shouty")}).status_code == 403


def test_runs_of_one_name_or_of_several_bases_are_told_apart(adapters, tiny_base, tmp_path):
    shouty = str(adapters / "allowed" / "shouty")
    assert list(find_runs([shouty], None).adapters) == ["shouty"]
    assert list(find_runs([shouty, f"again={shouty}"], None).adapters) == ["shouty", "again"]
    with pytest.raises(ConfigError, match="two runs are called shouty"):
        find_runs([shouty, shouty], None)
    with pytest.raises(ConfigError, match="on one base"):
        find_runs([shouty, str(tiny_base)], None)
    assert find_runs([shouty], str(tiny_base)).base_path == str(tiny_base)
    with pytest.raises(ModelError, match="does not exist"):
        find_runs([str(tmp_path / "nowhere")], None)
    with pytest.raises(ConfigError, match="mine=: expected NAME=RUN"):  # as an unset shell variable gives
        find_runs(["mine="], None)
    assert name_of(Path("output/ChatGLM/checkpoint-40")) == "ChatGLM:checkpoint-40"


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("GLMTUNE_API_KEY", raising=False)
    assert not read_keys(None)
    monkeypatch.setenv("GLMTUNE_API_KEY", "from-the-environment")
    assert read_keys(None).allow(b"Bearer from-the-environment")
    file = tmp_path / "keys"
    file.write_text("# ours\n  # indented, too\nfirst-key-1\n\nsecond-key-2\n")
    keys = read_keys(str(file))
    assert not keys.allow(b"Bearer # indented, too")
    assert keys.allow(b"bearer second-key-2")
    assert not keys.allow(b"Bearer from-the-environment")
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="no key"):
        read_keys(str(file))
    with pytest.raises(ConfigError, match="at least 8"):
        ApiKeys(["short"])
    assert "first-key-1" not in json.dumps(vars(keys), default=repr)


def test_a_port_in_use_is_told_before_anything_is_loaded():
    with open_socket("127.0.0.1", 0) as taken:
        with pytest.raises(ConfigError, match=r"cannot listen on port \d+ of 127.0.0.1: another program is using it\."):
            open_socket("127.0.0.1", taken.getsockname()[1])
        assert not is_open_to_network(taken)
        assert address_of(taken) == f"http://127.0.0.1:{taken.getsockname()[1]}"
    with open_socket("0.0.0.0", 0) as opened:
        assert is_open_to_network(opened)
    with pytest.raises(ConfigError, match="cannot listen"):
        open_socket("no such host", 0)


def test_replies_go_on_while_an_adapter_is_read(connect, adapters, monkeypatch):
    client = connect(allowed=(str(adapters / "allowed"),))
    is_reading, has_answered = threading.Event(), threading.Event()
    read = engine_module.read_adapter

    def read_slowly(*arguments):
        is_reading.set()
        assert has_answered.wait(30)
        return read(*arguments)

    monkeypatch.setattr(engine_module, "read_adapter", read_slowly)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(client.post, "/v1/adapters", json={"path": "shouty"})
        assert is_reading.wait(30)
        body = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        has_answered.set()
        assert loading.result().status_code == 200
    client.delete("/v1/adapters/shouty")


def test_an_adapter_with_a_damaged_record_is_not_kept(connect, adapters, engine, tmp_path):
    shutil.copytree(adapters / "allowed" / "shouty", tmp_path / "damaged")
    (tmp_path / "damaged" / "glmtune.json").write_text("{")
    client = connect(allowed=(str(tmp_path),))
    answer = client.post("/v1/adapters", json={"path": "damaged"})
    assert answer.status_code == 400
    assert "is damaged" in answer.json()["error"]["message"]
    assert "damaged" not in engine.adapters


def test_of_two_adapters_that_want_one_name_the_first_gets_it(embedded, adapters):
    models = Models(Engine(embedded.model, embedded.tokenizer, max_rows=1), embedded)
    models.add_new("one", adapters / "allowed" / "shouty")
    with pytest.raises(AdapterError, match="already a model one"):
        models.add_new("one", adapters / "outside" / "other")
    models.add("one", adapters / "outside" / "other")  # the page replaces its own
