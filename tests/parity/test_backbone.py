"""Our hybrid decoder against transformers' `nemotron_h` on the same random weights.

Tolerances: float32 logits of size 3-6; measured worst case 1.1e-5 (gradients 3e-6 of the largest),
from sums in another order. They would not pass a bfloat16 forward (errors near 2e-1).
"""

import pytest
import torch
from transformers import NemotronHForCausalLM

from omni.backbone import HybridForCausalLM
from tests.support.backbone import randomise, tiny_config

TOLERANCE = {"rtol": 0, "atol": 1e-4}

VARIANTS = {
    "every layer kind": {},
    "latent experts": {"moe_latent_size": 8},
    "expert groups": {"n_group": 4, "topk_group": 2},
    "weights not normalised": {"norm_topk_prob": False},
    "one state group": {"n_groups": 1},
    "no convolution bias": {"use_conv_bias": False},
    "biases": {"use_bias": True, "mlp_bias": True},
    "short convolution": {"conv_kernel": 2},
    "one key head": {"num_key_value_heads": 1},
    "step size clamp": {"time_step_min": 0.5},
}


def build_pair(**fields):
    torch.manual_seed(0)
    theirs = NemotronHForCausalLM(tiny_config("ME*-ME", **fields)).eval()
    randomise(theirs)
    ours = HybridForCausalLM(tiny_config("ME*-ME", **fields)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture(scope="module")
def pair():
    return build_pair()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal(variant):
    ours, theirs = build_pair(**VARIANTS[variant])
    ids = torch.randint(40, (2, 21))  # 2.6 of transformers' chunks
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, **TOLERANCE)


def test_gradients_equal(pair):
    ids = torch.randint(40, (2, 13))
    for model in pair:
        model.zero_grad()
        model(ids).logits.log_softmax(-1)[..., 3].mean().backward()
    expected = dict(pair[1].named_parameters())
    for name, parameter in pair[0].named_parameters():
        found, wanted = parameter.grad, expected[name].grad
        # Relative to the largest gradient of the tensor; measured 3e-6.
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-7, name


def test_state_dicts_interchange_by_name_shape_and_dtype(pair):
    ours, theirs = pair
    theirs.load_state_dict(ours.state_dict(), strict=True)
    described = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        for model in pair
    ]
    assert described[0] == described[1]


def test_left_padded_batches_equal_at_real_positions(pair):
    ours, theirs = pair
    ids = torch.randint(1, 40, (3, 12))
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    mask[2, :9] = 0
    with torch.no_grad():
        found = ours(ids, attention_mask=mask).logits
        expected = theirs(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **TOLERANCE)


def test_cached_decoding_equals(pair):
    ours, theirs = pair
    ids = torch.randint(40, (2, 14))
    cache, past = ours.new_cache(), None
    with torch.no_grad():
        for part in ids.split([9, 1, 1, 3], dim=1):
            found = ours(part, cache=cache).logits
            output = theirs(part, cache=past, use_cache=True)
            past = output.cache
            torch.testing.assert_close(found, output.logits, **TOLERANCE)


def test_greedy_generation_equals_with_left_padding(pair):
    ids = torch.randint(1, 40, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found, expected = (model.generate(ids, attention_mask=mask, **options) for model in pair)
    assert torch.equal(found, expected)


def test_our_single_step_keeps_the_step_size_clamp_which_transformers_forgets():
    ours, theirs = build_pair(time_step_min=0.5)
    ids = torch.randint(40, (2, 12))
    cache = ours.new_cache()
    with torch.no_grad():
        full = theirs(ids).logits[:, -1]
        ours(ids[:, :-1], cache=cache)
        torch.testing.assert_close(ours(ids[:, -1:], cache=cache).logits[:, -1], full, **TOLERANCE)
        past = theirs(ids[:, :-1], use_cache=True).cache
        forgotten = theirs(ids[:, -1:], cache=past, use_cache=True).logits[:, -1]
    assert (forgotten - full).abs().max() > 1e-2


def test_our_padding_stays_out_where_transformers_biases_let_it_in():
    ours, theirs = build_pair(use_bias=True)
    ids = torch.randint(1, 40, (1, 8))
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(13) >= 5).long()[None]
    with torch.no_grad():
        alone = theirs(ids).logits
        found = ours(padded, attention_mask=mask).logits[:, 5:]
        leaked = theirs(padded, attention_mask=mask).logits[:, 5:]
    torch.testing.assert_close(found, alone, **TOLERANCE)
    assert (leaked - alone).abs().max() > 1e-2
