import pytest
import torch

from omni.choosing import GenerationOptions, Vocabulary, keep_likely
from omni.errors import RequestError
from omni.generation import collect, generate, prefill
from omni.inputs import collate
from omni.options import MediaOptions
from tests.support import tiny_omni
from tests.support.untyped import untyped

NO_STOP = Vocabulary(stop=frozenset(), banned=(18, 21, 22, 27, 28, 29))


@pytest.fixture(scope="module")
def assistant():
    return tiny_omni.assistant()


@pytest.fixture(scope="module")
def requests(assistant):
    processor = assistant.processor
    media = {
        "<video>": processor.load_media(tiny_omni.clip(10, 36, 64), fps=8.0),
        "<image>": processor.load_media(tiny_omni.picture(48, 40)),
        "<so_embedding>": processor.load_media(tiny_omni.tone(1.3), sampling_rate=16_000),
    }
    options = MediaOptions(reduction={"video": "evs(0.5)"})
    texts = ["<video>a?", "<image>bb?", "<so_embedding>ccc?", "dddd?"] * 2
    return [
        processor.from_text(text + "!" * i, [media[m] for m in media if m in text], options=options)
        for i, text in enumerate(texts)
    ]


def answers(model, samples, options=None, vocabulary=NO_STOP, *, thinking=False) -> list[list[int]]:
    batch = collate(samples, pad_token_id=0, padding_side="left")
    options = options or GenerationOptions(max_new_tokens=8)
    steps = generate(model, prefill(model, batch), options, vocabulary, thinking=thinking)
    return collect(steps, len(samples))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch_size(assistant, requests, temperature):
    def in_batches_of(size: int) -> list[list[int]]:
        found = []
        for start in range(0, 8, size):
            options = GenerationOptions(max_new_tokens=8, temperature=temperature, seed=start)
            found += answers(assistant.model, requests[start : start + size], options)
        return found

    assert in_batches_of(1) == in_batches_of(2) == in_batches_of(8)


