"""A byte-level BPE tokenizer trained on the preference data itself.

PAD, BOS and EOS are three tokens; each turn marker is one ordinary token. Any text can be encoded.
Reads texts, returns a Hugging Face tokenizer; the same texts give the same bytes when saved.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infalign.data.dialogue import ASSISTANT, HUMAN

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
MARKERS = (HUMAN, ASSISTANT)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on dialogues' texts; markers in them are cut out first, they get tokens of their own.

    Args:
        texts: prompts as they are, responses with the space in front that the policy writes.
        vocab_size: tokens altogether; fewer where the texts do not yield as many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _pieces(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for part in text.replace(ASSISTANT, HUMAN).split(HUMAN):
            if part:
                yield part
