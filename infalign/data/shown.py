"""What was recognised in some data, in lines to read before anything is trained."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from infalign.data.dialogue import Dialogue
from infalign.data.pairs import DROP_REASONS, SPLITS, Pair, Prompt, Subset, quantile

EXAMPLES = 3
LONGEST = 300  # characters of a turn in an example
FORMS = {
    "hh": "preference pairs, Anthropic HH: texts with markers",
    "implicit": "preference pairs, texts that begin with the prompt",
    "explicit": "preference pairs, a prompt and two texts",
    "conversations": "preference pairs, conversations",
    "scored": "two responses with a strength or two scores",
    "prompts": "prompts alone, for rewards that need no pairs",
}
Measure = tuple[
    str, Callable[[Sequence[Dialogue]], list[int]], Callable[[Sequence[str]], list[int]]
]
CHARACTERS: Measure = (
    "characters",
    lambda dialogues: [sum(len(t.content) for t in dialogue.turns) for dialogue in dialogues],
    lambda texts: [len(text) for text in texts],
)


def described(read: Subset, measures: Sequence[Measure] = (CHARACTERS,)) -> list[str]:
    """Files and forms, rows, roles, lengths, examples, and what is dropped and why."""
    lines = [f"{_place(file.path)}: {FORMS[file.form]}, {file.rows} rows" for file in read.files]
    lines += [f"{_place(path)}: not read, it is of another split" for path in read.left_out]
    first = read.files[0]
    lines.append(f"columns: {', '.join(first.seen)}")
    renamed = [f"{name} is {role}" for role, name in first.columns.items() if role != name]
    lines += [f"read as: {', '.join(renamed)}"] if renamed else []
    for split in SPLITS:
        rows = _rows(read, split)
        n_prompts = len({row.prompt for row in rows})
        lines.append(f"{split}: {len(read.pairs(split))} pairs, {n_prompts} prompts")
    everything = [row for split in SPLITS for row in _rows(read, split)]
    lines += _roles(everything) + _lengths(everything, measures) + _dropped(read)
    lines += [line for row in everything[:EXAMPLES] for line in _example(row)]
    return [line.encode(errors="backslashreplace").decode() for line in lines]


def proposal(path: str, name: str | None, columns: dict[str, str]) -> str:
    """The lines of params.yaml that read this data for an objective."""
    parts: dict[str, str | dict[str, str]] = {"data": path}
    parts |= {"subset": name} if name else {}
    parts |= {"columns": columns} if columns else {}
    inner = ", ".join(f"{key}: {as_yaml(value)}" for key, value in parts.items())
    return f"objectives: {{NAME: {{{inner}}}}}"


def as_yaml(value: str | dict[str, str]) -> str:
    """A text, or a mapping of texts, as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_yaml(text)}" for key, text in value.items()) + "}"
    plain = value.replace("/", "").replace("_", "").replace(".", "").replace("-", "")
    same = plain.isalpha() and yaml.safe_load(value) == value  # not `null`, `yes` or `.inf`
    return value if same else json.dumps(value, ensure_ascii=False)


def _place(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _rows(read: Subset, split: str) -> list[Pair | Prompt]:
    return [*read.pairs(split), *read.prompts[split]]


def _roles(rows: Sequence[Pair | Prompt]) -> list[str]:
    prompts = {row.prompt for row in rows}
    shapes = Counter(tuple(turn.role for turn in prompt.turns) for prompt in prompts)
    system = sum(prompt.turns[0].role == "system" for prompt in prompts)
    tools = sum(any(turn.role == "tool" for turn in prompt.turns) for prompt in prompts)
    usual = ", ".join(f"{' '.join(roles)} ({n})" for roles, n in shapes.most_common(3))
    told = f"turns of a prompt: {usual}" + (" and others" if len(shapes) > 3 else "")
    return [f"{told}; with a system turn: {system}, with tools: {tools}"] if prompts else []


def _lengths(rows: Sequence[Pair | Prompt], measures: Sequence[Measure]) -> list[str]:
    prompts = sorted({row.prompt for row in rows})
    texts = [text for row in rows if isinstance(row, Pair) for text in (row.chosen, row.rejected)]
    lines = []
    for unit, of_prompts, of_texts in measures:
        for name, lengths in (("prompts", of_prompts(prompts)), ("responses", of_texts(texts))):
            if lengths:
                half, most = (quantile(lengths, share) for share in (0.5, 0.95))
                lines.append(
                    f"{name}: {half} {unit} in the middle, 95 % up to {most}, longest "
                    f"{max(lengths)}"
                )
    return lines


def _dropped(read: Subset) -> list[str]:
    lines = [
        f"dropped: {count} for {reason}: {DROP_REASONS[reason]}"
        for reason, count in read.dropped.items()
        if count
    ]
    return [*lines, f"the first broken row: {read.first_broken}"] if read.first_broken else lines


def _example(row: Pair | Prompt) -> list[str]:
    lines = ["", *(f"  {turn.role}: {_short(turn.content)}" for turn in row.prompt.turns)]
    if isinstance(row, Prompt):
        return [*lines, f"  columns: {_short(row.columns)}"] if row.columns != "{}" else lines
    return [*lines, f"  chosen: {_short(row.chosen)}", f"  rejected: {_short(row.rejected)}"]


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} …"
