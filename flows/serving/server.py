"""One scoring server: MLflow's own app for one model version, with bounds in front of it.

`infalign serve` starts this as `python -m flows.serving.server` on a listening socket that it
keeps. The process says `ready` on a pipe once the model has answered its own example, or in one
sentence why it cannot. Told to rest (a line on its standard input), it takes no new connection and
answers those it has; told to serve, it accepts again and says so. Told to end, or left alone (its
standard input ends), it goes once it has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from flows.services.mlflow_store import said
from flows.serving.answering import Answering, Busy
from flows.serving.connections import Timely
from flows.serving.hosts import check_sender
from flows.serving.log import Log
from flows.serving.requests import Reader, Refused
from flows.serving.routes import FAULT, Reply, Routes
from infalign.errors import CheckFailed, InputError
from infalign.settings.params import Serving
from infalign.settings.servers import Generation

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
SENTENCE = 400  # longest message, characters
SAID = 4096  # bytes that a pipe takes at once
READY, REST, SERVE = b"ready", "rest", "serve"
VERSION_HEADER = b"x-infalign-model"
_INPUT_ERROR = re.compile(r"^(?:[\w.]+\.)?InputError: (.*)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Job:
    """What a scoring server is told at its start."""

    model: str  # models:/infalign-helpful/3
    socket: int  # descriptors
    ready: int
    limits: Serving
    log: str | None = None  # a folder
    generation: Generation = field(default_factory=Generation)  # how vLLM is started and asked

    @property
    def name(self) -> str:
        """The version, as infalign-helpful/3."""
        return self.model.removeprefix("models:/")

    def dump(self) -> str:
        """As text, for the environment."""
        sections = {name: getattr(self, name).model_dump() for name in ("limits", "generation")}
        return json.dumps(asdict(self) | sections)

    @classmethod
    def load(cls, text: str) -> Job:
        """From the text."""
        tree = json.loads(text)
        limits = Serving.model_validate(tree.pop("limits"))
        generation = Generation.model_validate(tree.pop("generation"))
        return cls(**tree, limits=limits, generation=generation)


class Bounded:
    """An ASGI app in front of MLflow's: bounded requests, one sentence for every refusal.

    Args:
        app: MLflow's scoring app.
        reader: of the model's requests.
        model: shown in a header of every answer.
        routes: the pages that infalign answers itself, of a policy that it packaged.
    """

    def __init__(self, app: App, reader: Reader, model: str, routes: Routes | None = None) -> None:
        self._app, self._reader, self.limits = app, reader, reader.limits
        self.routes = routes
        self._header = (VERSION_HEADER, model.removeprefix("models:/").encode())
        self.draining = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer = _Answer()
        try:
            check_sender(scope, self.limits.allowed_hosts)
            body = await self._body(scope, receive)
            page = self.routes and self.routes.find(scope["method"], scope["path"])
            if page:
                answer.take(await page(_content_type(scope), body))
            else:
                if scope["path"] == "/invocations" and scope["method"] == "POST":
                    body = self._reader.read(_content_type(scope), body)
                await self._app(scope, _replay(body), answer)
        except Busy as error:
            answer.refuse(429, str(error))
            answer.headers.append((b"retry-after", str(error.seconds).encode()))
        except Refused as error:
            answer.refuse(error.status, str(error))
        except Exception as error:
            print(f"scoring: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            answer.refuse(500, FAULT)
        await answer.send(send, self._header, close=self.draining)

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """All of the body, never more than may be sent."""
        too_long = Refused(
            413, f"the request is longer than {self.limits.request_bytes} bytes: send less at once."
        )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limits.request_bytes:
            raise too_long
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request broke off.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.request_bytes:
                raise too_long
            more = message.get("more_body", False)
        return b"".join(parts)


class _Answer:
    """Collects what the app sends; an error becomes one sentence."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 500, list[tuple[bytes, bytes]](), b""
        self._said = False  # whether a refusal is a sentence already

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def refuse(self, status: int, sentence: str) -> None:
        """Answer with a status and one sentence."""
        self.status, self.headers = status, [(b"content-type", b"application/json")]
        self.body, self._said = json.dumps({"error": sentence}).encode(), True

    def take(self, reply: Reply) -> None:
        """Answer with what a page of ours says."""
        self.status, self.body, self._said = reply.status, reply.body, True
        self.headers = [(b"content-type", reply.kind.encode()), *reply.headers]

    async def send(self, send: Send, header: tuple[bytes, bytes], close: bool) -> None:
        """Pass the answer on."""
        if self.status >= 400 and not self._said:
            self.refuse(*in_a_sentence(self.status, self.body))
        kept = [(k, v) for k, v in self.headers if k.lower() != b"content-length"]
        kept += [header, (b"content-length", str(len(self.body)).encode())]
        kept += [(b"connection", b"close")] if close else []
        await send({"type": "http.response.start", "status": self.status, "headers": kept})
        await send({"type": "http.response.body", "body": self.body})


