"""One call to Hetzner: paid for from the budget, made by hcloud in a thread, answered as a struct or a provider error.

Invariant: nothing here blocks the event loop, and nothing is ever sent twice. hcloud waits and repeats by itself what
timed out, a create included, which would turn a lost answer into `uniqueness_error`; so its repeating is off for every
call, reads too, because its sleeps would hold threads and its repetitions would bypass the budget.

hcloud's `Client.request` is used, and not the objects above it: those ask for what an answer lacks by calls of their
own, and have no word for several actions at once.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

import hcloud
import msgspec
import requests
import urllib3

from spawn_providers.base import Unavailable
from spawn_providers.hetzner.budget import Budget, Priority, Quota, quota_from
from spawn_providers.hetzner.errors import RATE_LIMITED, TOKEN_CODES, Problem, error_of, redacted
from spawn_providers.hetzner.lanes import THREADS, Lanes

log = logging.getLogger(__name__)

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "DELETE"]
Params = Mapping[str, str | int | tuple[int, ...]]

_CONNECT_S: Final = 5
_SILENCE_S: Final = 20
_ANSWER_S: Final = 25
"""The longest that an answer may take in all, below the half minute after which the service stops listening."""

Payload = dict[str, Any]
"""A JSON object as hcloud hands it over, unread."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    payload: Payload | Problem
    quota: Quota | None


class Calls:
    """The project behind one token. `now` is seconds of a clock that never runs backwards."""

    def __init__(self, token: str, endpoint: str, *, now: Callable[[], float]) -> None:
        self._token = token
        self._endpoint = endpoint.rstrip("/")
        self._now = now
        self._budget = Budget(now())
        self._lanes = Lanes()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="hetzner")
        self._local = threading.local()
        self._clients: list[hcloud.Client] = []

    async def aclose(self) -> None:
        """Wait for what is under way, and hang up."""
        await asyncio.to_thread(self._threads.shutdown)
        for client in self._clients:
            client._client._session.close()  # hcloud has no way to close a client

    def left(self) -> float:
        """How many calls are left, as far as we know."""
        return self._budget.left(self._now())

    async def get(self, path: str, into: type[T], priority: Priority, params: Params | None = None) -> T:
        return await self._ask("GET", path, into, priority, params, None)

    async def change(
        self,
        method: Method,
        path: str,
        into: type[T],
        priority: Priority,
        body: Mapping[str, object] | None = None,
    ) -> T:
        return await self._ask(method, path, into, priority, None, body)

    async def _ask(
        self,
        method: Method,
        path: str,
        into: type[T],
        priority: Priority,
        params: Params | None,
        body: Mapping[str, object] | None,
    ) -> T:
        """Make the call once. Raises `ProviderError`."""
        self._require_budget(priority)
        await self._lanes.enter(priority)
        try:
            self._require_budget(priority)
            self._budget.take(self._now())
            loop = asyncio.get_running_loop()
            sending = self._threads.submit(self._send, method, path, params, body)
        except BaseException:
            self._lanes.leave()
            raise
        # Whether or not anybody still waits for it, the thread is busy until the answer is there.
        sending.add_done_callback(lambda done: _on_loop(loop, self._landed, done))
        payload = await self._answer(sending)
        if isinstance(payload, Problem):
            raise self._error(payload, method, priority)
        try:
            return msgspec.convert(payload, into)
        except msgspec.ValidationError as error:
            problem = Problem(code=None, message=f"its answer cannot be read ({error})")
            raise error_of(problem, changes=method != "GET") from error

    async def _answer(self, sending: "Future[_Answer]") -> Payload | Problem:
        try:
            async with asyncio.timeout(_ANSWER_S):
                return (await asyncio.wrap_future(sending)).payload
        except TimeoutError:
            return Problem(code=None, message=f"no whole answer came within {_ANSWER_S} s")

    def _error(self, problem: Problem, method: Method, priority: Priority) -> Exception:
        if problem.code == RATE_LIMITED:
            wait_s = self._budget.wait_s(priority, self._now())
            log.warning("Hetzner's rate limit is reached; the next such call is in %d s", math.ceil(wait_s))
            return Unavailable("Hetzner's rate limit is reached.", retry_after_s=max(1, math.ceil(wait_s)))
        if problem.code in TOKEN_CODES:
            log.error("Hetzner refuses our token: set a read-write token of the project (%s)", problem.code)
        return error_of(problem, changes=method != "GET")

    def _require_budget(self, priority: Priority) -> None:
        wait_s = self._budget.wait_s(priority, self._now())
        if wait_s > 0:
            kind = priority.name.lower()
            raise Unavailable(
                f"Hetzner allows no more calls of this kind ({kind}) now.", retry_after_s=math.ceil(wait_s)
            )

    def _landed(self, sending: "Future[_Answer]") -> None:
        self._lanes.leave()
        if sending.cancelled() or sending.exception() is not None:
            return
        answer = sending.result()
        limited = isinstance(answer.payload, Problem) and answer.payload.code == RATE_LIMITED
        heard = self._budget.refused if limited else self._budget.answered
        heard(answer.quota, under_way=self._lanes.busy, now=self._now())

    def _send(
        self, method: Method, path: str, params: Params | None, body: Mapping[str, object] | None
    ) -> _Answer:
        """In a worker thread: one request, and everything that can come of it as a value."""
        client = self._client()
        self._local.headers = {}
        # A redirect is followed by nobody: requests would turn a POST into a GET.
        options: dict[str, Any] = {"params": params, "allow_redirects": False}
        if body is not None:
            options["json"] = body
        payload: Payload | Problem
        try:
            payload = client.request(method, path, **options)
        except hcloud.APIException as error:
            payload = Problem(code=error.code, message=redacted(str(error.message), self._token))
        except requests.exceptions.RequestException as error:
            payload = Problem(code=None, message=type(error).__name__, sent=_was_sent(error))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # hcloud reads an error's body as if it always were Hetzner's.
            payload = Problem(code=None, message=f"its answer cannot be read ({type(error).__name__})")
        return _Answer(payload=payload, quota=quota_from(self._local.headers))

    def _client(self) -> hcloud.Client:
        """This thread's own, because requests promises nothing about a session in two threads."""
        found: hcloud.Client | None = getattr(self._local, "client", None)
        if found is not None:
            return found
        client = hcloud.Client(
            self._token,
            api_endpoint=self._endpoint,
            application_name="spawn",
            timeout=(_CONNECT_S, _SILENCE_S),
        )
        # hcloud offers no setting for the one, and hides the headers that the other is for.
        client._client._retry_max_retries = 0
        session = client._client._session
        session.hooks["response"].append(self._keep_headers)
        session.trust_env = False  # no proxy and no .netrc decides where the token goes: only the settings do
        self._local.client = client
        self._clients.append(client)
        return client

    def _keep_headers(self, response: requests.Response, *_: object, **__: object) -> None:
        self._local.headers = response.headers


def _on_loop(
    loop: asyncio.AbstractEventLoop, landed: Callable[["Future[_Answer]"], None], done: "Future[_Answer]"
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(landed, done)


def _was_sent(error: requests.exceptions.RequestException) -> bool:
    """False where not even a connection came about."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return False
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)
    return not isinstance(reason, urllib3.exceptions.NewConnectionError)
