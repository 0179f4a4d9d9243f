"""A question to an open session is a fresh request with the same media, without its cost."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

import omni
from omni.assistant import Assistant
from omni.backbone.cache import KeyValueState
from omni.errors import ContextLengthError, RequestError
from omni.generation import continue_prompt, prefill
from omni.media import load_media
from tests.support import tiny_omni
from tests.support.media import moving_square, sine, write_pdf, write_video

ASSISTANT = tiny_omni.assistant()
SHORT: dict[str, Any] = {"max_new_tokens": 8}
QUESTIONS = ["What?", "", " <|im_end|> </img>\n", "Who\n\nspeaks?\n", "日本"]
EXAMPLES = Path(__file__).parents[2] / "examples" / "media"


def media_of(names: list[str], folder: Path | None = None) -> list[Any]:
    made = {
        "image": lambda: tiny_omni.picture(40, 36),
        "video": lambda: load_media(tiny_omni.clip(12, 36, 64), fps=8.0),
        "audio": lambda: load_media(tiny_omni.tone(1.7), sampling_rate=16_000),
    }
    return [made[name]() for name in names]


def turn(question: str, *media: Any) -> dict[str, Any]:
    parts = [{"type": "media", "media": medium} for medium in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def system_turn(system: str | None) -> list[dict[str, Any]]:
    return [] if system is None else [{"role": "system", "content": system}]


some_options = st.fixed_dictionaries(
    {},
    optional={
        "fps": st.just(2.0),
        "num_frames": st.integers(2, 8),
        "reduction": st.sampled_from(
            [
                {"video": "evs(0.6)"},
                {"video": "keyframes(0.4)|temporal_merge(0.3)"},
                {"image": "prune_merge(0.5)", "audio": "adjacent_merge(0.5)", "video": "tome(0.3)"},
            ]
        ),
        "max_tokens": st.integers(700, 900),
        "thinking": st.booleans(),
    },
)


@settings(max_examples=10, phases=[Phase.generate])
@given(
    names=st.lists(st.sampled_from(["image", "video", "audio"]), min_size=1, max_size=3),
    options=some_options,
    system=st.sampled_from([None, "Be brief."]),
    question=st.sampled_from(QUESTIONS),
)
def test_a_question_is_the_fresh_request_id_by_id(names, options, system, question) -> None:
    model, media = ASSISTANT.model, media_of(names)
    session = ASSISTANT.open(*media, system=system, question_tokens=99, **SHORT, **options)
    stream = session.stream(question)
    if "max_tokens" in options:  # the session leaves room for more of a question than this one
        empty = session.stream("").input_ids.shape[1]
        left = 99 + empty - stream.input_ids.shape[1]
        options = {**options, "max_tokens": options["max_tokens"] - left}
    messages = [*system_turn(system), turn(question, *media)]
    inputs, _ = ASSISTANT._prepare(messages, {**SHORT, **options})

    reused = stream.plan.reused_tokens
    assert torch.equal(inputs.input_ids[:, reused:], stream.input_ids)
    assert reused == session.ledger.prompt_tokens
    assert [item.chosen for item in inputs.media] == [e.chosen for e in session.ledger.media]
    whole = prefill(model, inputs)
    cache = model.new_cache(1)
    cache.restore(session.snapshot)
    continued = continue_prompt(model, cache, stream.input_ids)
    # Float32 rounding of sums that are cut elsewhere, as for chunks of any size.
    torch.testing.assert_close(continued.logits, whole.logits, rtol=0, atol=1e-5)
    assert torch.equal(continued.attention_mask, whole.attention_mask)


@settings(max_examples=3, phases=[Phase.generate])
@given(
    names=st.permutations(["image", "video", "audio"]),
    order=st.permutations(QUESTIONS),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_answers_in_any_order_are_those_of_fresh_requests(names, order, temperature) -> None:
    media = media_of(names)
    options = {**SHORT, "reduction": {"video": "evs(0.5)"}, "temperature": temperature}
    session = ASSISTANT.open(*media, **options)
    for seed, question in enumerate([*order, order[0]]):
        found = session.ask(question, seed=seed)
        fresh = ASSISTANT.ask(question, *media, **options, seed=seed)
        assert found.text == fresh.text
        assert found.evidence == fresh.evidence


@pytest.fixture(scope="module")
def session() -> omni.Session:
    return ASSISTANT.open(*media_of(["image", "video"]), system="Be brief.", **SHORT)


def test_streams_that_run_at_the_same_time_do_not_disturb_each_other(session) -> None:
    alone = [session.ask(question).text for question in QUESTIONS]
    streams = [session.stream(question) for question in QUESTIONS]
    texts = ["" for _ in streams]
    left = list(range(len(streams)))
    shuffle = random.Random(0)
    while left:
        i = shuffle.choice(left)
        piece = next(streams[i], None)
        if piece is None:
            left.remove(i)
            assert streams[i].reply().text == texts[i]
        else:
            texts[i] += piece
    assert texts == alone
    abandoned = session.stream(QUESTIONS[0])
    next(abandoned)
    del abandoned
    assert [session.ask(question).text for question in QUESTIONS] == alone


def test_questions_one_after_another_share_the_memory_of_the_keys(session) -> None:
    logs = [state.keys for state in session.snapshot.layers if isinstance(state, KeyValueState)]
    before = [log.data for log in logs]
    for question in QUESTIONS:
        session.ask(question)
        assert [log.filled for log in logs] == [[session.ledger.prompt_tokens]] * len(logs)
    assert all(log.data is data for log, data in zip(logs, before, strict=True))


def test_a_dialogue_is_that_of_chat_and_forks_go_their_own_way() -> None:
    media = media_of(["video", "audio"])
    session = ASSISTANT.open(*media, **SHORT)
    messages = [turn("First?", *media)]
    assert session.chat("First?").text == ASSISTANT.chat(messages, **SHORT).text
    other = session.fork()
    for branch, question in ((session, "And then?"), (other, "Why?"), (session, "Sure?")):
        messages = [turn("First?", *media)]
        messages += [{"role": "assistant", "content": branch.history[0][1]}]
        for asked, answered in branch.history[1:]:
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": answered})
        messages.append({"role": "user", "content": question})
        assert branch.chat(question).text == ASSISTANT.chat(messages, **SHORT).text
    assert [asked for asked, _ in session.history] == ["First?", "And then?", "Sure?"]
    assert [asked for asked, _ in other.history] == ["First?", "Why?"]
    assert session.ask("First?").text == session.history[0][1]  # no trace of the dialogue


def test_a_session_from_inference_mode_is_any_other() -> None:
    media = media_of(["image", "audio"])
    with torch.inference_mode():
        inside = ASSISTANT.open(*media, **SHORT)
    outside = ASSISTANT.open(*media, **SHORT)
    for mine, other in ((inside, outside), (inside.fork(), outside.fork())):
        for question in QUESTIONS:
            assert mine.ask(question).text == other.ask(question).text
            with torch.inference_mode():
                assert mine.chat(question).text == other.chat(question).text


# ---------------------------------------------------------------- ledger and budget


def test_the_ledger_of_a_question_counts_what_is_new(session) -> None:
    media = media_of(["image", "video"])
    fresh = ASSISTANT.chat([*system_turn("Be brief."), turn("What?", *media)], **SHORT).ledger
    reply = session.ask("What?")
    found = reply.ledger
    assert found.prompt_tokens == fresh.prompt_tokens
    assert found.reused_tokens == session.ledger.prompt_tokens
    assert found.text_tokens == fresh.text_tokens
    assert found.answer_tokens == fresh.answer_tokens
    assert [entry.stages for entry in found.media] == [entry.stages for entry in fresh.media]
    assert (found.kv_cache_bytes, found.mamba_state_bytes) == (
        fresh.kv_cache_bytes,
        fresh.mamba_state_bytes,
    )
    assert found.tower_flops == sum(entry.tower_flops for entry in found.media) == 0
    assert session.ledger.tower_flops == fresh.tower_flops
    assert found.prefill_flops < fresh.prefill_flops
    assert found.memory_bytes < fresh.memory_bytes
    assert fresh.reused_tokens == 0
    assert set(found.seconds) == {"prepare", "prefill", "decode", "total"}
    assert [entry.seconds for entry in found.media] == [{}, {}]
    assert all(entry.seconds for entry in session.ledger.media)
    assert omni.Ledger.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_question_that_leaves_the_budget_is_refused() -> None:
    media = media_of(["video"])
    tight = ASSISTANT.open(*media, max_tokens=200, question_tokens=20, **SHORT)
    assert tight.ledger.lowered
    stream = tight.stream("What?")
    left = 20 - (stream.input_ids.shape[1] - tight.stream("").input_ids.shape[1])
    fresh = ASSISTANT.plan("What?", *media, max_tokens=200 - left, **SHORT)
    assert fresh.prompt_tokens == stream.plan.prompt_tokens <= 200 - 8
    assert [entry.chosen for entry in fresh.media] == [e.chosen for e in tight.ledger.media]
    with pytest.raises(ContextLengthError, match=r"has read \d+ tokens; .* more than 200"):
        tight.ask("What? " * 30)
    with pytest.raises(ContextLengthError, match="room for 4096 of an answer"):
        tight.ask("What?", max_new_tokens=4096)
    enough = ASSISTANT.plan("?" * 128, *media, **SHORT).memory_bytes
    small = ASSISTANT.open(*media, max_memory=enough + 10_000, **SHORT)
    small.ask("?" * 128)
    with pytest.raises(ContextLengthError, match=r"the session needs .* but its budget is 6"):
        small.ask("What? " * 300)


def test_what_a_session_cannot_do_is_refused(session) -> None:
    with pytest.raises(RequestError, match="found no media to open"):
        ASSISTANT.open()
    with pytest.raises(TypeError, match="'colour'; expected system"):
        ASSISTANT.open(*media_of(["image"]), colour="red")
    with pytest.raises(TypeError, match=r"'fps' of a question; .* set when they are opened"):
        session.ask("What?", fps=2)
    with pytest.raises(RequestError, match="media marker, '<image>'"):
        session.ask("What is <image>?")
    with pytest.raises(RequestError, match="temperature is -1"):
        session.ask("What?", temperature=-1)
    text = LlamaConfig(
        vocab_size=tiny_omni.VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    ).to_dict()
    with pytest.raises(RequestError, match=r"hybrid backbone, .* is 'llama'"):
        tiny_omni.assistant(text_config=text).open(*media_of(["image"]))


def test_a_template_that_moves_the_media_is_noticed() -> None:
    assistant = tiny_omni.assistant()
    template = "{{ enable_thinking }} {% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = tiny_omni.byte_tokenizer()
    assistant.processor.tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, chat_template=template, pad_token="<unk>"
    )
    session = assistant.open(*media_of(["image"]), **SHORT)
    session.ask("What?")
    with pytest.raises(RequestError, match=r"before the media for this question \(thinking=True\)"):
        session.ask("What?", thinking=True)


def test_a_report_of_a_question_shows_the_media(session, tmp_path) -> None:
    session.ask("What is red?").save_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "What is red?" in page
    assert f"by the session</dt><dd>{session.ledger.prompt_tokens:,} tokens" in page


# ---------------------------------------------------------------- files


def test_a_loaded_session_is_the_saved_one(tmp_path) -> None:
    media = media_of(["audio", "image"])
    tools = [{"type": "function", "function": {"name": "look"}}]
    session = ASSISTANT.open(*media, system="Be brief.", tools=tools, max_tokens=400, **SHORT)
    session.chat("First?")
    session.save(tmp_path / "a.session")
    assert [path.name for path in tmp_path.iterdir()] == ["a.session"]
    loaded = omni.load_session(tmp_path / "a.session", ASSISTANT)
    assert loaded.ledger == session.ledger
    assert loaded.evidence == session.evidence
    assert loaded.history == session.history
    for seed, question in enumerate([*QUESTIONS, *QUESTIONS]):
        options = {"temperature": 1.0, "seed": seed}
        mine, theirs = loaded.ask(question, **options), session.ask(question, **options)
        assert (mine.text, mine.evidence) == (theirs.text, theirs.evidence)
        assert mine.ledger.prompt_tokens == theirs.ledger.prompt_tokens
    assert loaded.chat("Next?").text == session.chat("Next?").text
    with pytest.raises(RequestError, match="no request"):
        loaded.ask("What?").save_report(tmp_path / "report.html")


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_type_checks")  # which users do not have
def test_numbers_of_numpy_are_those_of_python(tmp_path) -> None:
    media = media_of(["video", "image"])
    numbers: dict[str, Any] = {
        "max_new_tokens": np.int64(8),
        "temperature": np.float32(0.75),
        "top_p": np.float16(0.5),
        "top_k": np.uint8(30),
        "seed": np.int32(5),
        "reasoning_budget": np.int16(3),
        "reasoning_grace": np.uint64(4),
        "fps": np.float32(2),
        "num_frames": np.int64(4),
        "dpi": np.float64(72),
        "image_tokens": np.int32(20),
        "max_tokens": np.int64(900),
        "max_memory": np.int64(2 * 10**8),
        "audio_in_video": np.bool_(False),
        "thinking": np.bool_(True),
    }
    theirs = ASSISTANT.open(*media, **numbers)
    mine = ASSISTANT.open(*media, **{name: value.item() for name, value in numbers.items()})
    assert theirs.opened.generation == mine.opened.generation
    theirs.save(tmp_path / "a.session")
    loaded = omni.load_session(tmp_path / "a.session", ASSISTANT)
    for each in (theirs, loaded):
        assert each.opened.settings == mine.opened.settings
        assert all(type(value).__module__ == "builtins" for value in each.opened.settings.values())
        found, expected = each.ask("What?"), mine.ask("What?")
        assert (found.text, found.evidence) == (expected.text, expected.evidence)
        json.dumps(found.ledger.to_dict())


@pytest.fixture
def saved(session, tmp_path) -> Path:
    session.save(tmp_path / "a.session")
    return tmp_path / "a.session"


def test_another_model_or_another_setting_is_refused(saved) -> None:
    trained = tiny_omni.assistant()
    with torch.no_grad():
        list(trained.model.vision_model.parameters())[-1].flatten()[-1] += 1e-6
    settings_changed = Assistant(
        ASSISTANT.model, tiny_omni.omni_processor(ASSISTANT.model.config, fps=3.0), name="slow"
    )
    config_changed = tiny_omni.assistant()
    config_changed.model.config.text_config.routed_scaling_factor = 2.0
    half = tiny_omni.assistant()
    half.model.bfloat16()
    for assistant, part in (
        (tiny_omni.assistant(seed=1), "weights"),
        (trained, "weights"),
        (half, "weights"),
        (config_changed, "config"),
        (settings_changed, "settings"),
    ):
        with pytest.raises(omni.SessionError, match=f"made with 'random', whose {part} differ"):
            omni.load_session(saved, assistant)
    assert omni.load_session(saved, tiny_omni.assistant()).ask("What?").text


def test_a_file_that_is_no_whole_session_is_refused(saved, session, tmp_path) -> None:
    data = saved.read_bytes()
    for keep in (0, 7, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:keep])
        with pytest.raises(omni.SessionError, match="not a complete session file"):
            omni.load_session(saved, ASSISTANT)
    saved.write_bytes(data.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(omni.SessionError, match=r"has version 2 .* reads version 1"):
        omni.load_session(saved, ASSISTANT)
    saved.write_bytes(data.replace(b'"omni-session"', b'"omni-weights"'))
    with pytest.raises(omni.SessionError, match="no session"):
        omni.load_session(saved, ASSISTANT)
    length = f'\\"prompt_tokens\\": {session.ledger.prompt_tokens}'.encode()
    assert length in data
    other = f'\\"prompt_tokens\\": {session.ledger.prompt_tokens - 1}'.encode()
    saved.write_bytes(data.replace(length, other))
    with pytest.raises(omni.SessionError, match="do not belong together"):
        omni.load_session(saved, ASSISTANT)
    with pytest.raises(omni.SessionError, match=r"no session .*none\.session"):
        omni.load_session(tmp_path / "none.session", ASSISTANT)


def test_a_save_that_fails_leaves_the_older_file(session, saved, monkeypatch) -> None:
    before = saved.read_bytes()

    def cut(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("omni.saved_session.save_file", cut)
    with pytest.raises(RequestError, match="cannot be written: No space left"):
        session.save(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before


# ---------------------------------------------------------------- the embedded model


def test_omni_tiny_answers_as_to_fresh_requests(tmp_path) -> None:
    assistant = omni.load()
    film = write_video(
        tmp_path / "film.mp4", moving_square(16), fps=4, audio=sine(4.0), audio_rate=16_000
    )
    pages = write_pdf(tmp_path / "pages.pdf", [["SEVEN"], ["TWO"]], size_points=(200, 120))
    media = [EXAMPLES / "digit.png", pages, film, EXAMPLES / "recording.wav"]
    options: dict[str, Any] = {
        "reduction": {"video": "evs(0.7)", "audio": "uniform(0.2)", "image": "merge(0.3)"},
        "audio_in_video": True,
        "dpi": 72,
        "max_new_tokens": 12,
    }
    session = assistant.open(*media, **options)
    assert len(session.ledger.media) == 6
    session.save(tmp_path / "a.session")
    loaded = omni.load_session(tmp_path / "a.session", assistant)
    asked = [
        ("Which digit is written here?", {}),
        ("What is printed here?", {}),
        ("Which word do you hear?", {"temperature": 1.0, "seed": 3}),
        ("Which digit is written here?", {"temperature": 1.0, "seed": 5}),
    ]
    for question, how in asked:
        fresh = assistant.ask(question, *media, **options, **how)
        for each in (session, loaded):
            reply = each.ask(question, **how)
            assert reply.text == fresh.text
            assert reply.evidence == fresh.evidence
            assert reply.ledger.prompt_tokens == fresh.ledger.prompt_tokens