def in_a_sentence(status: int, body: bytes) -> tuple[int, str]:
    """Status and sentence of an error of MLflow's app, without its stack trace.

    MLflow answers 400 to whatever the model raises. Our InputError is the caller's mistake; any
    other exception is ours, and goes to the log.
    """
    try:
        tree = json.loads(body)
    except ValueError:
        tree = {}
    if not isinstance(tree, dict):
        tree = {}
    trace = str(tree.get("stack_trace") or "")
    if found := _INPUT_ERROR.search(trace):
        return 400, _short(found[1])
    if trace or status >= 500:
        print(trace or body.decode(errors="replace"), file=sys.stderr, flush=True)
        return (504, "the answer took too long.") if status == 504 else (500, FAULT)
    words = tree.get("error") or tree.get("message") or tree.get("detail")
    text = str(words or body.decode(errors="replace") or "refused.")
    return status, _short(text.split("\nError: ")[-1])


def _short(text: str) -> str:
    """On one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= SENTENCE else f"{line[:SENTENCE]}…"


def _content_type(scope: Message) -> str:
    text = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    return str(text.split(";")[0].strip().lower())


def _replay(body: bytes) -> Receive:
    """A request's body that was read already."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    never = asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await never.wait()  # a client that leaves must not look like one that sends nothing
        return {"type": "http.disconnect"}

    return receive


class Draining(uvicorn.Server):
    """Takes no new connection when told to rest or to end, but answers every one it has.

    uvicorn closes connections whose request has not been read yet; a client would see its request
    dropped. Here they are answered first, and told to connect anew.

    Args:
        listener: descriptor of the listening socket, of which every start takes a copy.
        ready: called whenever connections are accepted.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        bounded: Bounded,
        listener: int,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._bounded, self._listener, self._ready = bounded, listener, ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept, then say so."""
        self._loop = asyncio.get_running_loop()
        # asyncio closes a socket that it no longer listens on.
        await super().startup([socket.socket(fileno=os.dup(self._listener))])
        self._bounded.draining = False
        self._ready()

    def told(self, word: str) -> None:
        """Rest or serve, from any thread."""
        assert self._loop is not None, "nothing is told before it is ready"
        if word == REST:
            self._loop.call_soon_threadsafe(self._rest)
        elif word == SERVE:
            asyncio.run_coroutine_threadsafe(self.startup(), self._loop)

    def _rest(self) -> None:
        for server in self.servers:
            server.close()
        self._bounded.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait for the connections, then end."""
        self._rest()
        deadline = asyncio.get_running_loop().time() + self._bounded.limits.drain_seconds
        await asyncio.sleep(0.2)  # what was accepted a moment ago becomes a connection
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
        if self._bounded.routes is not None:
            self._bounded.routes.close()


def build(job: Job, stack: contextlib.ExitStack) -> Bounded:
    """Load the model, let it answer its own example, and put bounds in front of it.

    Args:
        stack: ends the servers that are started for it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server
    from safetensors import SafetensorError
    from yaml import YAMLError

    try:
        model = _load(job, stack)
    except (MlflowException, OSError, SafetensorError, YAMLError) as error:
        raise InputError(
            f"its files are missing or broken ({said(error)}): restore them, or register it again."
        ) from None
    meta = model.metadata
    inputs, schema = meta.get_input_schema(), meta.get_params_schema()
    params = {param.name: param.dtype.name for param in schema.params} if schema else {}
    column = inputs.input_names()[0] if inputs and inputs.has_input_names() else None
    reader = Reader(job.limits, params, column)
    return Bounded(scoring_server.init(model), reader, job.model, _routes(model, reader, job))


