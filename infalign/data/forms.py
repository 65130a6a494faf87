"""The forms that preference data comes in: which one a row has, and what a row of it says.

A form is recognised by the columns that a row has and by what they hold. Where columns have other
names, `columns` says which is which. A row becomes a prompt with two responses, or a prompt alone;
`Drop` says why it cannot be used, `Broken` how it is not of the file's form.

| form | columns |
|---|---|
| `hh` | chosen, rejected: texts with `\\n\\nHuman:` and `\\n\\nAssistant:` markers |
| `implicit` | chosen, rejected: texts that begin alike, with the prompt |
| `explicit` | prompt: a text or messages; chosen, rejected: the responses' texts |
| `conversations` | chosen, rejected: messages; prompt, if any: a text or messages |
| `scored` | prompt, response_1, response_2, and strength or score_1 and score_2 |
| `prompts` | prompt: a text or messages; or messages that end with the user's |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from infalign.data.dialogue import ASSISTANT, HUMAN, ROLES, Dialogue, Turn, read_marked
from infalign.data.framing import asked
from infalign.data.hh import split_text
from infalign.settings.params import COLUMNS

# Columns of well-known data that mean one of these wherever they are.
ALIASES = {
    "preference_strength": "strength",
    "score_chosen": "score_1",
    "score_rejected": "score_2",
}


class Drop(ValueError):
    """A row that is sound but cannot be used: one of `DROP_REASONS`."""


class Broken(ValueError):
    """A row that is not of the file's form, as the rest of a sentence about it."""


class Parts(NamedTuple):
    """What a row says; a prompt alone has no responses."""

    prompt: Dialogue
    chosen: str | None = None
    rejected: str | None = None


Row = Mapping[str, Any]  # by role


@dataclass(frozen=True)
class Form:
    """How the rows of one file are read."""

    name: str
    columns: dict[str, str]  # role to column, those that are read

    def read(self, row: Mapping[str, Any]) -> Parts:
        """What a row says.

        Raises:
            Drop, Broken: for a row that says nothing usable.
        """
        said = {role: _listed(row.get(name)) for role, name in self.columns.items()}
        parts = _READERS[self.name](said)
        if parts.chosen is not None and parts.rejected is not None:
            if parts.chosen == parts.rejected:
                raise Drop("identical_pair")
            if not parts.chosen or not parts.rejected:
                raise Drop("empty_response")
        return parts

    def others(self, row: Mapping[str, Any]) -> str:
        """A row's other columns as JSON, but what JSON cannot hold."""
        kept = {}
        for name, value in row.items():
            if name in self.columns.values():
                continue
            try:
                json.dumps({name: value}, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError, RecursionError):
                continue
            kept[name] = value
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def recognise(row: Mapping[str, Any], columns: Mapping[str, str]) -> Form | None:
    """The form of a row; None where it is of none.

    Args:
        columns: role to column, for columns with names of their own.
    """
    where = {name: name for name in COLUMNS if name in row}
    where |= {role: name for name, role in ALIASES.items() if name in row}
    where |= columns
    has = {role for role, name in where.items() if row.get(name) is not None}
    for name, roles in _recognised({role: _listed(row.get(where[role])) for role in has}):
        return Form(name, {role: where[role] for role in roles if role in where})
    return None


def _recognised(row: Row) -> list[tuple[str, tuple[str, ...]]]:
    """The forms that a row has, best first, with the roles that each reads."""
    found: list[tuple[str, tuple[str, ...]]] = []
    sides = ("chosen", "rejected")
    scores = ("score_1", "score_2")
    prompt = _is_prompt(row.get("prompt"))
    if all(_is_messages(row.get(side)) for side in sides):
        found.append(("conversations", ("prompt", *sides, *scores)))
    if all(isinstance(row.get(side), str) for side in sides):
        marked = all(_marked(row[side]).startswith(HUMAN) for side in sides)
        if not marked and prompt:
            found.append(("explicit", ("prompt", *sides, *scores)))
        found.append(("hh" if marked else "implicit", (*sides, *scores)))
    responses = ("response_1", "response_2")
    if prompt and all(_is_prompt(row.get(name)) for name in responses):
        by = ("strength",) if "strength" in row else scores
        if all(name in row for name in by):
            found.append(("scored", ("prompt", *responses, *by)))
    if prompt:
        found.append(("prompts", ("prompt",)))
    if _is_messages(row.get("messages")):
        found.append(("prompts", ("messages",)))
    return found