def test_each_step_gives_the_scores_of_a_full_forward(assistant, requests):
    model = assistant.model
    for sample in requests[:4]:
        [tokens] = answers(model, [sample])
        prompt = prefill(model, sample)
        embeddings, _, _ = model.embed(sample.input_ids, sample.media)
        tail = model.get_input_embeddings()(torch.tensor([tokens]))
        with torch.no_grad():
            full = model(inputs_embeds=torch.cat([embeddings, tail], dim=1)).logits[0]
            torch.testing.assert_close(
                prompt.logits[0], full[len(embeddings[0]) - 1], rtol=0, atol=1e-5
            )
            for i, token in enumerate(tokens):
                out = model(input_ids=torch.tensor([[token]]), cache=prompt.cache, use_cache=True)
                expected = full[len(embeddings[0]) + i]
                torch.testing.assert_close(out.logits[0, -1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_is_prefill_at_once(assistant, requests, chunk):
    batch = collate(requests[:4], pad_token_id=0, padding_side="left")
    whole = prefill(assistant.model, batch).logits
    torch.testing.assert_close(
        prefill(assistant.model, batch, chunk=chunk).logits, whole, rtol=0, atol=1e-5
    )


def test_an_answer_within_its_room_never_copies_the_cache(assistant, requests):
    model = assistant.model
    prompt = prefill(model, requests[0], answer_tokens=5)
    logs = [log for state in prompt.cache.layers for log in (getattr(state, "keys", None),) if log]
    before = [log.data.data_ptr() for log in logs]
    options = GenerationOptions(max_new_tokens=5)
    collect(generate(model, prompt, options, Vocabulary(stop=frozenset())), 1)
    assert before
    assert [log.data.data_ptr() for log in logs] == before


def test_our_greedy_answer_is_that_of_transformers_generate(assistant, requests):
    model = assistant.model
    for sample in requests[:4]:
        arguments = {**sample, "suppress_tokens": list(NO_STOP.banned), "eos_token_id": None}
        theirs = model.generate(**arguments, max_new_tokens=8, do_sample=False)
        [ours] = answers(model, [sample])
        assert theirs[0, sample.input_ids.shape[1] :].tolist() == ours


def test_media_ids_are_never_emitted(assistant, requests):
    everything_but = tuple(i for i in range(tiny_omni.VOCAB_SIZE) if i not in (18, 40))
    vocabulary = Vocabulary(stop=frozenset(), banned=(*everything_but, 18))
    assert answers(assistant.model, requests[:1], vocabulary=vocabulary) == [[40] * 8]


def test_a_row_that_stops_leaves_the_others_as_they_were(assistant, requests):
    alone = [answers(assistant.model, [each])[0] for each in requests[:4]]
    stop = Vocabulary(stop=frozenset({alone[1][2]}), banned=NO_STOP.banned)
    together = answers(assistant.model, requests[:4], vocabulary=stop)
    for tokens, expected in zip(together, alone, strict=True):
        cut = expected.index(alone[1][2]) if alone[1][2] in expected else len(expected)
        assert tokens == expected[:cut]


def test_reasoning_ends_after_its_budget_with_grace(assistant, requests):
    vocabulary = Vocabulary(
        stop=frozenset(),
        banned=(*NO_STOP.banned, 13, 40),  # never closes by itself, never breaks a line
        think_end=13,
        line_break=frozenset({40}),
        close_at_break=(13, 50),
        close_anywhere=(51, 13, 50),
    )
    options = GenerationOptions(max_new_tokens=12, reasoning_budget=3, reasoning_grace=2)
    [tokens] = answers(assistant.model, requests[:1], options, vocabulary, thinking=True)
    assert tokens[5:8] == [51, 13, 50]
    assert tokens.count(13) == 1


def test_reasoning_ends_at_a_line_break_once_the_budget_is_spent(assistant, requests):
    others = tuple(i for i in range(tiny_omni.VOCAB_SIZE) if i != 40)
    vocabulary = Vocabulary(
        stop=frozenset(),
        banned=others,  # says nothing but line breaks
        think_end=13,
        line_break=frozenset({40}),
        close_at_break=(13, 50),
    )
    options = GenerationOptions(max_new_tokens=6, reasoning_budget=2, reasoning_grace=9)
    found = answers(assistant.model, requests[:1], options, vocabulary, thinking=True)
    assert found == [[40, 40, 13, 50, 40, 40]]
    # An answer without reasoning has none to end.
    assert answers(assistant.model, requests[:1], options, vocabulary) == [[40] * 6]


@pytest.mark.parametrize("temperature", [1e-38, 1e-46, 1e-300])
def test_a_temperature_near_nothing_takes_the_best_token(assistant, requests, temperature):
    cold = GenerationOptions(max_new_tokens=8, temperature=temperature)
    assert answers(assistant.model, requests[:2], cold) == answers(assistant.model, requests[:2])


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "reasoning_budget"])
def test_counts_are_whole_numbers(name):
    with pytest.raises(RequestError, match=rf"{name} is 4.0; expected a whole number"):
        untyped(GenerationOptions, **{name: 4.0})


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", ["0.5", None])
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(RequestError, match=rf"{name} is {value!r}; expected a number"):
        untyped(GenerationOptions, **{name: value})


def test_top_k_and_top_p_keep_the_likely_tokens():
    scores = torch.tensor([0.0, 3.0, 2.0, 1.0])
    kept = keep_likely(scores, GenerationOptions(top_k=2)) > 0
    assert kept.tolist() == [False, True, True, False]
    kept = keep_likely(scores, GenerationOptions(top_p=0.7)) > 0
    assert kept.tolist() == [False, True, True, False]
    assert bool((keep_likely(scores, GenerationOptions()) > 0).all())


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("temperature", -1.0, "0 or more"),
        ("temperature", float("inf"), "0 or more, and finite"),
        ("temperature", float("nan"), "0 or more, and finite"),
        ("top_p", 0, "above 0"),
    ],
)
def test_options_out_of_range_raise(option, value, expected):
    with pytest.raises(RequestError, match=f"{option} is {value}; expected {expected}"):
        GenerationOptions(**{option: value})


def test_right_padded_prompts_are_refused(assistant, requests):
    batch = collate(requests[:4], pad_token_id=0, padding_side="right")
    with pytest.raises(RequestError, match="padded on the left"):
        prefill(assistant.model, batch)
