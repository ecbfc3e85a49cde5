"""The clients of servers that judge elsewhere: what fails is unknown, and never wrong."""

import contextlib
import http.server
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cipo_jax.config import Verify
from cipo_jax.verify import (
    CallsReference,
    MathReference,
    NumberReference,
    Status,
    StdioReference,
)
from cipo_jax.verify.fusion import TRIAL, FusionPool
from cipo_jax.verify.opening import open_judge
from cipo_jax.verify.remote import EndpointError, RemotePool

TOKEN = "a-token-for-the-tests-only"
SEVEN = StdioReference(cases=(("3 4", "7"),))


def program(source: str) -> str:
    return f"```python\n{source}\n```"


RIGHT_PROGRAM = program("print(sum(map(int, input().split())))")


Reply = Callable[[int, str, dict], tuple[int, bytes, dict]]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that has left
            super().handle_error(request, client_address)


@contextmanager
def server_that(reply: Reply) -> Iterator[str]:
    """A server of our own making: `reply(number of the request, path, question)`."""
    num_requests = 0
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal num_requests
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                num_requests += self.path != "/health"
                number = num_requests
            status, content, headers = reply(number, self.path, json.loads(body or b"{}"))
            if status == 0:  # hang up
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


HEALTH = (200, b'{"protection": "test"}', {})
GOOD = json.dumps({"status": "right", "reason": "ok", "seconds": 0.1, "detail": {}}).encode()


def judged_by(*replies: tuple[int, bytes, dict], deadline_s: float = 5.0):
    """The verdict from a server that gives these replies one after another, the last for ever."""

    def reply(number: int, path: str, record: dict) -> tuple[int, bytes, dict]:
        return HEALTH if path == "/health" else replies[min(number, len(replies)) - 1]

    with (
        server_that(reply) as address,
        RemotePool(address, token=TOKEN, deadline_s=deadline_s, connections=1) as remote,
    ):
        return remote.submit(RIGHT_PROGRAM, SEVEN).result()


