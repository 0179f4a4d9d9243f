import pytest
import torch
from transformers import SiglipVisionConfig

from omni import memory
from omni.choosing import GenerationOptions, Vocabulary
from omni.errors import CheckpointError, ConfigError, NotEnoughMemoryError, RequestError
from omni.footprint import cache_bytes
from omni.generation import collect, generate, prefill
from omni.inputs import collate, pack
from omni.loss import next_token_loss
from omni.model import OmniModel
from tests.support import tiny_omni

LLAMA = {
    "model_type": "llama",
    "vocab_size": tiny_omni.VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 11,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    tiny_omni.omni_model().save_pretrained(directory)
    return directory


def request(model, text="<image>What?"):
    processor = tiny_omni.omni_processor(model.config)
    return processor.from_text(text, [processor.load_media(tiny_omni.picture(40, 40))])


@torch.no_grad()
def test_media_behind_a_cache_take_a_mask_of_all_tokens():
    model = tiny_omni.omni_model()
    inputs = request(model)
    before = torch.tensor([[40, 41, 42]])
    found = []
    for length in (inputs.input_ids.shape[1], 3 + inputs.input_ids.shape[1]):
        first = model(input_ids=before, use_cache=True)
        mask = torch.ones(1, length, dtype=torch.bool)
        found.append(
            model(
                input_ids=inputs.input_ids,
                media=inputs.media,
                cache=first.cache,
                use_cache=True,
                attention_mask=mask if length > inputs.input_ids.shape[1] else None,
            ).logits
        )
    torch.testing.assert_close(*found)


QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}


def cached_bytes(cache):
    """Bytes of keys and values, and of all other floating-point states, of transformers' cache."""
    keys = states = 0
    for layer in cache.layers:
        for name, value in vars(layer).items():
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if torch.is_tensor(tensor) and tensor.is_floating_point():
                    keys += tensor.nbytes if name in ("keys", "values") else 0
                    states += tensor.nbytes if name not in ("keys", "values") else 0
    return keys, states


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gemma3_text", "sliding_window": 8},
        {"model_type": "gemma3_text", "sliding_window": 512},
        QWEN3_NEXT,
    ],
)
def test_other_decoders_are_planned_with_the_cache_that_they_have(fields):
    text = {**LLAMA, "num_hidden_layers": 4, "head_dim": 8, **fields}
    assistant = tiny_omni.assistant(0, text_config=text)
    model = assistant.model
    assert assistant.ask("What?", max_new_tokens=2).ledger.kv_cache_bytes
    cache = model(input_ids=torch.arange(40, 70)[None], use_cache=True).cache
    cache = model(input_ids=torch.tensor([[40]]), cache=cache, use_cache=True).cache
    keys, states = cached_bytes(cache)
    planned_keys, planned_states = cache_bytes(model.config, 31, 4)
    assert planned_states == states
    cut = model.config.text_config.layer_types.count("sliding_attention")
    a_position = 2 * 2 * 8 * 4  # keys and values, heads, width, bytes
    missing = cut * a_position if fields.get("sliding_window") == 8 else 0
    assert planned_keys == keys + missing  # of a full window one position goes after each step


def test_another_vision_tower_is_refused_by_name():
    config = tiny_omni.omni_config()
    config.vision_config = SiglipVisionConfig(hidden_size=config.vision_config.hidden_size)
    with pytest.raises(ConfigError, match=r"of type 'siglip_vision_model'; expected 'radio'"):
        OmniModel(config)


def test_a_decoder_of_transformers_is_not_compiled_and_a_warning_says_so():
    model = tiny_omni.omni_model(text_config=dict(LLAMA))
    with pytest.warns(UserWarning, match="the decoder is 'llama' of transformers"):
        assert not model.compile_step()


@pytest.mark.parametrize("text_config", [None, LLAMA], ids=["hybrid", "llama"])
def test_any_causal_language_model_can_be_the_decoder(text_config):
    changes = {} if text_config is None else {"text_config": dict(text_config)}
    model = tiny_omni.omni_model(**changes)
    samples = [request(model), request(model, "<image>And this, pray?")]
    batch = collate(samples, pad_token_id=0, padding_side="left")
    vocabulary = Vocabulary(stop=frozenset(), banned=(18, 27))
    options = GenerationOptions(max_new_tokens=4)
    together = collect(generate(model, prefill(model, batch), options, vocabulary), 2)
    for sample, tokens in zip(samples, together, strict=True):
        alone = collect(generate(model, prefill(model, sample), options, vocabulary), 1)
        assert alone == [tokens]


def test_packing_with_another_decoder_is_refused():
    model = tiny_omni.omni_model(text_config=dict(LLAMA))
    with pytest.raises(RequestError, match=r"needs the hybrid backbone.*'llama'"):
        model(**pack([request(model), request(model)]))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, None])
