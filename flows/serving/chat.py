"""`/v1/chat/completions` in the shape that clients of OpenAI's interface speak.

A choice is a kept answer: N responses are drawn for it and one is kept. What only infalign knows
(the procedure, the rewards of all that was drawn) stands under the key `infalign`, in the request
as in the answer. What would change the distribution that win rates were measured for is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.serving.requests import Reader, Refused, no_number
from infalign.data.framing import asked

EXPECTED = 'send {"messages": [{"role": "user", "content": "a question"}]}'
OWN = ("procedure", "n")
# Taken and without a meaning here: who asks, and what is kept of it elsewhere.
HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields whose usual value asks for nothing, with it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": (),
}
KNOWN = {"model", "messages", "n", "seed", "temperature", "max_tokens", "max_completion_tokens"}
KNOWN |= {"stream", "stream_options", "infalign"}


@dataclass(frozen=True)
class Chat:
    """One request.

    Attributes:
        dialogue: the messages as canonical JSON.
        choices: kept answers that are asked for.
        params: of the model, by the names of `/invocations`.
        stream: whether the answer comes as events.
        usage: whether the last event counts tokens.
    """

    dialogue: str
    choices: int
    params: dict[str, Any]
    stream: bool
    usage: bool


def read_chat(body: bytes, reader: Reader, model: str) -> Chat:
    """What a request asks; or Refused.

    Args:
        reader: knows the bounds.
        model: that is served, as `infalign-helpful/3`.
    """
    try:
        tree = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError):
        raise Refused(400, f"the request is not JSON: {EXPECTED}.") from None
    if not isinstance(tree, dict):
        raise Refused(400, f"the request must be a mapping: {EXPECTED}.")
    tree = {name: value for name, value in tree.items() if value is not None}
    _check_known(tree)
    _check_model(tree.get("model", model), model)
    dialogue = _dialogue(tree.get("messages"))
    own = tree.get("infalign", {})
    if not isinstance(own, dict) or set(own) - set(OWN):
        raise Refused(400, f"infalign must be a mapping with {' and '.join(OWN)} at most.")
    choices = tree.get("n", 1)
    if not _is_count(choices) or not 1 <= choices <= reader.limits.prompts:
        raise Refused(400, f"n must be a whole number, 1 to {reader.limits.prompts}.")
    longest = tree.get("max_completion_tokens", tree.get("max_tokens", 0))
    if not _is_count(longest) or longest < 0:
        raise Refused(400, "max_tokens must be a whole number, 1 or more.")
    options = tree.get("stream_options", {})
    if not isinstance(options, dict) or not isinstance(tree.get("stream", False), bool):
        raise Refused(400, "stream must be true or false, and stream_options a mapping.")
    params = {
        "seed": tree.get("seed", secrets.randbits(31)),
        "max_new_tokens": min(longest, reader.limits.new_tokens),
        "procedure": own.get("procedure", ""),
        "n": own.get("n", 0),
    }
    given = {"temperature": tree["temperature"]} if "temperature" in tree else {}
    reader.check_params(params | given)
    params |= {name: float(value) for name, value in given.items()}
    usage = bool(options.get("include_usage", False))
    return Chat(dialogue, choices, params, bool(tree.get("stream", False)), usage)


def seeds_of(chat: Chat) -> list[int]:
    """A seed for each choice; the first has the request's own, as in `/invocations`."""
    first = chat.params["seed"]
    texts = [f"{first}/choice/{index}" for index in range(1, chat.choices)]
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return [first, *(int.from_bytes(digest[:8], "big") >> 1 for digest in digests)]


def _check_known(tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if name in KNOWN or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            raise Refused(400, f"{name[:40]!r} is not known here: leave it out.")
        if value not in NEUTRAL[name]:
            raise Refused(
                400,
                f"{name} = {json.dumps(value)[:60]} is not supported: responses are drawn from the "
                "whole distribution of the policy, as its win rate was measured; leave it out.",
            )


def _check_model(named: object, model: str) -> None:
    if named not in (model, model.partition("/")[0]):
        shown = json.dumps(named)[:80]
        raise Refused(404, f"model {shown} is not served here: ask for {model.partition('/')[0]}.")


def _dialogue(messages: object) -> str:
    if not isinstance(messages, list) or not messages:
        raise Refused(400, f"messages must be a list: {EXPECTED}.")
    try:
        return asked([_message(number, message) for number, message in enumerate(messages)]).text
    except ValueError as error:
        raise Refused(400, f"the request {error}: {EXPECTED}.") from None


def _message(number: int, message: object) -> dict[str, object]:
    """A message as {role, content}: parts of text joined, a developer's as the system's."""
    if not isinstance(message, dict):
        raise Refused(400, f"message {number} is no mapping: {EXPECTED}.")
    said = {name: value for name, value in message.items() if value not in (None, [])}
    content, role = said.pop("content", ""), said.pop("role", None)
    if said:
        raise Refused(400, f"message {number}: {next(iter(said))[:40]!r} is not supported.")
    if isinstance(content, list):
        parts = [
            part["text"]
            for part in content
            if isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
        ]
        if len(parts) != len(content):
            raise Refused(400, f"message {number} has a part that is no text.")
        content = "".join(parts)
    return {"role": "system" if role == "developer" else role, "content": content}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def completion(
    name: str, model: str, chat: Chat, drawn: Sequence[Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """The answer to a request.

    Args:
        name: of this answer, to which feedback refers.
        drawn: a `deployed.Drawn` for each choice.
        seeds: of each choice.
    """
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.answer.response, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop" if one.finished[one.kept] else "length",
        }
        for index, one in enumerate(drawn)
    ]
    kept = sum(int(one.n_tokens[one.kept]) for one in drawn)
    own = [
        {
            "seed": seed,
            "reward": one.answer.reward,
            "calibrated": one.calibrated,
            "rewards": one.rewards.tolist(),
            "kept": one.kept,
            "drawn_tokens": int(one.n_tokens.sum()),
        }
        for one, seed in zip(drawn, seeds, strict=True)
    ]
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": drawn[0].prompt_tokens,
            "completion_tokens": kept,
            "total_tokens": drawn[0].prompt_tokens + kept,
        },
        "infalign": {"procedure": str(drawn[0].procedure), "choices": own},
    }


def events(answer: Mapping[str, Any], usage: bool) -> bytes:
    """The answer as server-sent events: the kept response is known whole before the first one."""
    head = {name: answer[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    chunks: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        index, text = choice["index"], choice["message"]["content"]
        deltas = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in re.findall(r"\s*\S+\s*$|\s*\S+|\s+$", text)]
        chunks += [{"choices": [_delta(index, delta, None)]} for delta in deltas]
        chunks.append({"choices": [_delta(index, {}, choice["finish_reason"])]})
    chunks[-1]["infalign"] = answer["infalign"]
    if usage:
        chunks.append({"choices": [], "usage": answer["usage"]})
    lines = [f"data: {json.dumps(head | chunk)}\n\n" for chunk in chunks]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def _delta(index: int, delta: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def models(model: str) -> dict[str, Any]:
    """What `/v1/models` lists."""
    listed = {"id": model.partition("/")[0], "object": "model", "created": 0}
    return {"object": "list", "data": [listed | {"owned_by": "infalign", "version": model}]}


def fault(status: int, sentence: str) -> bytes:
    """An error as these clients read it."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    said = {"message": sentence, "type": kind, "param": None, "code": None}
    return json.dumps({"error": said}).encode()