@pytest.mark.parametrize(
    "trouble",
    [
        (0, b"", {}),
        (500, b"oops", {}),
        (503, b"", {}),
        (429, b"", {"Retry-After": "0"}),
        (200, b"", {}),
        (200, b'{"status": "ri', {}),
    ],
    ids=lambda t: f"{t[0]} {t[1][:8]}",
)
def test_trouble_that_passes_is_tried_again(trouble) -> None:
    verdict = judged_by(trouble, trouble, (200, GOOD, {}))
    assert (verdict.status, verdict.reward) == (Status.RIGHT, 1.0)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ((0, b"", {}), "gave no reply in 0.5 s"),
        ((500, b"oops", {}), "status 500: oops"),
        ((429, b"", {}), "status 429"),
        ((200, b"[]", {}), "not a verdict"),
        ((200, b'{"status": "right", "reason": "luck", "seconds": 0, "detail": {}}', {}), "reason"),
        ((401, b"no", {}), "status 401: no"),
        ((302, b"", {"Location": "/elsewhere"}), "status 302"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_trouble_that_stays_is_unknown_and_never_wrong(trouble, says: str) -> None:
    start = time.monotonic()
    verdict = judged_by(trouble, deadline_s=0.5)
    assert (verdict.status, verdict.reason) == (Status.UNKNOWN, "infra")
    assert math.isnan(verdict.reward)
    assert says in verdict.detail["error"]
    assert time.monotonic() - start < 10


def test_a_server_that_never_answers_is_left_at_the_deadline() -> None:
    is_judged = threading.Event()

    def reply(number: int, path: str, record: dict) -> tuple[int, bytes, dict]:
        if path != "/health":
            is_judged.wait(60)
        return HEALTH

    with (
        server_that(reply) as address,
        RemotePool(address, token=TOKEN, deadline_s=0.5) as remote,
    ):
        verdict = remote.submit(RIGHT_PROGRAM, SEVEN).result(timeout=30)
        is_judged.set()
    assert (verdict.status, verdict.reason) == (Status.UNKNOWN, "infra")


def test_a_service_that_is_killed_while_it_judges() -> None:
    """The whole service as a process of its own, SIGKILLed with a question open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "from cipo_jax.config import Verify; from cipo_jax.verify.service import serve\n"
        f"serve(Verify(workers=1, deadline_s=20), token={TOKEN!r}, port={port})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert "verifier sandbox" in process.stdout.readline()
        address = f"http://127.0.0.1:{port}"
        with RemotePool(address, token=TOKEN, deadline_s=10.0) as remote:
            assert remote.submit(RIGHT_PROGRAM, SEVEN).result().status is Status.RIGHT
            open_one = remote.submit(program("while True: pass"), SEVEN)
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGKILL)
            verdict = open_one.result(timeout=30)
        assert (verdict.status, verdict.reason) == (Status.UNKNOWN, "infra")
        assert verdict.reward != verdict.reward
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- SandboxFusion ------------------------------------------------------------------------------


def fusion_run(printed: str, return_code: int = 0, status: str = "Finished") -> bytes:
    """A reply of /run_code, in the form of SandboxFusion's `RunCodeResponse`."""
    result = {
        "status": status,
        "execution_time": 0.01,
        "return_code": return_code,
        "stdout": printed,
        "stderr": "",
    }
    # The server's own opinion says the opposite of ours throughout.
    opinion = "Failed" if return_code == 0 else "Success"
    return json.dumps({"status": opinion, "message": "", "run_result": result}).encode()


@contextmanager
def fusion_that(run: Callable[[int, dict], bytes]) -> Iterator[tuple[str, list[dict]]]:
    """Such a server, and what it is asked to run after its trial: `run(number, question)`."""
    asked: list[dict] = []

    def reply(number: int, path: str, question: dict) -> tuple[int, bytes, dict]:
        assert path == "/run_code"
        if question["code"] == TRIAL:
            return 200, fusion_run("42\n"), {}
        asked.append(question)
        return 200, run(len(asked), question), {}

    with server_that(reply) as address:
        yield address, asked


@pytest.mark.parametrize(
    ("runs", "status", "reason"),
    [
        ([("7\n", 0, "Finished"), ("3", 0, "Finished")], Status.RIGHT, "ok"),
        ([("7", 0, "Finished"), ("4", 0, "Finished")], Status.WRONG, "wrong_answer"),
        ([("7", 1, "Finished")], Status.WRONG, "runtime_error"),
        ([("", 0, "TimeLimitExceeded")], Status.WRONG, "timeout"),
        ([("7", 0, "Error")], Status.UNKNOWN, "infra"),
    ],
)
def test_fusion_is_a_runner_only(runs, status: Status, reason: str) -> None:
    reference = StdioReference(cases=(("3 4", "7"), ("1 2", "3")))
    with (
        fusion_that(lambda number, question: fusion_run(*runs[number - 1])) as (address, asked),
        FusionPool(address, Verify(), deadline_s=2.0) as fusion,
    ):
        verdict = fusion.submit(RIGHT_PROGRAM, reference).result()
    assert (verdict.status, verdict.reason) == (status, reason)
    assert len(asked) == len(runs)
    for question in asked:
        assert set(question) == {"language", "code", "stdin", "run_timeout", "memory_limit_MB"}
        assert question["stdin"] in ("3 4", "1 2")  # and no expected output anywhere


def test_fusion_runs_what_the_reference_asks_for() -> None:
    reference = StdioReference(cases=(("", "7"),), prelude="import math", case_s=1.5)
    with (
        fusion_that(lambda number, question: fusion_run("7")) as (address, asked),
        FusionPool(address, Verify(), deadline_s=2.0) as fusion,
    ):
        assert fusion.submit(program("print(7)"), reference).result().status is Status.RIGHT
    (question,) = asked
    assert question["code"].index("import math") < question["code"].index("print")
    assert question["run_timeout"] == 1.5


def test_fusion_runs_no_program_that_is_none() -> None:
    with (
        fusion_that(lambda number, question: fusion_run("7")) as (address, asked),
        FusionPool(address, Verify()) as fusion,
    ):
        reasons = [
            fusion.submit(said, SEVEN).result().reason
            for said in ("```python\n```", f"<think>{RIGHT_PROGRAM}", program("#" * 70_000))
        ]
    assert reasons == ["no_answer", "no_answer", "bad_format"]
    assert asked == []


def fusion(address: str) -> Verify:
    return Verify(service_url=address, service_kind="sandbox-fusion", service_deadline_s=2.0)


def test_fusion_judges_where_the_configuration_says_so() -> None:
    with fusion_that(lambda number, question: fusion_run("7")) as (address, asked):
        judge = open_judge(fusion(address), [SEVEN, NumberReference(answer="7")])
        with contextlib.closing(judge):
            assert isinstance(judge, FusionPool)
            assert f"SandboxFusion {address}" in str(judge.report)
            assert judge.is_sandboxed is None
            assert judge.submit(RIGHT_PROGRAM, SEVEN).result().status is Status.RIGHT
            number = judge.submit("so it is 7", NumberReference(answer="7"))
            assert number.result().status is Status.RIGHT
        assert len(asked) == 1
        calls = CallsReference(function="f", cases=(((), 1),))
        with pytest.raises(ValueError, match=r"with CallsReference, MathReference: judge them"):
            open_judge(fusion(address), [SEVEN, calls, MathReference(answers=("1",))])
    with pytest.raises(ValueError, match=r"verify.service_url names no server"):
        Verify(service_kind="sandbox-fusion")


def test_a_fusion_server_that_runs_nothing_is_an_error_at_the_start() -> None:
    """Otherwise every verdict of the run would be unknown."""
    with pytest.raises(EndpointError, match=r"gave no reply in 2 s"):
        open_judge(fusion("http://127.0.0.1:1"), [SEVEN])
    for trouble in (fusion_run("42\n", return_code=1), fusion_run("41\n"), b"{}"):
        with (
            server_that(lambda number, path, question, body=trouble: (200, body, {})) as address,
            pytest.raises(EndpointError, match=r"does not run Python|own failure"),
        ):
            open_judge(fusion(address), [SEVEN])


def test_jax_is_not_loaded() -> None:
    code = (
        "import sys, cipo_jax.verify.remote, cipo_jax.verify.service; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
