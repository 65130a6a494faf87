"""A prompt that somebody sends, as a dialogue.

Messages are turns; a text may have `Human:` and `Assistant:` turns, and one without markers is the
human's turn. What may be read in two ways is refused, never guessed at.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence

from infalign.data.dialogue import ASSISTANT, HUMAN, Dialogue, read_marked

_LINES = re.compile("\r\n|\r|\n")
_WORDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}


def asked(prompt: object) -> Dialogue:
    """The dialogue that somebody sends: a question, a text with markers, or messages.

    Whitespace around markers, the kind of line ends and a missing last marker make no difference,
    but where data with markers has the very text: then it is what was read there.

    Raises:
        ValueError: for what is ambiguous or no prompt, as the rest of a sentence about it.
    """
    if isinstance(prompt, str):
        _check_text(prompt)
        return _written(prompt) or _as_in_data(prompt, _framed(prompt))
    if isinstance(prompt, Sequence) and prompt:
        return Dialogue.of(map(_turn, prompt))
    kind = _WORDS.get(type(prompt), "an empty list" if prompt == [] else "a mapping")
    raise ValueError(f"is neither a text nor messages but {kind}")


def text_fault(value: object) -> str | None:
    """Why a value is no text that can be asked, as the rest of a sentence about it."""
    if not isinstance(value, str):
        return f"is not a text but {_WORDS.get(type(value), 'a list or a mapping')}"
    if not value.strip():
        return "is not a text with a question in it"
    if "\0" in value:
        return "has a NUL character: leave it out"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "has half of a surrogate pair, which is no character: send valid Unicode"
    return None


def _written(text: str) -> Dialogue | None:
    """A dialogue's canonical JSON, in which messages are sent on; None for any other text."""
    if not text.startswith('[{"content":'):
        return None
    try:
        dialogue = asked(json.loads(text))
    except (ValueError, RecursionError):
        return None
    return dialogue if dialogue.text == text else None


def _turn(message: object) -> tuple[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise ValueError('has a message that is not {"role": …, "content": …}')
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("has a message whose role or content is not a text")
    _check_text(content)
    return role, content


def _check_text(text: str) -> None:
    if fault := text_fault(text):
        raise ValueError(fault)


def _as_in_data(text: str, framed: Dialogue) -> Dialogue:
    """The dialogue with the line ends within its turns that data with markers gives it."""
    read = read_marked(f"\n\n{text.lstrip()}")
    if read is None:
        return framed
    plain = [(role, "\n".join(_LINES.split(content))) for role, content in read.turns]
    return read if plain == list(framed.turns) else framed


def _framed(text: str) -> Dialogue:
    lines = _LINES.split(text.strip())
    marks = [(at, mark) for at, line in enumerate(lines) if (mark := _mark(line))]
    if not marks:
        lines, marks = [HUMAN.strip(), *lines], [(0, HUMAN)]
    _check_marks(lines, marks)
    turns = []
    for (at, mark), (end, _) in itertools.pairwise([*marks, (len(lines), "")]):
        first = lines[at].lstrip().removeprefix(mark.strip())
        turns.append((mark, "\n".join([first, *lines[at + 1 : end]]).strip()))
    if turns[-1] == (ASSISTANT, ""):
        turns.pop()
    if turns[-1][0] == ASSISTANT:
        raise ValueError("ends with words of the assistant: end it with the human's turn")
    if not turns[-1][1]:
        raise ValueError("is not a text with a question in it: the human's last turn is empty")
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    return Dialogue.of((roles[mark], words) for mark, words in turns)


def _mark(line: str) -> str | None:
    """The marker that a line starts with."""
    return next((m for m in (HUMAN, ASSISTANT) if line.lstrip().startswith(m.strip())), None)


def _check_marks(lines: list[str], marks: list[tuple[int, str]]) -> None:
    """Raise where a line with a marker may be a turn, or words within one."""
    if marks[0] != (0, HUMAN):
        word = marks[0][1].strip()
        raise ValueError(
            f"has a line that starts with '{word}', but does not itself start with 'Human:': start "
            f"it so, or quote the line as '> {word}'"
        )
    tight = [mark.strip() for at, mark in marks[1:] if lines[at - 1].strip()]
    alternate = all(one != other for (_, one), (_, other) in itertools.pairwise(marks))
    if tight and (len(tight) < len(marks) - 1 or not alternate):
        raise ValueError(
            f"has a line that starts with '{tight[0]}' right below another: put a blank line "
            f"before every turn, or quote the line as '> {tight[0]}'"
        )
