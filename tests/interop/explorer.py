"""schemathesis against a running `spawn dev`, as a caller who can pay and who owns something.

Invariant: schemathesis chooses every request and checks every answer. What is ours is the wallet that signs, pays
or signs in for a request as it stands, and real ids in most of the places where a well-formed one was made up.
"""

import asyncio
import base64
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Final

import httpx
import msgspec
import requests
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.generation.meta import TestPhase
from schemathesis.openapi.checks import IgnoredAuth, RejectedPositiveData
from signing import SignedRequestAuth
from spawn_schemas.sign_in import SIGN_IN_WITH_X
from x402.extensions.sign_in_with_x import create_siwx_payload, encode_siwx_header

from tests.interop.service import RunningService
from tests.interop.story import ORDER, RECEIVER, public_key
from tests.wallets import Wallet

REAL_SHARE: Final = 0.75
"""Of the well-formed cases, how many speak of things that exist; the others ask for what nobody has."""
UNPROVEN_SHARE: Final = 0.3
"""How many calls wait for the 402, as stock clients do."""
BEARER_SHARE: Final = 0.3
"""How many reads carry a session's bearer."""
SIGN_IN_SHARE: Final = 0.5
"""How many challenges that take a sign-in get one; the others are paid."""
PROOFS: Final = ("PAYMENT-SIGNATURE", "Signature-Input", "Authorization", SIGN_IN_WITH_X)
"""The header by which a caller proves what it does: x402, a signature, a session, a sign-in."""
SERVERS: Final = 4
TYPES: Final = ("small", "medium")
FUNDS: Final = "500.00"
FEW_DOLLARS: Final = "0.40"
_TIMEOUT_S: Final = 30


class Explored(msgspec.Struct, frozen=True, kw_only=True):
    """What a run met. `answers` counts statuses by `METHOD /path`, `proofs` the successes by what let them in.

    `findings` are what no caller should see.
    """

    operations: tuple[str, ...]
    answers: dict[str, Counter[int]]
    proofs: Counter[str]
    findings: tuple[str, ...]

    @property
    def cases(self) -> int:
        return sum(counter.total() for counter in self.answers.values())

    @property
    def unreached(self) -> list[str]:
        """Operations that never succeeded, with what they answered instead."""
        return [
            f"{name}: {dict(self.answers.get(name, {}))}"
            for name in self.operations
            if not any(200 <= status < 300 for status in self.answers.get(name, {}))
        ]


class Caller(requests.auth.AuthBase):
    """Proves who sends the request: signs it, shows a session's `bearer`, or does what its 402 asks."""

    def __init__(self, wallet: Wallet, chain_id: int, chance: random.Random) -> None:
        self.bearer: str | None = None
        self._wallet = wallet
        self._signer = SignedRequestAuth(wallet.account, chain_id)
        self._chance = chance

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = request.body or b""
        content = body.encode() if isinstance(body, str) else body
        # `fund` and a deposit are money that a signature cannot move.
        must_pay = request.path_url == "/v1/balance/deposit" or b'"fund"' in content
        if must_pay or self._chance.random() < UNPROVEN_SHARE:
            request.hooks["response"].append(self._satisfy)
        elif self.bearer and request.method == "GET" and self._chance.random() < BEARER_SHARE:
            request.headers["Authorization"] = f"Bearer {self.bearer}"
        else:
            self._sign(request, content)
        return request

    def _sign(self, request: requests.PreparedRequest, content: bytes) -> None:
        assert request.method is not None
        assert request.url is not None
        unsigned = httpx.Request(request.method, request.url, content=content)
        assert unsigned.url.raw_path.decode() == request.path_url
        signed = next(self._signer.auth_flow(unsigned))
        names = ("Signature-Input", "Signature", "Content-Digest")
        request.headers.update({name: signed.headers[name] for name in names if name in signed.headers})

    def _satisfy(self, unproven: requests.Response, **kwargs: Any) -> requests.Response:
        """Answer a challenge once; anything else is the answer."""
        challenge = unproven.headers.get("PAYMENT-REQUIRED")
        if challenge is None or any(name in unproven.request.headers for name in PROOFS):
            return unproven
        unproven.content  # noqa: B018 - reads the body, so that its connection can carry the next request
        unproven.close()
        proven = unproven.request.copy()
        name, value = self._proof(challenge)
        proven.headers[name] = value
        answer: requests.Response = unproven.connection.send(proven, **kwargs)
        answer.history.append(unproven)
        answer.request = proven
        return answer

    def _proof(self, challenge: str) -> tuple[str, str]:
        """The header that a challenge asks for: a sign-in where it takes one, at times, or else a payment."""
        required = json.loads(base64.b64decode(challenge))
        extension = required["extensions"].get(SIGN_IN_WITH_X)
        if extension is not None and self._chance.random() < SIGN_IN_SHARE:
            info = extension["info"] | extension["supportedChains"][0]
            payload = asyncio.run(create_siwx_payload(info, self._wallet.account, info["uri"]))
            return SIGN_IN_WITH_X, encode_siwx_header(payload)
        nonce = self._chance.getrandbits(256)
        return "PAYMENT-SIGNATURE", self._wallet.payment(challenge, now=int(time.time()), nonce=nonce)


