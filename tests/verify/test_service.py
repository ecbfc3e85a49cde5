"""The verifier service over real connections: a real server and real workers."""

import gzip
import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn

from cipo_jax.config import Verify
from cipo_jax.verify import (
    CallsReference,
    MathReference,
    NumberReference,
    Status,
    StdioReference,
    VerifierPool,
    service,
)
from cipo_jax.verify.opening import open_pool
from cipo_jax.verify.remote import Endpoint, EndpointError, RefusedError, RemotePool
from cipo_jax.verify.service import ImpatientProtocol, make_app, serve
from cipo_jax.verify.wire import encode_reference

TOKEN = "a-token-for-the-tests-only"
MAX_BODY_BYTES = 100_000
MAX_PENDING = 8
SETTINGS = Verify(workers=2, deadline_s=4.0)
SEVEN = StdioReference(cases=(("3 4", "7"),))


def program(source: str) -> str:
    return f"```python\n{source}\n```"


RIGHT_PROGRAM = program("print(sum(map(int, input().split())))")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(SETTINGS) as pool:
        yield pool


@pytest.fixture(scope="module")
def address(pool: VerifierPool) -> Iterator[str]:
    app = make_app(pool, token=TOKEN, max_pending=MAX_PENDING, max_body_bytes=MAX_BODY_BYTES)
    config = uvicorn.Config(
        app, port=0, http=ImpatientProtocol, log_level="critical", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "HEAD_TIMEOUT_S", 1.0)
        yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def ask(
    address: str,
    body: bytes,
    *,
    method: str = "POST",
    path: str = "/verify",
    authorization: str | None = f"Bearer {TOKEN}",
) -> tuple[int, dict, dict]:
    """One bare request, with none of the client's own care."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    headers = {} if authorization is None else {"Authorization": authorization}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    reply = response.read()
    connection.close()
    return response.status, json.loads(reply), dict(response.headers)


def question(completion: str, reference) -> bytes:
    record = {"completion": completion, "reference": encode_reference(reference)}
    return json.dumps(record).encode()


# --- the service --------------------------------------------------------------------------------


def test_verdicts_are_the_pools(address: str, pool: VerifierPool) -> None:
    pairs = [
        (RIGHT_PROGRAM, SEVEN),
        (program("print(8)"), SEVEN),
        (program("1/0"), SEVEN),
        ("", SEVEN),
        ("So it is 12.", NumberReference(answer="12")),
        ("\\boxed{\\sqrt{8}}", MathReference(answers=("2\\sqrt{2}",))),
        ("\\boxed{3}", MathReference(answers=("2\\sqrt{2}",))),
        (
            program("def f(a):\n    return (a, [a])"),
            CallsReference(function="f", cases=(((1,), (1, [1])),)),
        ),
        (
            program("def f(a):\n    return [a, [a]]"),
            CallsReference(function="f", cases=(((1,), (1, [1])),)),
        ),
    ]
    with RemotePool(address, token=TOKEN) as remote:
        assert str(pool.report) in remote.report
        there = remote.map(pairs)
    here = pool.map(pairs)
    assert [(v.status, v.reason) for v in there] == [(v.status, v.reason) for v in here]
    assert [v.status for v in there].count(Status.RIGHT) == 4
    assert there[5].detail == here[5].detail


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x",
     f"Bearer {TOKEN[:-1]}", "Bearer \xe9"],
)  # fmt: skip
def test_without_the_token_nothing_is_judged(address: str, pool, authorization) -> None:
    before = pool.counts
    body = question("print(1)", SEVEN)
    assert ask(address, body, authorization=authorization)[0] == 401
    got = ask(address, b"", method="GET", path="/health", authorization=authorization)
    assert got[0] == 401
    assert "sandbox" not in json.dumps(got[1])
    assert pool.counts == before


def test_a_short_token_is_refused_at_the_start(pool: VerifierPool) -> None:
    with pytest.raises(ValueError, match="has 6 characters; it must have at least 16"):
        make_app(pool, token="secret", max_pending=1, max_body_bytes=1)
    with pytest.raises(ValueError, match="has 0 characters"):
        serve(SETTINGS, token="")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 50_000, 400),
        (b"\xff\xfe", 400),
        (b'{"completion": "1"}', 400),
        (b'{"completion": 1, "reference": "x"}', 400),
        (b'{"completion": "1", "reference": "x"}', 422),
        (json.dumps({"completion": "1", "reference": "[" * 50_000}).encode(), 422),
        (question("1", NumberReference(answer="seven")), 422),
        (question("7", SEVEN)[:-1] + b', "id": "1"}', 400),
        (question("7", SEVEN) + b" {}", 400),
        (b'{"completion": NaN, "reference": NaN}', 400),
        (b'{"completion": ["7"], "reference": {}}', 400),
        (b'{"completion":' * 5_000, 400),
        (gzip.compress(b" " * 10**7 + question("7", SEVEN), mtime=0), 400),
        (b"x" * (MAX_BODY_BYTES + 1), 413),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_question_is_refused(address: str, body: bytes, status: int) -> None:
    got, reply, _ = ask(address, body)
    assert got == status
    assert set(reply) == {"error"}


def test_an_endless_body_is_cut_off(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        sent = 0
        try:
            while sent < 100 * MAX_BODY_BYTES:
                connection.sendall(chunk)
                sent += len(chunk)
                connection.settimeout(0.001)
                try:
                    if connection.recv(64).startswith(b"HTTP/1.1 413"):
                        break
                except TimeoutError:
                    connection.settimeout(20)
        except (ConnectionError, BrokenPipeError):
            pass
    assert sent < 50 * MAX_BODY_BYTES
    assert ask(address, question(RIGHT_PROGRAM, SEVEN))[0] == 200


@pytest.mark.parametrize("length", ["-5", "seven", "9" * 5000, "99999999999"])
def test_a_length_that_is_a_lie_is_refused(address: str, length: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert connection.recv(64).split()[1] in (b"400", b"413")


def test_a_request_that_never_begins_is_hung_up_on(address: str) -> None:
    """And one that is being judged for longer than that is not."""
    host, port = address.removeprefix("http://").split(":")
    slow = question(program("import time; time.sleep(1.5); print(7)  # slow"), SEVEN)
    with ThreadPoolExecutor(1) as threads:
        judged = threads.submit(ask, address, slow)
        connections = [socket.create_connection((host, int(port)), timeout=20) for _ in range(20)]
        for connection in connections:
            connection.sendall(b"POST /verify HTTP/1.1\r\nX-Slow: ")
        assert [connection.recv(64) for connection in connections] == [b""] * 20
        assert judged.result()[0] == 200
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/verify"), ("POST", "/health"), ("GET", "/")]
)
def test_other_routes_do_not_exist(address: str, method: str, path: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert connection.getresponse().status in (404, 405)
    connection.close()


def wait_for_pending(address: str, count: int) -> None:
    """Until so many questions wait at the service or are being judged."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    deadline = time.monotonic() + 30.0
    while True:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/health", headers=headers), timeout=20
        ) as reply:
            if json.load(reply)["pending"] >= count:
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_queue_refuses_and_the_client_comes_back(address: str) -> None:
    slow = [program(f"import time; time.sleep(2.0); print(7)  # {i}") for i in range(MAX_PENDING)]
    with ThreadPoolExecutor(MAX_PENDING) as threads:
        waiting = [threads.submit(ask, address, question(p, SEVEN)) for p in slow]
        wait_for_pending(address, MAX_PENDING)
        status, reply, headers = ask(address, question(program("print(7)"), SEVEN))
        assert status == 429
        assert headers["retry-after"] == "1"
        assert f"{MAX_PENDING} questions are waiting" in reply["error"]
        # What is being judged already costs no place.
        again = threads.submit(ask, address, question(slow[0], SEVEN))
        with RemotePool(address, token=TOKEN, deadline_s=30) as remote:
            verdict = remote.submit(program("print(7)"), SEVEN).result()
        assert verdict.status is Status.RIGHT
        assert [w.result()[0] for w in [*waiting, again]] == [200] * (MAX_PENDING + 1)


