"""How a model sees a dialogue and a response: by its tokenizer's chat template, or `plain`.

`plain` is turns behind markers, a space and the response, and EOS (SEP in an encoder that has no
EOS). Behind a chat template a response ends with what ends a turn for the model. Either way a
sequence is encoded in two parts, and `check_whole` compares them with the template's rendering of
the whole. A folder says by its own files which format it is: `chat_template`, and the EOS ids of
`generation_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from infalign.data.dialogue import Dialogue, Turn
from infalign.errors import InputError

PROBE = Dialogue((Turn("user", "Which colour has the sky?"),))
SYSTEM, REPLY = "Answer as briefly as you can.", "Blue, mostly."
_SHOWN = 160  # characters of a rendering in a sentence


class Frame(NamedTuple):
    """What a template writes around the last response.

    Attributes:
        before: text between the generation prompt and the response: nothing, or a space.
        after: text behind it.
        end: the token that ends the turn.
    """

    before: str
    after: str
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
        if self.chat:
            start = self.prompt_text(PROBE) + self._frame.before
            [asked] = self._ids([start])
            found = self._ids([start + text for text in responses])
            encoded = [_behind(asked, ids) for ids in found]
        else:
            encoded = self._ids([f" {text}" for text in responses])
        return [[*ids, self.end][:longest] for ids in encoded]

    def encode_whole(
        self, dialogues: Sequence[Dialogue], responses: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and responses as a reward model reads them, to the last token of the turn.

        Responses in a row to one dialogue have the same prompt. Together they are what the
        template gives for the whole.
        """
        if not self.chat:
            prompts = dict.fromkeys(dialogues)
            ids = dict(zip(prompts, self.encode_prompts(list(prompts)), strict=True))
            return [ids[dialogue] for dialogue in dialogues], self.encode_responses(responses)
        texts = [self.whole_text(*pair) for pair in zip(dialogues, responses, strict=True)]
        shared = dict.fromkeys(dialogues)
        asked = dict(zip(shared, self.encode_prompts(list(shared)), strict=True))
        found = self._ids(texts)
        for dialogue, whole in zip(dialogues, found, strict=True):
            asked[dialogue] = _common(asked[dialogue], whole)
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
        turns = [{"role": "system", "content": SYSTEM}, *PROBE.messages]
        try:
            return SYSTEM in self._rendered(turns, True)
        except InputError:
            return False

    def check_whole(self, dialogue: Dialogue, response: str) -> None:
        """Raise where the parts are not what the template gives for the whole, and show both."""
        if not self.chat:
            return
        [asked], [answer] = self.encode_prompts([dialogue]), self.encode_responses([response])
        [whole] = self._ids([self.whole_text(dialogue, response)])
        if whole[: len(asked) + len(answer)] != asked + answer:
            parts, there = (_tail(self.tokenizer.decode(ids)) for ids in (asked + answer, whole))
            raise InputError(
                "the chat template renders a prompt and its response otherwise than the whole "
                f"dialogue: by parts it ends in {parts!r}, the whole in {there!r}: set "
                "model.template_arguments so that they agree (enable_thinking: false, say), or "
                "model.format to plain."
            )

    def save(self, folder: Path) -> None:
        """The tokenizer, and the ids that end a response, as a model's folder holds them."""
        self.tokenizer.save_pretrained(folder)
        if self.stops:
            GenerationConfig(eos_token_id=list(self.stops)).save_pretrained(folder)

    @cached_property
    def _frame(self) -> Frame:
        prompt, whole = self.prompt_text(PROBE), self.whole_text(PROBE, REPLY)
        rest = whole.removeprefix(prompt)
        if rest == whole or rest.count(REPLY) != 1:
            raise InputError(
                "the chat template's generation prompt is not how it begins the assistant's turn: "
                f"it asks with {_tail(prompt)!r}, and renders the whole as {_tail(whole)!r}: set "
                "model.template_arguments so that they agree, or model.format to plain."
            )
        before, after = rest.split(REPLY)
        special = set(self.tokenizer.all_special_ids) | set(self.stops)
        special |= {end_of(self.tokenizer), *self.tokenizer.added_tokens_decoder}
        end = next((i for i in self._ids([after])[0] if i in special), None) if after else None
        if before.strip():
            raise InputError(
                f"the chat template puts {before!r} between its generation prompt and a response: "
                "set model.template_arguments so that both agree (enable_thinking: false, say), or "
                "model.format to plain."
            )
        return Frame(before, after, end_of(self.tokenizer) if end is None else int(end))

    def _merged(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue without a system turn where the template takes none."""
        if dialogue.turns[0].role != "system" or self.takes_system:
            return dialogue
        system, first, *rest = dialogue.turns
        merged = Turn(first.role, f"{system.content}\n\n{first.content}")
        return Dialogue((merged, *rest))

    def _rendered(self, messages: list[dict[str, str]], ask: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(turn["role"] for turn in messages)
            raise InputError(
                f"the chat template fails on a dialogue of the turns {roles}: {error}: correct "
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
    lines = [f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in arguments.items()]
    return "".join(lines) + template


def check_template(template: str, source: str) -> None:
    """Raise for a template that would render the same dialogue otherwise tomorrow."""
    if "strftime_now" in template and "set date_string =" not in template:
        raise InputError(
            f"{source}: the chat template writes today's date into every prompt, so that no run "
            'could be repeated: set model.template_arguments: {date_string: "26 Jul 2024"}, say.'
        )


def _literal(value: Any) -> str:
    """A value as Jinja spells it."""
    return "none" if value is None else json.dumps(value)


def _behind(prefix: list[int], ids: list[int]) -> list[int]:
    """The ids behind those of a prefix; where a merge crosses, behind what they share."""
    return ids[len(_common(prefix, ids)) :]


def _common(first: list[int], second: list[int]) -> list[int]:
    """The longest common beginning, shorter than the second."""
    n = 0
    for mine, other in zip(first, second[:-1], strict=False):
        if mine != other:
            break
        n += 1
    return first[:n]


def _tail(text: str) -> str:
    return text if len(text) <= _SHOWN else "…" + text[-_SHOWN:]
