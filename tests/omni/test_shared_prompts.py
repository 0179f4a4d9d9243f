"""Prompts that share their media: read once, answered as if each were alone."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from omni.generation import prefill
from omni.inputs import OmniInputs
from omni.media import load_media
from omni.shared_prompts import common_length, prefill_lots, shares_media
from tests.support import tiny_omni

ASSISTANT = tiny_omni.assistant()
SHORT: dict[str, Any] = {"max_new_tokens": 6}
MEDIA: dict[str, Any] = {
    "image": lambda seed: tiny_omni.picture(24, 16 + 8 * seed, seed),
    "audio": lambda seed: load_media(tiny_omni.tone(0.4 + 0.3 * seed, seed), sampling_rate=16_000),
    "video": lambda seed: load_media(tiny_omni.clip(3 + seed, 24, 32, seed), fps=4.0),
}


def lot_of(kinds: list[str], questions: list[str], seed: int, **options: Any) -> list[OmniInputs]:
    media = [MEDIA[kind](seed) for kind in kinds]
    return [
        ASSISTANT.prepare(
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "media", "media": medium} for medium in media),
                        {"type": "text", "text": question},
                    ],
                }
            ],
            **SHORT,
            **options,
        )
        for question in questions
    ]


some_lots = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["image", "audio", "video"]), min_size=0, max_size=2),
        st.lists(st.text("What is? \n", max_size=12), min_size=1, max_size=3),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=12, deadline=None)
@given(some_lots, st.integers(0, 3), st.sampled_from([{}, {"reduction": {"video": "evs(0.6)"}}]))
def test_each_prompt_is_answered_as_if_it_were_alone(lots, rows, options) -> None:
    made = [lot_of(*lot, **options) for lot in lots]
    read = prefill_lots(ASSISTANT.model, made, pad_token_id=0, answer_tokens=1, rows=rows)
    parts = [(part.logits.clone(), part.attention_mask.sum(1)) for part in read]
    prompts = [prompt for lot in made for prompt in lot]
    alone = torch.cat([prefill(ASSISTANT.model, prompt).logits for prompt in prompts])
    torch.testing.assert_close(torch.cat([logits for logits, _ in parts]), alone)
    lengths = [prompt.num_tokens for prompt in prompts]
    assert torch.cat([lengths for _, lengths in parts]).tolist() == lengths
    replies = ASSISTANT.reply_lots(made, rows=rows, **SHORT, **options)
    answers = [ASSISTANT.reply_batch([prompt], **SHORT, **options)[0] for prompt in prompts]
    assert [reply.text for reply in replies] == [answer.text for answer in answers]
    assert [reply.ledger.answer_tokens for reply in replies] == [
        answer.ledger.answer_tokens for answer in answers
    ]


def test_one_row_at_a_time_samples_each_with_the_same_seed() -> None:
    lot = lot_of(["image"], ["What?", "Where is it?", "What?"], 1)
    options = {**SHORT, "temperature": 1.0, "seed": 3}
    replies = ASSISTANT.reply_lots([lot], rows=1, **options)
    alone = [ASSISTANT.reply_batch([prompt], **options)[0] for prompt in lot]
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    assert replies[0].text == replies[2].text


def test_no_prompts_have_no_answers() -> None:
    assert tiny_omni.assistant().reply_lots([]) == []


def test_media_are_encoded_once_a_lot(monkeypatch) -> None:
    embedded = []
    embed = ASSISTANT.model.embed

    def counted(input_ids, media, *rest):
        embedded.extend(media)
        return embed(input_ids, media, *rest)

    monkeypatch.setattr(ASSISTANT.model, "embed", counted)
    lots = [lot_of(["image", "audio"], ["a?", "b?", "c?"], 0), lot_of(["video"], ["a?", "b?"], 1)]
    ASSISTANT.reply_lots(lots, **SHORT)
    assert len(embedded) == 3


def test_prompts_share_what_is_planned_alike() -> None:
    same = lot_of(["image", "video"], ["What?", "Where?"], 0)
    assert shares_media(*same)
    begin = common_length(same)
    assert torch.equal(same[0].input_ids[:, :begin], same[1].input_ids[:, :begin])
    assert same[0].input_ids[0, begin] != same[1].input_ids[0, begin]
    tight = lot_of(["image", "video"], ["?", "? " * 30], 2, max_tokens=260)
    assert [dict(item.chosen) for item in tight[0].media] != [
        dict(item.chosen) for item in tight[1].media
    ]
    assert not shares_media(*tight)
    assert not shares_media(same[0], lot_of(["image"], ["What?"], 0)[0])


def test_another_decoder_answers_each_by_itself() -> None:
    text = LlamaConfig(
        vocab_size=tiny_omni.VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    ).to_dict()
    other = tiny_omni.assistant(text_config=text)
    lot = lot_of(["image"], ["What?", "Where?"], 0)
    replies = other.reply_lots([lot], **SHORT)
    assert [r.text for r in replies] == [r.text for r in other.reply_batch(lot, **SHORT)]