class Estate:
    """What the wallet owns, and how made-up requests come to speak of it."""

    def __init__(self, url: str, http: requests.Session, chance: random.Random) -> None:
        self._url = url
        self._http = http
        self._chance = chance
        self._ids: dict[str, list[str]] = defaultdict(list)
        self._post("/v1/balance/deposit", {"amount": FUNDS})
        self._renew = {
            "server_id": self._rent,
            "key_id": self._register,
            "webhook_id": self._subscribe,
        }
        for _ in range(SERVERS):
            for make in self._renew.values():
                make()

    def inhabit(self, case: Any) -> Any:
        """Put real values where schemathesis put well-formed ones, in most cases."""
        parts = {} if case.meta is None else case.meta.components
        wrong = {where for where, part in parts.items() if part.mode is schemathesis.GenerationMode.NEGATIVE}
        if "wait" in (case.query or {}) and ParameterLocation.QUERY not in wrong:
            case.query["wait"] = 0  # nobody else makes happen what it would wait for
        if self._chance.random() > REAL_SHARE:
            return case
        linked = (
            case.meta is not None and case.meta.phase.name is TestPhase.STATEFUL
        )  # has the id of a thing it made
        if not linked and ParameterLocation.PATH not in wrong:
            for name in case.path_parameters.keys() & self._ids.keys():
                case.path_parameters = {**case.path_parameters, name: self._real_id(name, case.method)}
        if isinstance(case.body, dict) and ParameterLocation.BODY not in wrong:
            case.body = {name: self._real_value(name, value) for name, value in case.body.items()}
        if "Idempotency-Key" in case.headers and ParameterLocation.HEADER not in wrong:
            # Short keys come again, and the second request is a conflict then.
            case.headers["Idempotency-Key"] = f"key-{self._chance.getrandbits(64)}"
        return case

    def _real_id(self, name: str, method: str) -> str:
        """An id for this path parameter: of something idle, and replaced by a new one if it is to be deleted."""
        known = self._ids[name]
        found = self._chance.choice(known)
        if method == "DELETE" and name in self._renew:
            self._renew[name]()
            known.remove(found)
        if name == "server_id" and method != "GET":
            idle = self._http.get(f"{self._url}/v1/servers/{found}", params={"wait": 5}, timeout=_TIMEOUT_S)
            assert idle.status_code == 200, idle.text
        return found

    def _real_value(self, name: str, value: Any) -> Any:
        """What stands for sale, ours, or affordable under this field's name; the value itself where none is."""
        if value is None:
            return None
        match name:
            case "name":
                return f"n{self._chance.getrandbits(64)}"
            case "type":
                return self._chance.choice(TYPES)
            case "image" | "location":
                return ORDER[name]
            case "deposit" | "fund" | "amount":
                return FEW_DOLLARS
            case "ssh_keys":
                return self._ids["key_id"][:2]
            case "public_key":
                return public_key()
            case "url":
                return RECEIVER
            case _:
                return value

    def _rent(self) -> None:
        created = self._post("/v1/servers", ORDER | {"name": f"s{self._chance.getrandbits(64)}"})
        self._ids["server_id"].append(created["server"]["id"])
        self._ids["action_id"].append(created["action"]["id"])

    def _register(self) -> None:
        created = self._post("/v1/ssh-keys", {"name": "key", "public_key": public_key()})
        self._ids["key_id"].append(created["ssh_key"]["id"])

    def _subscribe(self) -> None:
        listed = self._http.get(f"{self._url}/v1/webhooks", timeout=_TIMEOUT_S).json()["webhooks"]
        known = self._ids["webhook_id"]
        # A wallet has ten at most, and who explores registers some by itself.
        spare = next((one["id"] for one in listed if one["id"] not in known), None)
        known.append(spare or self._post("/v1/webhooks", {"url": RECEIVER})["webhook"]["id"])

    def open_session(self) -> str:
        """A bearer for reading."""
        return str(self._post("/v1/sessions", None)["session"]["token"])

    def _post(self, path: str, body: object) -> Any:
        answer = self._http.post(f"{self._url}{path}", json=body, timeout=_TIMEOUT_S)
        assert answer.ok, answer.text
        return answer.json()