def _routes(model: Any, reader: Reader, job: Job) -> Routes | None:
    """The pages of a policy that infalign packaged; None of any other model, or an older one."""
    deployed = _deployed(model)
    if deployed is None:
        if job.log is not None:
            raise InputError("it is none whose answers can be logged: leave --log out.")
        return None
    log = None if job.log is None else Log(Path(job.log), job.limits, Path.cwd())
    return Routes(Answering(deployed, job.name, job.limits, log), reader)


def _deployed(model: Any) -> Any:
    """The policy that infalign packaged; None of any other model, or an older one."""
    deployed = getattr(model.unwrap_python_model(), "deployed", None)
    return deployed if hasattr(deployed, "draw") else None


def _load(job: Job, stack: contextlib.ExitStack) -> Any:
    """MLflow's model, drawn from by whom `serving.engine` names, which has answered its example."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    folder = Path(mlflow.artifacts.download_artifacts(job.model))
    if (folder / "code" / "infalign" / "deployed.py").is_file():  # as it was once laid out
        module = importlib.import_module("infalign.deployment.deployed")
        sys.modules.setdefault("infalign.deployed", module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Add type hints", UserWarning)  # MLflow's, of ours
        model = mlflow.pyfunc.load_model(str(folder))
    if job.limits.engine != "builtin":
        _hand_over(model, job, stack)
    example = folder / "serving_input_example.json"
    if example.is_file():
        inputs = model.metadata.get_input_schema()
        scoring_server.invocations(example.read_bytes(), "application/json", model, inputs)
    return model


def _hand_over(model: Any, job: Job, stack: contextlib.ExitStack) -> None:
    """Have servers of vLLM draw; the policy leaves this process."""
    from infalign.deployment.served import by_engine, give_memory_back

    if _deployed(model) is None:
        raise InputError("it is none that an engine could draw for: set serving.engine to builtin.")
    owner, settings = model.unwrap_python_model(), (job.limits, job.generation)
    owner.deployed = by_engine(owner.deployed, job.name, *settings, stack)
    give_memory_back()


def main() -> None:
    """Serve until told to end, or until the supervisor is gone."""
    job = Job.load(os.environ["INFALIGN_SCORING"])
    with contextlib.ExitStack() as stack:
        try:
            bounded = build(job, stack)
        except (InputError, CheckFailed) as error:
            os.write(job.ready, str(error).encode()[:SAID])
            sys.exit(1)
        _serve(job, bounded)


def _serve(job: Job, bounded: Bounded) -> None:
    config = uvicorn.Config(
        bounded,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http=partial(Timely, limits=job.limits),  # type: ignore[arg-type]
        limit_concurrency=job.limits.connections + 1,  # all others are being answered: 503
        timeout_graceful_shutdown=int(job.limits.drain_seconds),
    )

    def ready() -> None:
        os.write(job.ready, READY)

    server = Draining(config, bounded, job.socket, ready)

    def listen() -> None:
        for line in sys.stdin.buffer:
            server.told(line.decode().strip())
        server.should_exit = True  # left alone

    threading.Thread(target=listen, daemon=True).start()
    server.run()


if __name__ == "__main__":
    main()
