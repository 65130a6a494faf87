"""How models see dialogues: `plain` markers."""

from infalign.data.framing import asked

PROMPT = asked("one two")


def test_responses_end_in_eos_unless_cut(form):
    whole = form.encode_responses(["four five six"])[0]
    assert whole[-1] == form.end == form.tokenizer.eos_token_id
    assert form.end not in whole[:-1]
    cut = form.encode_responses(["four five six"], longest=len(whole) - 1)[0]
    assert cut == whole[:-1]


def test_prompts_carry_no_eos(form):
    assert form.end not in form.encode_prompts([PROMPT])[0]
    assert form.encode_prompts([]) == form.encode_responses([]) == []


def test_decoding_returns_the_text(form):
    texts = ["four five six", "ten!", "Ünïcode – and   spaces"]
    assert form.decode(form.encode_responses(texts)) == texts


def test_prompt_and_response_join_as_one_text(form):
    joined = form.encode_prompts([PROMPT])[0] + form.encode_responses(["four"])[0]
    together = form.tokenizer([f"{PROMPT.marked} four"])["input_ids"][0]
    assert joined[:-1] == together


def test_cut_responses_equals_cutting_tokens(form):
    texts = ["four five six seven", "ten"]
    short, kept = form.cut_responses(texts, 3)
    assert texts[0].startswith(short)
    assert len(short) < len(texts[0])
    assert form.encode_responses([kept]) == form.encode_responses(["ten"])
