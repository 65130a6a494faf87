"""A prompt that somebody sends, in the one spelling that policies were trained on.

Training reads dialogues of `\\n\\nHuman: …` and `\\n\\nAssistant: …` turns that end with an empty
`\\n\\nAssistant:` (`hh.py`). A text without markers is the human's turn. What may be read in two
ways is refused, never guessed at.
"""

from __future__ import annotations

import itertools
import re

from infalign.data.hh import ASSISTANT, HUMAN

_WORDS = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}


def text_fault(value: object) -> str | None:
    """Why a value is no text that can be asked, as the rest of a sentence about the prompt."""
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


def framed(text: str) -> str:
    """The question or dialogue as policies read it; `framed(framed(x)) == framed(x)`.

    Whitespace around markers, the kind of line ends and a missing last marker make no difference.

    Raises:
        ValueError: for what is ambiguous, as the rest of a sentence about the prompt.
    """
    lines = re.split("\r\n|\r|\n", text.strip())
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
    return "".join(f"{mark} {words}".rstrip() for mark, words in [*turns, (ASSISTANT, "")])


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