def test_a_repeated_question_is_judged_once(address: str, pool: VerifierPool) -> None:
    body = question(program("import time; time.sleep(0.3); print(7)  # once"), SEVEN)
    before = pool.counts.get("ok", 0)
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda _: ask(address, body), range(4)))
    replies.append(ask(address, body))
    assert {status for status, _, _ in replies} == {200}
    assert len({json.dumps(reply) for _, reply, _ in replies}) == 1
    assert pool.counts["ok"] == before + 1
    # The control: another question is judged.
    ask(address, question(program("print(7)  # another"), SEVEN))
    assert pool.counts["ok"] == before + 2


def test_a_client_that_goes_away_leaves_the_service_well(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    body = question(program("import time; time.sleep(0.5); print(7)  # left"), SEVEN)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /verify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_for_pending(address, 1)
    status, reply, _ = ask(address, body)
    assert (status, reply["status"]) == (200, "right")


def test_under_load_each_caller_gets_its_own_verdict(address: str) -> None:
    numbers = list(range(60))
    pairs = [
        (program(f"print({n})"), StdioReference(cases=(("", str(n - n % 3)),))) for n in numbers
    ]
    with RemotePool(address, token=TOKEN, connections=16) as remote:
        verdicts = remote.map(pairs)
    assert [v.status is Status.RIGHT for v in verdicts] == [n % 3 == 0 for n in numbers]


# --- the client ---------------------------------------------------------------------------------


def test_a_wrong_token_or_no_server_is_an_error_at_the_start(address: str) -> None:
    with pytest.raises(RefusedError, match="401"):
        RemotePool(address, token="wrong")
    with pytest.raises(EndpointError, match=r"gave no reply in 0.3 s and [0-9]+ tries"):
        RemotePool("http://127.0.0.1:1", token=TOKEN, deadline_s=0.3)
    for url in ("", "10.0.0.7:8790", "ftp://x"):
        with pytest.raises(ValueError, match="no address of a server"):
            RemotePool(url, token=TOKEN)


def test_the_configuration_opens_the_pool_it_asks_for(address: str, monkeypatch) -> None:
    monkeypatch.setenv("CIPO_VERIFY_TOKEN", TOKEN)
    with open_pool(Verify(service_url=address)) as pool:
        assert isinstance(pool, RemotePool)
        assert pool.submit(RIGHT_PROGRAM, SEVEN).result().status is Status.RIGHT
    monkeypatch.delenv("CIPO_VERIFY_TOKEN")
    with pytest.raises(RefusedError, match="401"):
        open_pool(Verify(service_url=address))
    with open_pool(SETTINGS) as pool:
        assert isinstance(pool, VerifierPool)


def test_a_lost_connection_between_questions_is_made_again(address: str) -> None:
    endpoint = Endpoint(address, {"Authorization": f"Bearer {TOKEN}"})
    assert "pending" in endpoint.ask("GET", "/health", None, deadline_s=5)
    endpoint._connection().sock.shutdown(socket.SHUT_RDWR)
    assert "pending" in endpoint.ask("GET", "/health", None, deadline_s=5)
