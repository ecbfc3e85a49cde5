"""The verifier pool behind HTTP, for machines that only judge.

    POST /verify   {"completion": text, "reference": text of `wire.encode_reference`}
                   -> a verdict (`wire.encode_verdict`)
    GET  /health   -> {"protection": text, "is_sandboxed": whether one holds, "pending": count,
                       "judged": {reason: count}}

Every request carries `Authorization: Bearer TOKEN`. The same question asked again, while it is
being judged or later, has the same answer and costs nothing: a client may repeat a request whose
reply was lost. What the service can't take is refused at once with 413 (too large), 429 (too much
waiting), 400 or 422 (not a question), never queued without end.

The connection is not encrypted: put the service on a private network, or behind a proxy that is.
Needs starlette and uvicorn: pip install 'cipo-jax[service]'.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

from cipo_jax.verify.pool import VerifierPool
from cipo_jax.verify.verdict import Status
from cipo_jax.verify.wire import decode_reference, encode_verdict

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from uvicorn.protocols.http.auto import AutoHTTPProtocol
except ImportError as error:
    raise ImportError(
        "The verifier service needs starlette and uvicorn: pip install 'cipo-jax[service]'."
    ) from error

if TYPE_CHECKING:
    from cipo_jax.config import Verify

MIN_TOKEN_CHARS = 16
HEAD_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 30.0
"""A request must have arrived by then, first its head and then its body."""
REMEMBERED = 20_000
"""Verdicts that are kept for repeated questions."""

Record = dict[str, Any]


def serve(
    settings: Verify,
    *,
    token: str,
    host: str = "127.0.0.1",
    port: int = 8790,
    max_pending: int = 4096,
    max_body_bytes: int = 8 * 2**20,
) -> None:
    """Judge for others until SIGINT or SIGTERM; open requests are finished first.

    Args:
      settings: of the pool behind it.
      token: secret that every request must carry, at least 16 characters.
      max_pending: questions that may wait or be judged at one time; more are refused with 429.
      max_body_bytes: a larger request is refused with 413.
    Raises: ValueError for a short token or no port; SandboxError where no sandbox holds.
    """
    _check_token(token)
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; it must be from 0 (any that is free) to 65535.")
    with VerifierPool(settings) as pool:
        print(pool.report, flush=True)
        app = make_app(pool, token=token, max_pending=max_pending, max_body_bytes=max_body_bytes)
        uvicorn.run(
            app, host=host, port=port, http=ImpatientProtocol, access_log=False, lifespan="off",
            ws="none",
        )  # fmt: skip


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc]
    """HTTP as uvicorn speaks it, but a connection on which no request begins for
    `HEAD_TIMEOUT_S` is closed: uvicorn waits for ever for the end of a request's head, and callers
    without a token could hold all descriptors.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._look_again(None)

    def _look_again(self, last_request: object) -> None:
        self.loop.call_later(HEAD_TIMEOUT_S, self._close_unless_busy, last_request)

    def _close_unless_busy(self, last_request: object) -> None:
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if is_busy or self.cycle is not last_request:
            self._look_again(self.cycle)
        else:
            self.transport.close()


def make_app(pool: VerifierPool, *, token: str, max_pending: int, max_body_bytes: int) -> Starlette:
    """The service over a pool that stays the caller's, for any ASGI server; see `serve`."""
    _check_token(token)
    desk = _Desk(pool, max_pending)

    def check(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_known = hmac.compare_digest(given.encode(), token.encode())
        if scheme.lower() != "bearer" or not is_known:
            detail = "the bearer token is missing or wrong."
            raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})

    async def verify(request: Request) -> JSONResponse:
        check(request)
        completion, reference = _question(await _body(request, max_body_bytes))
        return JSONResponse(await desk.verdict(completion, reference))

    async def health(request: Request) -> JSONResponse:
        check(request)
        return JSONResponse(
            {
                "protection": str(pool.report),
                "is_sandboxed": pool.is_sandboxed,
                "pending": desk.pending,
                "judged": pool.counts,
            }
        )

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[
            Route("/verify", verify, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        exception_handlers={HTTPException: refuse},
    )


class _Desk:
    """Questions that are being judged or were, by their hash."""

    def __init__(self, pool: VerifierPool, max_pending: int) -> None:
        self._pool = pool
        self._max_pending = max_pending
        self._judging: dict[bytes, asyncio.Task[Record]] = {}
        self._known: collections.OrderedDict[bytes, Record] = collections.OrderedDict()

    @property
    def pending(self) -> int:
        return len(self._judging)

    async def verdict(self, completion: str, reference_text: str) -> Record:
        key = hashlib.sha256(json.dumps([completion, reference_text]).encode()).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if key not in self._judging:
            if self.pending >= self._max_pending:
                detail = f"{self.pending} questions are waiting; ask again later."
                raise HTTPException(429, detail, headers={"Retry-After": "1"})
            self._judging[key] = asyncio.create_task(self._judge(key, completion, reference_text))
        # A client that goes away must not take the verdict from another that asked the same.
        return await asyncio.shield(self._judging[key])

    async def _judge(self, key: bytes, completion: str, reference_text: str) -> Record:
        try:
            try:
                reference = await asyncio.to_thread(decode_reference, reference_text)
                # In a thread: it compares plain answers at once, which long text makes slow.
                future = await asyncio.to_thread(self._pool.submit, completion, reference)
            except ValueError as error:
                raise HTTPException(422, str(error)[:500]) from None
            verdict = await asyncio.wrap_future(future)
        finally:
            del self._judging[key]
        record = encode_verdict(verdict)
        # What the load of this machine may have caused is judged afresh when it is asked again.
        if verdict.status is not Status.UNKNOWN and verdict.reason not in ("timeout", "memory"):
            self._known[key] = record
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return record


def _check_token(token: str) -> None:
    if len(token) < MIN_TOKEN_CHARS or not token.isascii():
        raise ValueError(
            f"The service's token has {len(token)} characters; it must have at least "
            f"{MIN_TOKEN_CHARS}, all ASCII. `python -c 'import secrets; "
            "print(secrets.token_urlsafe())'` makes one."
        )


async def _body(request: Request, limit: int) -> bytes:
    """The request's body; never reads more than the limit, nor waits for ever."""
    too_large = HTTPException(413, f"the request has more than {limit} bytes.")
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limit:
            raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the request took more than {BODY_TIMEOUT_S} s.") from None
    return bytes(body)


def _question(body: bytes) -> tuple[str, str]:
    try:
        match json.loads(body):
            case {"completion": str(completion), "reference": str(reference), **others}:
                if not others:
                    return completion, reference
    except (ValueError, RecursionError):
        pass
    raise HTTPException(400, "the request is not {completion: text, reference: text} in JSON.")