def _listed(value: Any) -> Any:
    """One message alone as the list that it should be in."""
    return [value] if isinstance(value, dict) and "role" in value else value


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and "role" in message for message in value)
    )


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _is_messages(value)


def _text(row: Row, role: str) -> str:
    value = row.get(role)
    if not isinstance(value, str):
        raise Broken(f"has no {role!r} text")
    return _unicode(value, role)


def _unicode(text: str, role: str) -> str:
    """JSON can spell half of a UTF-16 pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Broken(f"has a {role!r} text that is not valid Unicode") from None
    return text


def _turns(row: Row, role: str) -> list[Turn]:
    value = row.get(role)
    if not _is_messages(value):
        raise Broken(f"has no {role!r} messages, a list of {{'role', 'content'}}")
    return [_turn(message, role) for message in value or []]


def _turn(message: Mapping[str, Any], column: str) -> Turn:
    role, content = message["role"], message.get("content")
    if not isinstance(role, str):
        raise Broken(f"has a message in {column!r} whose role is no text")
    if message.get("tool_calls") and (content is None or content == ""):
        raise Drop("tool_calls_only")
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise Broken(f"has a message in {column!r} without content")
    known = next((name for name in ROLES if name == role), role)  # one object for all of them
    return Turn(_unicode(known, column), _unicode(content, column))


def _joined(parts: list[Any]) -> str:
    """Content in parts, as vision models take it, where all of it is text."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    kept = [text for text in texts if isinstance(text, str)]
    if len(kept) < len(parts):
        raise Drop("content_not_text")
    return "".join(kept)


def _dialogue(turns: list[Turn]) -> Dialogue:
    if any(turn.role not in ROLES for turn in turns):
        raise Drop("unknown_role")
    if any(turn.role == "system" for turn in turns[1:]):
        raise Drop("system_not_first")
    if not turns or turns[-1].role not in ("user", "tool"):
        raise Drop("no_question")
    if not turns[-1].content.strip():
        raise Drop("empty_prompt")
    return Dialogue.of(turns)


def _prompt(row: Row, role: str = "prompt") -> Dialogue:
    """A prompt given as a text, with markers or without, or as messages."""
    if not isinstance(row.get(role), str):
        return _dialogue(_turns(row, role))
    return _as_sent(_text(row, role))


def _as_sent(text: str) -> Dialogue:
    """A prompt's text as serving reads it, so that a policy meets what it was trained on."""
    if not text.strip():
        raise Drop("empty_prompt")
    try:
        return asked(text)
    except ValueError:
        raise Drop("ambiguous_prompt") from None


def _marked(text: str) -> str:
    """A text with markers as HH spells it: some leave the first line ends out."""
    start = text.lstrip()
    return f"\n\n{start}" if start.startswith(HUMAN.strip()) and ASSISTANT in text else text


def _read_marked(text: str) -> Dialogue:
    dialogue = read_marked(text)
    if dialogue is None:
        raise Drop("no_question")
    return dialogue


def _not_tied(row: Row) -> None:
    """Equal scores say that a pair's label is arbitrary."""
    scores = row.get("score_1"), row.get("score_2")
    if all(isinstance(score, int | float) for score in scores) and scores[0] == scores[1]:
        raise Drop("tie")


def _hh(row: Row) -> Parts:
    sides = []
    for role in ("chosen", "rejected"):
        side = split_text(_marked(_text(row, role)))
        if side is None:
            raise Broken(
                f"has a {role!r} that is no dialogue of '\\n\\nHuman:' and '\\n\\nAssistant:' "
                "turns ending with the assistant's"
            )
        sides.append(side)
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        raise Drop("prompt_differs")
    _not_tied(row)
    return Parts(_read_marked(prompt), chosen, rejected)


