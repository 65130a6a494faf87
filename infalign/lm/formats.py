"""How a model sees a dialogue and a response: by its tokenizer's chat template, or `plain`.

`plain` is turns behind markers, a space and the response, and EOS (SEP in an encoder that has no
EOS). Behind a chat template a response ends with what ends a turn for the model. Either way a
sequence is encoded in two parts, both as they are within the whole text, and `check_whole` compares
them with the template's rendering of the whole. A folder says by its own files which format it is:
`chat_template`, and the EOS ids of `generation_config.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from infalign.data.dialogue import ASSISTANT, Dialogue, Turn
from infalign.errors import InputError

PROBE = Dialogue((Turn("user", "Which colour has the sky?"),))
SYSTEM, REPLY, FOUND = "Answer as briefly as you can.", "Blue, mostly.", "overcast"
CLOCK = "strftime_now"  # the function by which templates write today's date
GIVEN = {"messages", "add_generation_prompt", "tools", "documents"}  # not arguments of a template
# What foreign code raises that Jinja runs in its sandbox.
_FAILURES = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_SHOWN = 160  # characters of a rendering in a sentence


class Frame(NamedTuple):
    """What a template writes around the last response.

    Attributes:
        before: text between the generation prompt and the response: nothing, or whitespace.
        closing: text behind it, to the end of the turn; empty where the template writes no end.
        end: the token that ends the turn.
    """

    before: str
    closing: str
    end: int


@dataclass(frozen=True)
class Format:
    """One model's view of dialogues and responses.

    Attributes:
        tokenizer: the model's own.
        stops: ids that end a response, beside the tokenizer's EOS: those of generation_config.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...] = ()

    @property
    def chat(self) -> bool:
        """Whether the model is asked through a chat template."""
        return self.tokenizer.chat_template is not None

    @property
    def pad(self) -> int:
        """The padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def rows(self) -> int:
        """Rows of an embedding that its tokens need: ids may have holes, and EOS stand behind."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def end(self) -> int:
        """The token behind a response."""
        return self._frame.end if self.chat else end_of(self.tokenizer)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Every token that ends a response, the one behind a given response first."""
        others = {*self.stops, end_of(self.tokenizer)} - {self.end}
        return (self.end, *sorted(others))

    def prompt_text(self, dialogue: Dialogue) -> str:
        """What the model reads before it answers."""
        if not self.chat:
            return dialogue.marked
        if not self.takes_tools and any(turn.role == "tool" for turn in dialogue.turns):
            raise InputError(
                "the chat template does not show the turns of tools, and a dialogue has one: leave "
                "such dialogues out of the data, or set model.format to plain."
            )
        return self._rendered(self._merged(dialogue).messages, True)

    def encode_prompts(self, dialogues: Sequence[Dialogue]) -> list[list[int]]:
        """Token ids of prompts; with `plain`, behind the tokenizer's BOS where it adds one."""
        if not dialogues:
            return []
        texts = [self.prompt_text(dialogue) for dialogue in dialogues]
        if self.chat:
            return self._ids(texts)
        encoded = self.tokenizer(texts, add_special_tokens=True)["input_ids"]
        end = end_of(self.tokenizer)
        return [ids[:-1] if ids and ids[-1] == end else ids for ids in encoded]

    def encode_responses(
        self, responses: Sequence[str], longest: int | None = None
    ) -> list[list[int]]:
        """Token ids of responses behind a prompt, the end last; cut ones (`longest`) lack it."""
        if not responses:
            return []
        start, before, closing = ASSISTANT, " ", ""
        if self.chat:
            start, (before, closing, _) = self.prompt_text(PROBE), self._frame
        [asked] = self._ids([start])
        found = self._ids([start + before + text + closing for text in responses])
        ends = [] if closing else [self.end]
        return [(ids[len(_common(asked, ids)) :] + ends)[:longest] for ids in found]

    def encode_whole(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and responses as a reward model reads them: together, the template's whole.

        Responses to one dialogue have the same prompt: what all of them begin with.
        """
        shared = list(dict.fromkeys(dialogues))
        asked = dict(zip(shared, self.encode_prompts(shared), strict=True))
        if not self.chat:
            return [asked[dialogue] for dialogue in dialogues], self.encode_responses(responses)
        texts = [self.whole_text(*pair) for pair in zip(dialogues, responses, strict=True)]
        found = self._ids(texts)
        for dialogue, whole in zip(dialogues, found, strict=True):
            asked[dialogue] = _common(asked[dialogue], whole[:-1])  # a response has a token
        begun = [asked[dialogue] for dialogue in dialogues]
        return begun, [whole[len(p) :] for p, whole in zip(begun, found, strict=True)]

    def whole_text(self, dialogue: Dialogue, response: str) -> str:
        """The dialogue with its response, as the template renders it."""
        turns = self._merged(dialogue).messages
        return self._rendered([*turns, {"role": "assistant", "content": response}], False)

    def cut_responses(self, responses: Sequence[str], longest: int) -> list[str]:
        """Responses as a policy of at most `longest` tokens would have been cut off in them."""
        tokens = self.encode_responses(responses)
        decoded = self.decode([t[:longest] for t in tokens])
        return [
            cut if len(t) > longest else response
            for response, cut, t in zip(responses, decoded, tokens, strict=True)
        ]

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The text of sampled responses: special tokens left out, stripped."""
        if not tokens:
            return []
        clean = [list(t[:-1]) if len(t) and t[-1] in self.ends else list(t) for t in tokens]
        texts = self.tokenizer.batch_decode(
            clean, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template shows a system turn; where not, it goes into the user's first."""
        return self._shows(SYSTEM, [Turn("system", SYSTEM), *PROBE.turns])

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows a tool's turn; where not, it is asked none."""
        return self._shows(FOUND, [*PROBE.turns, Turn("assistant", REPLY), Turn("tool", FOUND)])

    def check_whole(self, dialogue: Dialogue, response: str) -> None:
        """Raise where the parts are not what the template gives for the whole, and show both."""
        if not self.chat:
            return
        [asked], [answer] = self.encode_prompts([dialogue]), self.encode_responses([response])
        [whole] = self._ids([self.whole_text(dialogue, response)])
        parts = asked + answer if self._frame.closing else asked + answer[:-1]
        if whole[: len(parts)] != parts:
            raise _apart(*(self.tokenizer.decode(ids) for ids in (parts, whole)))

    def save(self, folder: Path) -> None:
        """The tokenizer, and the ids that end a response, as a model's folder holds them."""
        self.tokenizer.save_pretrained(folder)
        if self.stops:
            GenerationConfig(eos_token_id=list(self.stops)).save_pretrained(folder)

    @cached_property
    def _frame(self) -> Frame:
        prompt, whole = self.prompt_text(PROBE), self.whole_text(PROBE, REPLY)
        rest = whole.removeprefix(prompt)
        before, reply, after = rest.partition(REPLY)
        if not whole.startswith(prompt) or not reply or before.strip() or REPLY in after:
            raise _apart(prompt + REPLY, whole)
        ends = self._turn_ends()
        found = [(after.index(text), -len(text), text) for text in ends if text in after]
        if not found:
            return Frame(before, "", end_of(self.tokenizer))
        _, _, text = min(found)
        return Frame(before, after[: after.index(text) + len(text)], ends[text])

    def _turn_ends(self) -> dict[str, int]:
        """Tokens that may end a turn: those that are none of a language's words."""
        added = self.tokenizer.added_tokens_decoder.items()
        ids = {end_of(self.tokenizer), *self.stops, *self.tokenizer.all_special_ids}
        ids |= {number for number, token in added if token.special or token.content.strip()}
        texts = {number: self.tokenizer.convert_ids_to_tokens(number) for number in sorted(ids)}
        return {text: int(number) for number, text in texts.items() if text}

    def _merged(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue without a system turn where the template takes none."""
        if dialogue.turns[0].role != "system" or self.takes_system:
            return dialogue
        system, *turns = dialogue.turns
        at = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[at] = Turn(turns[at].role, f"{system.content}\n\n{turns[at].content}")
        return Dialogue(tuple(turns))

    def _shows(self, words: str, turns: Sequence[Turn]) -> bool:
        """Whether the template gives the words of a dialogue's turn back."""
        try:
            return words in self._rendered(Dialogue(tuple(turns)).messages, True)
        except InputError:
            return False

    def _rendered(
        self, messages: list[dict[str, str]], ask: bool, template: str | None = None
    ) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=ask
            )
        except (*_FAILURES, RecursionError) as error:
            roles = ", ".join(turn["role"] for turn in messages)
            said = " ".join(str(error).split())
            raise InputError(
                f"the chat template fails on a dialogue of the turns {roles}: {said}: correct "
                "chat_template, or set model.format to plain."
            ) from None
        return str(text)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found


def end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """EOS, or SEP of an encoder without EOS."""
    eos = tokenizer.eos_token_id
    return int(tokenizer.sep_token_id if eos is None else eos)


def with_arguments(template: str, arguments: Mapping[str, Any]) -> str:
    """A chat template that has its arguments in itself, so that its folder needs none."""
    lines = []
    for name, value in arguments.items():
        if name in GIVEN or not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(
                f"model.template_arguments: {name!r} is no name that the chat template asks for: "
                "correct or remove it."
            )
        if name == CLOCK:
            lines.append(_clock(_literal(value)))
        else:
            lines.append(f"{{%- set {name} = {_literal(value)} %}}\n")
    return "".join(lines) + template


def check_template(form: Format, source: str, remedy: str) -> None:
    """Raise for a template that fails, or would render the same dialogue otherwise tomorrow.

    Args:
        source: what begins the sentence.
        remedy: what ends it.
    """
    asked = PROBE.messages
    form.prompt_text(PROBE)
    template = form.tokenizer.chat_template
    if CLOCK not in template:
        return
    days = [_clock(f'"{day}"') + template for day in ("2001-01-01", "2002-02-02")]
    if form._rendered(asked, True, days[0]) != form._rendered(asked, True, days[1]):
        raise InputError(
            f"{source}: the chat template writes today's date into every prompt, so that no run "
            f"could be repeated: {remedy}."
        )


def _clock(literal: str) -> str:
    """Jinja in which it is always the same day."""
    return f"{{%- macro {CLOCK}(format) %}}{{{{ {literal} }}}}{{% endmacro %}}\n"


def _literal(value: Any) -> str:
    """A value as Jinja spells it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _common(first: list[int], second: list[int]) -> list[int]:
    """The longest common beginning."""
    n = 0
    for mine, other in zip(first, second, strict=False):
        if mine != other:
            break
        n += 1
    return first[:n]


def _apart(parts: str, whole: str) -> InputError:
    """What to raise where a prompt and its response are not the whole dialogue."""
    return InputError(
        "the chat template renders a prompt and its response otherwise than the whole dialogue: by "
        f"parts it ends in {_tail(parts)!r}, the whole in {_tail(whole)!r}: set "
        "model.template_arguments so that they agree (enable_thinking: false, say), or "
        "model.format to plain."
    )


def _tail(text: str) -> str:
    return text if len(text) <= _SHOWN else "…" + text[-_SHOWN:]
