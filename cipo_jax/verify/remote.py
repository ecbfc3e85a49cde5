"""Judging on other machines: a pool whose work is done by a verifier service.

It has the local pool's `submit` and `map`. What goes wrong on the way (no connection, an overloaded
or broken server, a reply that is none) is tried again until the deadline, and is then the verdict
*unknown*, reason `infra`: never wrong.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cipo_jax.verify.answers import judging
from cipo_jax.verify.judge import Pool
from cipo_jax.verify.verdict import Reference, Verdict, unknown
from cipo_jax.verify.wire import decode_verdict, encode_reference

TOKEN_VARIABLE = "CIPO_VERIFY_TOKEN"
"""Environment variable with the service's token: secrets don't belong into a config."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
MAX_REPLY_BYTES = 32 * 2**20


class EndpointError(ConnectionError):
    """A server gave no usable reply; the text says what was tried and what came back."""


class RefusedError(EndpointError):
    """The server refused the request itself, and would again: wrong token, malformed, too large."""


class Endpoint:
    """An HTTP server that is asked in JSON, from any thread, over connections that stay open."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parsed = urllib.parse.urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise ValueError(f"{url!r} is no address of a server, such as http://10.0.0.7:8790.")
        self._url = parsed
        self._headers = {"Content-Type": "application/json", **headers}
        self._local = _Local()

    def ask(self, method: str, path: str, question: Any, *, deadline_s: float) -> Any:
        """The reply to a question, tried again until the deadline.

        Pauses grow from 0.05 s to 5 s, with chance in them, so that many clients don't come back
        at the same moment; a server that names a pause (429) gets it.

        Raises: RefusedError for any other 3xx or 4xx; EndpointError past the deadline.
        """
        body = None if question is None else json.dumps(question).encode()
        deadline = time.monotonic() + deadline_s
        pause_s, tries, trouble = FIRST_PAUSE_S, 0, "no time"
        while (left_s := deadline - time.monotonic()) > 0:
            tries += 1
            asked_pause_s = 0.0
            try:
                status, reply, asked_pause_s = self._once(method, path, body, left_s)
                if status == 200:
                    return json.loads(reply)
                trouble = f"status {status}: {reply[:200].decode(errors='replace')}"
                if status not in (408, 429) and status < 500:
                    raise RefusedError(f"{self._url.geturl()}{path}: {trouble}")
            except RefusedError:
                raise
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                self._drop()
                trouble = repr(error)
            wait_s = max(asked_pause_s, pause_s * random.uniform(0.5, 1.5))
            time.sleep(max(0.0, min(wait_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise EndpointError(
            f"{self._url.geturl()}{path} gave no reply in {deadline_s:g} s and {tries} tries; "
            f"last: {trouble}"
        )

    def _once(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes, float]:
        connection = self._connection()
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        connection.request(method, self._url.path.rstrip("/") + path, body, self._headers)
        response = connection.getresponse()
        reply = response.read(MAX_REPLY_BYTES + 1)
        if len(reply) > MAX_REPLY_BYTES:
            raise ValueError(f"the reply has more than {MAX_REPLY_BYTES} bytes")
        pause = response.headers.get("Retry-After", "")
        return response.status, reply, float(pause) if pause.isdigit() else 0.0

    def _connection(self) -> http.client.HTTPConnection:
        if self._local.connection is None:
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
            host = self._url.hostname or ""
            self._local.connection = kind[self._url.scheme](host, self._url.port)
        return self._local.connection

    def _drop(self) -> None:
        self._connection().close()
        self._local.connection = None


class _Local(threading.local):
    """One thread's connection."""

    connection: http.client.HTTPConnection | None = None


class ThreadedPool(Pool):
    """Threads that wait for a server."""

    def __init__(self, connections: int) -> None:
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="remote-verifier")

    def submit(self, completion: str, reference: Reference) -> Future[Verdict]:
        """The verdict to come; the future doesn't raise."""
        start = time.perf_counter()
        verdict = judging.fast_path(completion, reference)
        if verdict is None:
            return self._threads.submit(self._judge_or_unknown, completion, reference)
        future: Future[Verdict] = Future()
        future.set_result(dataclasses.replace(verdict, seconds=time.perf_counter() - start))
        return future

    def close(self, *, is_abandoned: bool = False) -> None:
        """Waits for what was submitted, or if abandoned for what has begun."""
        self._threads.shutdown(cancel_futures=is_abandoned)

    def _judge_or_unknown(self, completion: str, reference: Reference) -> Verdict:
        start = time.perf_counter()
        try:
            verdict = self._judge(completion, reference)
        except (EndpointError, ValueError) as error:
            verdict = unknown("infra", error=str(error)[:500])
        return dataclasses.replace(verdict, seconds=time.perf_counter() - start)

    def _judge(self, completion: str, reference: Reference) -> Verdict:
        """May raise EndpointError, and ValueError for a reply that is none."""
        raise NotImplementedError


class RemotePool(ThreadedPool):
    """A verifier service in the place of local workers.

    Args:
      url: of the service.
      token: its secret.
      deadline_s: for one verdict, waiting at the service and all tries included.
      connections: questions that are asked at the same time; at least the service's workers.
    Raises: EndpointError if the service can't be reached or refuses the token.
    """

    def __init__(
        self, url: str, *, token: str, deadline_s: float = 120.0, connections: int = 16
    ) -> None:
        self._endpoint = Endpoint(url, {"Authorization": f"Bearer {token}"})
        self._deadline_s = deadline_s
        health = self._endpoint.ask("GET", "/health", None, deadline_s=min(10.0, deadline_s))
        self.report = f"verifier service {url}: {health['protection']}"
        self.is_sandboxed: bool | None = health.get("is_sandboxed")
        super().__init__(connections)

    def _judge(self, completion: str, reference: Reference) -> Verdict:
        question = {"completion": completion, "reference": encode_reference(reference)}
        record = self._endpoint.ask("POST", "/verify", question, deadline_s=self._deadline_s)
        return decode_verdict(record)