def _implicit(row: Row) -> Parts:
    """The prompt is what both texts begin with, less the word within which they part."""
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if chosen == rejected:
        raise Drop("identical_pair")
    cut = _alike(chosen, rejected)
    if any(_in_word(text[cut : cut + 1]) for text in (chosen, rejected)):
        while cut and _in_word(chosen[cut - 1]):
            cut -= 1
    prompt = chosen[:cut].strip()
    if not prompt:
        raise Drop("prompt_differs")
    _not_tied(row)
    return Parts(_as_sent(prompt), chosen[cut:].strip(), rejected[cut:].strip())


def _alike(first: Sequence[object], second: Sequence[object]) -> int:
    """How many of their first elements are the same."""
    shortest = min(len(first), len(second))
    return next((at for at in range(shortest) if first[at] != second[at]), shortest)


def _in_word(char: str) -> bool:
    """Whether a character belongs to a word of several; Chinese and Japanese have no spaces."""
    return (char.isalnum() or char == "_") and not "\u2e80" <= char <= "\u9fff"


def _explicit(row: Row) -> Parts:
    prompt = _prompt(row)
    chosen, rejected = (_text(row, role).strip() for role in ("chosen", "rejected"))
    _not_tied(row)
    return Parts(prompt, chosen, rejected)


def _conversations(row: Row) -> Parts:
    """Both sides as messages: the response alone, or the prompt before it."""
    chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
    given = row.get("prompt")
    if given is not None and _responses_alone(chosen, rejected):
        prompt = _prompt(row)
    else:
        shared = _shared(chosen, rejected)
        prompt = _dialogue(chosen[:shared])
        chosen, rejected = chosen[shared:], rejected[shared:]
        if given is not None:
            _check_prompt(row, prompt)
    _not_tied(row)
    return Parts(prompt, _response(chosen), _response(rejected))


def _responses_alone(*sides: list[Turn]) -> bool:
    return all(side[0].role == "assistant" for side in sides)


def _shared(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many turns are the prompt's."""
    if chosen == rejected:
        raise Drop("identical_pair")
    shared = _alike(chosen, rejected)
    ahead = [side[shared].role for side in (chosen, rejected) if len(side) > shared]
    if not shared or "user" in ahead or "system" in ahead:
        raise Drop("prompt_differs")
    return shared


def _check_prompt(row: Row, prompt: Dialogue) -> None:
    """Raise where the prompt's own column is no part of what both conversations begin with."""
    if isinstance(row["prompt"], str):
        said = {turn.content.strip() for turn in prompt.turns if turn.role == "user"}
        fits = _text(row, "prompt").strip() in said
    else:
        given = _turns(row, "prompt")
        fits = tuple(given) in (prompt.turns, prompt.turns[1:])
    if not fits:
        raise Drop("prompt_differs")


def _response(turns: list[Turn]) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Drop("response_not_one_turn")
    return turns[0].content.strip()


def _scored(row: Row) -> Parts:
    """A strength below 0 prefers the first response, one above 0 the second; or by two scores."""
    prompt = _prompt(row)
    first, second = (
        _text(row, role).strip() if isinstance(row.get(role), str) else _response(_turns(row, role))
        for role in ("response_1", "response_2")
    )
    if "strength" in row:
        lead = -_number(row, "strength")
    else:
        lead = _number(row, "score_1") - _number(row, "score_2")
    if lead == 0:
        raise Drop("tie")
    return Parts(prompt, first, second) if lead > 0 else Parts(prompt, second, first)


def _number(row: Row, role: str) -> float:
    value = row.get(role)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Broken(f"has no number as {role!r}")
    try:
        number = float(value)
    except OverflowError:  # JSON's integers have no largest one
        number = math.inf
    if not math.isfinite(number):
        raise Broken(f"has no finite number as {role!r}")
    return number


def _alone(row: Row) -> Parts:
    return Parts(_prompt(row, "prompt" if "prompt" in row else "messages"))


_READERS: dict[str, Callable[[Row], Parts]] = {
    "hh": _hh,
    "implicit": _implicit,
    "explicit": _explicit,
    "conversations": _conversations,
    "scored": _scored,
    "prompts": _alone,
}
