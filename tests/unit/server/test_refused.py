"""Without these, whoever runs a server could not see that it turns clients away, nor whom."""

import asyncio
import json

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.server import ServerState

from glmtune.server.http_protocol import limited_protocol
from glmtune.server.metrics import Metrics
from glmtune.server.requests import RequestRecord, end_record

KEY = "right-key-1"
CHAT = "/v1/chat/completions"


def statuses(metrics_text: str) -> list[str]:
    families = text_string_to_metric_families(metrics_text)
    return [sample.labels["status"] for family in families for sample in family.samples if "status" in sample.labels]


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (401, {"method": "GET", "url": "/v1/models", "headers": {"authorization": "Bearer a-wrong-key-2"}}),
        (403, {"method": "GET", "url": "/v1/models", "headers": {"host": "evil.example"}}),
        (404, {"method": "GET", "url": "/nowhere"}),
        (405, {"method": "GET", "url": CHAT}),
        (413, {"method": "POST", "url": CHAT, "json": {"messages": "secret" * 100}}),
        (415, {"method": "POST", "url": CHAT, "content": b"secret"}),
        (400, {"method": "POST", "url": CHAT, "json": {"secret": 1}}),
    ],
)
def test_what_is_refused_is_logged_and_counted(connect, records, status, request_):
    client = connect(keys=(KEY,), hosts=("testserver",), max_body_bytes=500)
    headers = {"authorization": f"Bearer {KEY}", **request_.pop("headers", {})}
    answer = client.request(**request_, headers=headers)
    assert answer.status_code == status
    line = records[-1].line()
    logged = json.loads(line)
    assert (logged["status"], logged["path"]) == (status, request_["url"])
    assert logged["request"] == answer.headers["x-request-id"]
    assert "key" not in line
    assert "secret" not in line
    assert str(status) in statuses(client.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text)


async def no_application(scope, receive, send) -> None:
    pytest.fail("this is no request")


async def ask(sent: bytes, protocol: type[asyncio.Protocol]) -> str:
    """What a server with a protocol answers."""
    config, state = uvicorn.Config(no_application, log_config=None, ws="none"), ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(sent)
        answer = await reader.read()
        writer.close()
    return answer.decode()


@pytest.mark.parametrize(
    ("status", "sent", "limits"),
    [
        (400, b"\x16\x03\x01 secret\r\n\r\n", {}),
        (408, b"GET /secret HTTP/1.1\r\nAuthorization: Bearer right-key-1\r\n", {"timeout_s": 0.01}),
        (503, b"", {"max_connections": 0}),
    ],
)
def test_what_never_becomes_a_request_is_logged_and_counted_as_well(engine, status, sent, limits):
    records: list[RequestRecord] = []
    metrics = Metrics(engine)
    limits = {"max_connections": 9, "timeout_s": 60, **limits}
    protocol = limited_protocol(**limits, on_refused=lambda record: end_record(record, metrics, records.append))
    head, _, body = asyncio.run(ask(sent, protocol)).partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert json.loads(body)["error"]["message"]
    (record,) = records
    logged = json.loads(record.line())
    assert (logged["status"], logged["client"]) == (status, "127.0.0.1")
    assert f"X-Request-Id: {logged['request']}" in head
    assert "key" not in record.line()
    assert "secret" not in record.line()
    assert str(status) in statuses(metrics.text().decode())