def test_weights_load_in_the_wanted_format(saved, dtype):
    model = OmniModel.from_pretrained(saved, dtype=dtype)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    assert model.dtype == expected
    biases = [b for n, b in model.named_buffers() if "e_score_correction_bias" in n]
    assert all(bias.dtype == torch.float32 for bias in biases)


@pytest.mark.parametrize("device_map", [{"": "cpu"}, "auto"])
def test_a_device_map_places_the_model_and_changes_nothing(saved, device_map):
    mapped = OmniModel.from_pretrained(saved, device_map=device_map, dtype=torch.float32)
    plain = OmniModel.from_pretrained(saved)
    inputs = request(plain)
    with torch.no_grad():
        torch.testing.assert_close(mapped(**inputs).logits, plain(**inputs).logits)


def test_two_ways_of_placing_are_refused(saved):
    with pytest.raises(RequestError, match="both place the model"):
        OmniModel.from_pretrained(saved, device="cpu", device_map="auto")


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(saved, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 1000)
    with pytest.raises(NotEnoughMemoryError, match="free"):
        OmniModel.from_pretrained(saved)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        OmniModel.from_pretrained(tmp_path)


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_omni.omni_model()
    inputs = request(model)
    labels = inputs.input_ids.clone()
    labels[labels == 18] = -100

    def gradients():
        model.zero_grad()
        model(input_ids=inputs.input_ids, media=inputs.media, labels=labels).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.train()
    model.audio_tower.eval()
    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for ours, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_loss_divides_by_what_it_is_told():
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[-100, 1, 2, 3, -100]] * 2)
    mean = next_token_loss(logits, labels)
    torch.testing.assert_close(next_token_loss(logits, labels, 12), mean * 6 / 12)
    assert next_token_loss(logits, torch.full_like(labels, -100)) == 0


def test_unknown_arguments_are_refused_and_harmless_ones_are_not():
    model = tiny_omni.omni_model()
    ids = torch.tensor([[40, 41]])
    model(input_ids=ids, position_ids=torch.arange(2)[None])
    with pytest.raises(TypeError, match="no argument 'pixel_vlaues'"):
        model(input_ids=ids, pixel_vlaues=torch.zeros(1))
    with pytest.raises(RequestError, match="found neither"):
        model()


def test_images_and_a_video_as_loose_tensors_are_refused_with_the_way_out():
    model = tiny_omni.omni_model()
    with pytest.raises(RequestError, match="OmniInputs"):
        model(
            input_ids=torch.tensor([[18] * 8]),
            pixel_values=torch.randn(16, 48),
            image_grid_hw=torch.tensor([[4, 4]]),
            pixel_values_videos=torch.randn(2, 3, 16, 16),
        )


def test_a_reduction_that_loose_tensors_cannot_carry_warns():
    model = tiny_omni.omni_model(video_pruning_rate=0.5)
    ids, frames = torch.tensor([[21, 18, 18, 18, 18, 22]]), torch.randn(2, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"'evs\(0.5\)' is not applied"):
        assert model(input_ids=ids, pixel_values_videos=frames).logits.shape == (1, 6, 286)


def test_lora_on_the_decoder_trains_and_leaves_the_towers_alone():
    peft = pytest.importorskip("peft")
    model = tiny_omni.omni_model()
    config = peft.LoraConfig(r=2, target_modules=r"language_model\..*\.(q_proj|o_proj|in_proj)")
    adapted = peft.get_peft_model(model, config)
    inputs = request(model)
    labels = inputs.input_ids.clone()
    labels[labels == 18] = -100
    adapted(input_ids=inputs.input_ids, media=inputs.media, labels=labels).loss.backward()
    trained = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert trained
    assert all("language_model" in name and "lora_" in name for name in trained)


def test_generate_goes_on_from_a_cache_that_has_read_a_part_of_the_prompt():
    model = tiny_omni.omni_model()
    ids = torch.randint(30, 280, (1, 12))
    whole = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    cache = model(input_ids=ids[:, :7], use_cache=True).cache
    continued = model.generate(
        input_ids=ids, cache=cache, max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert continued.tolist() == whole.tolist()


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_reads_the_prompt_once_and_then_token_by_token(monkeypatch, beams):
    model, lengths = tiny_omni.omni_model(), []
    decode = model._decode

    def watched(embeddings, **options):
        lengths.append(embeddings.shape[1])
        return decode(embeddings, **options)

    monkeypatch.setattr(model, "_decode", watched)
    ids = torch.randint(30, 280, (1, 12))
    model.generate(
        input_ids=ids, max_new_tokens=4, num_beams=beams, do_sample=False, eos_token_id=None
    )
    assert lengths == [12, 1, 1, 1]


def test_the_old_name_of_a_cache_works_and_warns():
    model, ids = tiny_omni.omni_model(), torch.randint(30, 280, (1, 9))
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, -1]
        cache = model(input_ids=ids[:, :8], use_cache=True).cache
        with pytest.warns(FutureWarning, match="Use `cache` instead"):
            last = model(input_ids=ids[:, 8:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(last, whole, rtol=0, atol=1e-5)