def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: Any, response: Response
) -> bool:
    """A hook: whether a failed check is one. What it lets pass are three things that schemathesis cannot know.

    Money is our login, so a caller who proved nothing gets a 402 where others say 401. And a schema says what can be
    read, not what is for sale: only a refusal by the decoder, which names the field, contradicts the schema. And a body
    that is too large is refused as such, whatever else is wrong with it.
    """
    status = response.status_code
    match failure:
        case IgnoredAuth(message=message):  # of an answer of its own, not of `response`
            return "got `402 Payment Required`" not in message
        case AcceptedNegativeData(message=message):
            # Parameters that nobody asked for are left alone, as on most of the web.
            return status != 413 and "in query - object with unexpected properties" not in message
        case RejectedPositiveData() if status == 400:
            return "problems" in (response.json()["error"]["details"] or {})
        case RejectedPositiveData():
            return status != 422
        case _:
            return True


def explore(service: RunningService, wallet: Wallet, *, examples: int, seed: int) -> Explored:
    """Run every phase of schemathesis, `examples` generated cases for each operation, and return what it met.

    Not for a thread that runs an event loop: the SDK signs in by a loop of its own.
    """
    chance = random.Random(seed)
    phases = {name: {"enabled": True} for name in ("examples", "coverage", "fuzzing", "stateful")}
    config = schemathesis.Config.from_dict(
        {
            "seed": seed,
            "generation": {
                "max-examples": examples,
                "database": "none",
                # A header of junk would stand where the wallet's belongs; tests/fuzz has those.
                "with-security-parameters": False,
            },
            "continue-on-failure": True,
            "phases": phases,
        }
    )
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", config=config)
    answers: defaultdict[str, Counter[int]] = defaultdict(Counter)
    proofs: Counter[str] = Counter()

    def map_case(context: schemathesis.HookContext, case: Any) -> Any:
        return estate.inhabit(case)

    def after_call(context: schemathesis.HookContext, case: Any, response: Response) -> None:
        answers[f"{case.method} {case.path}"][response.status_code] += 1
        if 200 <= response.status_code < 300:
            proofs.update(name for name in PROOFS if name in response.request.headers)

    auth = Caller(wallet, service.settings.chain_id, chance)
    schema.auth.set_from_requests(auth)
    with requests.Session() as http:
        http.auth = auth
        http.trust_env = False  # a proxy of this machine's environment cannot see our loopback
        estate = Estate(service.url, http, chance)
        auth.bearer = estate.open_session()
        for hook in (map_case, filter_failure, after_call):
            schema.hook(hook)
        findings = tuple(_findings(from_schema(schema).execute()))
    operations = tuple(found.ok().label for found in schema.get_all_operations() if isinstance(found, Ok))
    return Explored(operations=operations, answers=dict(answers), proofs=proofs, findings=findings)


def _findings(stream: Any) -> Iterator[str]:
    for event in stream:
        match event:
            case events.ScenarioFinished(recorder=recorder):
                yield from _failures(recorder)
            case events.NonFatalError(info=info, label=label):
                yield f"{label}: {info}"
            case events.FatalError(exception=error):
                yield repr(error)
            case _:  # the beginning or end of a stage
                pass


def _failures(recorder: ScenarioRecorder) -> Iterator[str]:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                met = recorder.interactions.get(case_id)
                answer = None if met is None or met.response is None else met.response.content[:500]
                label = recorder.cases[case_id].value.operation.label
                yield "\n".join(
                    (f"{label}: {check.name}: {failure}", check.failure_info.code_sample, repr(answer))
                )
