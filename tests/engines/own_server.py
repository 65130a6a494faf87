"""vLLM's `/v1/completions` over the built-in sampler: what clients ask, answered by a real model.

A request's responses are decoded as the built-in sampler decodes a batch of one prompt, from the
same uniforms: the same tokens, to the same bits of their log-probabilities.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from infalign.lm.models import load_policy
from infalign.lm.sampling.randomness import draw, uniforms
from infalign.lm.sampling.ways import proven_way

ROOT = Path(__file__).parents[2]
Distort = Callable[[torch.Tensor], torch.Tensor]
SENT = {  # what must be in a request: a server's own defaults hold for the rest
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": 0,
    "return_token_ids": True,
}


class OwnServer:
    """Models by name behind a port.

    Attributes:
        models: what is served.
        asked: the requests for completions.
        adapters: the names of those that were loaded.
        most: how many were under way at once.
        failing: answers 503 to so many requests first.
        distort: what is done to logits before tokens are drawn; log-probabilities are of the whole.
    """

    def __init__(self, port: int = 0, models: dict[str, PreTrainedModel] | None = None) -> None:
        self.models = models or {}
        self.asked: list[dict[str, Any]] = []
        self.adapters: list[str] = []
        self.most = self.failing = self._under_way = 0
        self.distort: Distort = lambda logits: logits
        self.cut: int | None = None  # tokens of a response at most, whatever is asked for
        self._lock = threading.Lock()
        self._model_lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def serve(self, name: str, folder: Path) -> None:
        """Load a model under a name."""
        self.models[name] = load_policy(folder, torch.device("cpu"))

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, {"data": [{"id": name} for name in owner.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._say(*owner.answer(self.path, body))

            def _say(self, status: int, body: dict[str, Any]) -> None:
                text = json.dumps(body).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        if path == "/v1/load_lora_adapter":
            self.adapters.append(body["lora_name"])
            self.serve(body["lora_name"], Path(body["lora_path"]))
            return 200, {}
        if path == "/v1/unload_lora_adapter":
            self.models.pop(body["lora_name"])
            return 200, {}
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        try:
            return self._completions(body)
        finally:
            with self._lock:
                self._under_way -= 1

    def _completions(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.asked.append(body)
            if self.failing:
                self.failing -= 1
                return 503, {"error": "starting"}
        if body["model"] not in self.models:
            return 404, {"error": f"The model {body['model']} does not exist."}
        assert {name: body.get(name) for name in SENT} == SENT
        with self._model_lock:
            return 200, {"choices": self._draw(self.models[body["model"]], body)}

    @torch.inference_mode()
    def _draw(self, policy: PreTrainedModel, body: dict[str, Any]) -> list[dict[str, Any]]:
        longest = min(body["max_tokens"], self.cut or body["max_tokens"])
        prompt, samples, ends = body["prompt"], body["n"], torch.tensor(body["stop_token_ids"])
        way, temperature = proven_way(policy, prompt, longest), body["temperature"]
        decoder, logits = way.begin(policy, [prompt], samples, pad=0, longest=longest)
        place, done = torch.arange(samples), torch.zeros(samples, dtype=torch.bool)
        drawn: list[list[int]] = [[] for _ in range(samples)]
        logp: list[list[float]] = [[] for _ in range(samples)]
        key = _key(body["seed"])
        uniform = uniforms(
            0, key.expand(samples), torch.arange(samples), torch.arange(longest)[:, None]
        )
        for position in range(longest):
            shaped = self.distort(logits)
            token, token_logp = draw(shaped, uniform[position, place], temperature)
            if shaped is not logits or temperature != 1.0:
                token_logp = logits.log_softmax(-1).gather(1, token[:, None])[:, 0].double()
            for row, over, *one in zip(
                place.tolist(), done.tolist(), token.tolist(), token_logp.tolist(), strict=True
            ):
                if not over:
                    drawn[row].append(one[0])
                    logp[row].append(one[1])
            done = done | torch.isin(token, ends)
            if position + 1 == longest or bool(done.all()):
                break
            if int(done.sum()) >= decoder.leaving_share * len(token):
                kept = ~done
                decoder.keep(kept)
                token, place, done = token[kept], place[kept], done[kept]
            logits = decoder(token)
        return [
            {
                "index": index,
                "token_ids": tokens,
                "logprobs": {"token_logprobs": values},
                "finish_reason": "stop" if tokens[-1] in body["stop_token_ids"] else "length",
            }
            for index, (tokens, values) in enumerate(zip(drawn, logp, strict=True))
        ]


def _key(seed: int) -> torch.Tensor:
    """The counter whose stream begins at a request's seed: `randomness.engine_seed` undone."""
    golden, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    size = 2**64
    value = seed * golden % size
    value ^= value >> 31 ^ value >> 62
    value = value * pow(second, -1, size) % size
    value ^= value >> 27 ^ value >> 54
    value = value * pow(first, -1, size) % size
    value ^= value >> 30 ^ value >> 60
    value = (value - golden) % size
    return torch.tensor(value - size if value >= size // 2 else value)


@contextlib.contextmanager
def serving(**folders: Path) -> Iterator[OwnServer]:
    """A server of models while the context lasts."""
    server = OwnServer()
    try:
        for name, folder in folders.items():
            server.serve(name, folder)
        yield server
    finally:
        server.stop()


def stand_in(folder: Path) -> Path:
    """A program that takes the command line of vLLM's server and is this one."""
    path = folder / "python"
    place = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    line = f'PYTHONPATH={place} exec {sys.executable} {Path(__file__)} "$@"'
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--served-model-name")
    parser.add_argument("--port", type=int)
    chosen, _ = parser.parse_known_args()
    model = load_policy(chosen.model, torch.device("cpu"))
    server = OwnServer(chosen.port, {chosen.served_model_name: model})
    signal.sigwait({signal.SIGTERM})
    server.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
