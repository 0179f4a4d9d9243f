import math

import pytest
import torch
import torch.nn.functional as F

from omni.backbone import HybridForCausalLM, HybridModel
from omni.errors import AlignmentError, ConfigError, RequestError
from tests.support.backbone import tiny_config, tiny_model

# Float64 models, so that another order of summation shows as rounding only: measured 7e-15.
EXACT = {"rtol": 0, "atol": 1e-10}

NANO = {
    "vocab_size": 131072,
    "hidden_size": 2688,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
}
NANO_PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


@pytest.fixture(scope="module")
def model():
    return tiny_model("ME*-M*").double()


@pytest.fixture
def ids():
    return torch.randint(40, (3, 11))


PADDINGS = {
    "left": [[0] * 4 + [1] * 7, [1] * 11, [0] * 10 + [1]],
    "right": [[1] * 7 + [0] * 4, [1] * 11, [1] + [0] * 10],
    "both sides and holes": [[0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0], [1] * 11, [0] * 5 + [1] + [0] * 5],
}


@pytest.mark.parametrize("where", PADDINGS)
def test_padded_equals_alone_in_outputs_and_gradients(model, ids, where):
    mask = torch.tensor(PADDINGS[where])
    weights = list(model.parameters())
    logits = model(ids, attention_mask=mask).logits
    padded_loss = logits[mask.bool()].square().sum()
    alone_loss = 0.0
    for row, real in enumerate(mask.bool()):
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(logits[row, real], alone, **EXACT)
        alone_loss = alone_loss + alone.square().sum()
    for a, b in zip(
        torch.autograd.grad(padded_loss, weights),
        torch.autograd.grad(alone_loss, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", PADDINGS)
def test_decoding_after_padding_equals_alone(model, ids, where):
    mask = torch.tensor(PADDINGS[where])
    more = torch.randint(40, (3, 3))
    cache = model.new_cache()
    model(ids, attention_mask=mask, cache=cache)
    steps = [model(more[:, t : t + 1], cache=cache).logits for t in range(3)]
    for row, real in enumerate(mask.bool()):
        alone = model(torch.cat([ids[row, real], more[row]])[None]).logits[:, -3:]
        torch.testing.assert_close(torch.cat(steps, 1)[row][None], alone, **EXACT)


def test_packed_equals_separate_in_outputs_and_gradients(model):
    lengths = [1, 6, 3, 5]
    packed = torch.randint(40, (1, sum(lengths)))
    segments = torch.tensor([0, 1, 2, 1]).repeat_interleave(torch.tensor(lengths))[None]
    weights = list(model.parameters())
    logits = model(packed, segment_ids=segments).logits
    alone = torch.cat([model(part).logits for part in packed.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(logits, alone, **EXACT)
    for a, b in zip(
        torch.autograd.grad(logits.square().sum(), weights),
        torch.autograd.grad(alone.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_packed_rows_may_be_padded(model, ids):
    segments = torch.tensor([[0] * 4 + [1] * 7] * 3)
    mask = torch.tensor(PADDINGS["left"]).bool()
    found = model(ids, segment_ids=segments, attention_mask=mask).logits
    torch.testing.assert_close(found[0, 4:], model(ids[:1, 4:]).logits[0], **EXACT)
    torch.testing.assert_close(found[1, :4], model(ids[1:2, :4]).logits[0], **EXACT)


@pytest.mark.parametrize(
    ("segments", "mask"),
    [
        ([0, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]),  # between two
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]),  # inside of one
        ([0, 4, 4, 0, 4, 4, 7, 4, 4, 4, 0], [0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0]),
        ([1, 2, 1, 2, 2, 1, 1, 2, 2, 2, 2], [1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1]),
    ],
)
def test_padding_neither_joins_nor_parts_packed_sequences(model, ids, segments, mask):
    packed, real = torch.tensor(segments), torch.tensor(mask).bool()
    found = model(ids[:1], segment_ids=packed[None], attention_mask=real[None]).logits[0]
    lengths = packed.unique_consecutive(return_counts=True)[1].tolist()
    parts = (tensor.split(lengths) for tensor in (ids[0], found, real))
    for row, at, own in zip(*parts, strict=True):
        if own.any():
            torch.testing.assert_close(at[own], model(row[own][None]).logits[0], **EXACT)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("seq", [1, 11])
def test_no_rows_give_no_rows_and_no_gradient(model, seq, is_masked, is_packed):
    ids = torch.zeros(0, seq, dtype=torch.long)
    logits = model(
        ids,
        attention_mask=torch.ones_like(ids) if is_masked else None,
        segment_ids=ids if is_packed else None,
    ).logits
    assert logits.shape == (0, seq, 40)
    gradients = torch.autograd.grad(logits.sum(), list(model.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_cache_of_no_rows_goes_on(model):
    ids, cache = torch.zeros(0, 11, dtype=torch.long), model.new_cache()
    for part in ids.split([4, 1, 1, 5], dim=1):
        assert model(part, cache=cache).logits.shape == (*part.shape, 40)
    assert cache.get_seq_length() == 11


def test_later_tokens_do_not_change_earlier_logits(model, ids):
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 40
    found, expected = model(changed).logits, model(ids).logits
    torch.testing.assert_close(found[:, :6], expected[:, :6], **EXACT)
    assert (found[:, 6:] - expected[:, 6:]).abs().min(dim=-1).values.max() > 1e-6


@pytest.mark.parametrize("parts", [[1] * 11, [11], [4, 7], [5, 1, 1, 4], [1, 10]])
def test_any_split_of_the_prompt_equals_one_forward(model, ids, parts):
    expected = model(ids).logits
    cache = model.new_cache()
    found = [model(part, cache=cache).logits for part in ids.split(parts, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, **EXACT)
    assert cache.get_seq_length() == 11


def test_padding_may_come_in_any_part_of_a_split_prompt(model, ids):
    mask = torch.tensor(PADDINGS["both sides and holes"]).bool()
    cache, found = model.new_cache(), []
    for part, real in zip(ids.split(4, dim=1), mask.split(4, dim=1), strict=True):
        found.append(model(part, attention_mask=real, cache=cache).logits)
    logits = torch.cat(found, dim=1)
    for row, real in enumerate(mask):
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(logits[row, real], alone, **EXACT)


def test_a_mask_over_past_and_present_is_read_at_its_end(model, ids):
    mask = torch.tensor(PADDINGS["left"])
    results = []
    for second in (mask[:, 6:], mask):
        cache = model.new_cache()
        model(ids[:, :6], attention_mask=mask[:, :6], cache=cache)
        results.append(model(ids[:, 6:], attention_mask=second, cache=cache).logits)
    assert torch.equal(*results)


def test_an_entirely_padded_row_is_finite_and_harmless(model, ids):
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[1] = False
    cache = model.new_cache()
    first = model(ids, attention_mask=mask, cache=cache).logits
    then = model(ids[:, :1], attention_mask=mask[:, :1], cache=cache).logits
    assert first.isfinite().all()
    assert then.isfinite().all()
    torch.testing.assert_close(first[0], model(ids[:1]).logits[0], **EXACT)


def test_embeddings_in_place_of_ids_give_the_same(model, ids):
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)


@pytest.mark.parametrize("where", PADDINGS)
def test_kept_logits_are_the_last_ones_of_the_original_order(model, ids, where):
    mask = torch.tensor(PADDINGS[where])
    full = model(ids, attention_mask=mask).logits
    kept = model(ids, attention_mask=mask, logits_to_keep=2).logits
    torch.testing.assert_close(kept, full[:, -2:], **EXACT)


def test_hidden_states_are_the_inputs_of_each_block_and_the_end(model, ids):
    mask = torch.tensor(PADDINGS["left"])
    output = model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 7
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_gradient_checkpointing_changes_no_gradient(ids):
    gradients = []
    for checkpointed in (False, True):
        model = tiny_model("ME*-M").double().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids, attention_mask=torch.tensor(PADDINGS["left"])).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_mixed_precision_gives_nearly_the_gradients_of_float32(checkpointed):
    model = tiny_model("ME*-M").train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(40, (2, 90))  # several chunks of the scan
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    # Rounding may turn a router's choice for a token: measured 0.9999.
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_a_cache_carries_no_gradients(model, ids):
    assert not model(ids, cache=model.new_cache()).logits.requires_grad


def test_transformers_generate_equals_a_loop_over_full_forwards(ids):
    model = tiny_model("ME*M")
    mask = torch.tensor(PADDINGS["left"])
    expected = ids
    for _ in range(5):
        longer = F.pad(mask, (0, expected.shape[1] - 11), value=1)
        scores = model(expected, attention_mask=longer, logits_to_keep=1).logits[:, -1]
        expected = torch.cat([expected, scores.argmax(-1, keepdim=True)], dim=1)
    for options in ({}, {"use_cache": False}):
        found = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        assert torch.equal(found, expected)


def test_beam_search_of_transformers_reorders_the_cache(ids):
    model = tiny_model("ME*M")
    options = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(ids, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


def test_bfloat16_stays_near_float32(ids):
    # Without experts: rounding may turn a router's choice, and then a token is another one.
    model = tiny_model("M*-M")
    expected = model(ids).logits
    found = model.bfloat16()(ids).logits
    assert found.dtype == torch.float32
    # bfloat16 has 8 bits, errors add up over 4 layers: measured 0.04 of the largest logit.
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_saved_and_loaded_equals_the_original(tmp_path, ids):
    model = tiny_model("ME*-M")
    model.save_pretrained(tmp_path)
    loaded = HybridForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_published_nano_size_comes_out_on_the_meta_device():
    with torch.device("meta"):
        model = HybridForCausalLM(tiny_config(NANO_PATTERN, **NANO))
    assert sum(p.numel() for p in model.parameters()) == 31_577_937_344


def test_initial_weights_follow_the_config():
    fields = {"hidden_size": 64, "mamba_num_heads": 8, "moe_latent_size": 32}
    config = tiny_config("M*E-" * 4, initializer_range=0.1, **fields)
    model = HybridModel(config)
    mamba, attention, moe, mlp = (layer.mixer for layer in model.layers[:4])
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 9.0))
    assert (mamba.D == 1).all()
    steps = F.softplus(mamba.dt_bias)
    assert config.time_step_min <= steps.min() * (1 + 1e-5)
    assert steps.max() <= config.time_step_max * (1 + 1e-5)
    assert mamba.conv1d.weight.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.2)
    for weight in (mamba.in_proj.weight, attention.q_proj.weight, moe.experts.up_proj):
        assert weight.std().item() == pytest.approx(0.1, rel=0.1)
    writing = {
        "mamba": mamba.out_proj.weight,
        "attention": attention.o_proj.weight,
        "experts": moe.experts.down_proj,
        "shared": moe.shared_experts.down_proj.weight,
        "latent": moe.fc2_latent_proj.weight,
        "mlp": mlp.down_proj.weight,
    }
    for name, weight in writing.items():  # 16 layers write to the residual stream
        assert weight.std().item() == pytest.approx(0.1 / 4, rel=0.1), name


def test_a_tied_head_is_the_embedding_table():
    model = HybridForCausalLM(tiny_config(tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embeddings.weight


def test_a_residual_stream_in_float32_is_kept_through_a_bfloat16_model(ids):
    model = tiny_model("ME*", residual_in_fp32=True).bfloat16()
    output = model(ids, output_hidden_states=True)
    assert output.hidden_states[1].dtype == torch.float32
    assert output.last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers is 2, .* supports only 0"),
        ({"sliding_window": 7}, "sliding_window is 7"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_dropout": 0.5}, "hidden_dropout is 0.5"),
        ({"n_groups": 3}, "mamba_num_heads is 4, which n_groups 3 does not divide"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ({"mlp_hidden_act": "swish9"}, "Unknown activation 'swish9'"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        HybridModel(tiny_config(**fields))


def test_inputs_that_do_not_fit_are_refused(model, ids):
    with pytest.raises(RequestError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(RequestError, match="no positions"):
        model(ids[:, :0])
    with pytest.raises(AlignmentError, match=r"shape \(3, 5\), but the input is \(3, 11\)"):
        model(ids, attention_mask=torch.ones(3, 5))
    with pytest.raises(AlignmentError, match=r"segment_ids has shape \(1, 11\)"):
        model(ids, segment_ids=torch.zeros(1, 11, dtype=torch.long))
    with pytest.raises(RequestError, match="segment_ids and cache exclude each other"):
        model(ids, segment_ids=torch.zeros_like(ids), cache=model.new_cache())
