import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from omni.backbone.moe import STRETCH_STEP, Experts, MoE, Router, Stretches
from omni.errors import ConfigError
from tests.support.backbone import randomise, tiny_config


def build(module, **fields):
    built = module(tiny_config(**fields))
    randomise(built)
    return built


def test_experts_equal_a_loop_over_tokens_in_values_and_gradients():
    experts = build(Experts).double()
    x = torch.randn(11, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(11, 2, dtype=torch.float64, requires_grad=True)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(11)])  # experts 6 and 7 stay idle
    wanted = (x, weights, experts.up_proj, experts.down_proj)

    expected = torch.stack(
        [
            sum(
                weights[t, k] * experts.down_proj[e] @ F.relu(experts.up_proj[e] @ x[t]).square()
                for k, e in enumerate(chosen[t].tolist())
            )
            for t in range(11)
        ]
    )
    found = experts(x, weights, chosen)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@given(num_tokens=st.integers(1, 90), num_experts=st.integers(2, 6), seed=st.integers(0, 99))
def test_every_pair_lies_in_the_stretch_of_its_expert(num_tokens, num_experts, seed):
    torch.manual_seed(seed)
    chosen = torch.rand(num_tokens, num_experts).topk(2).indices
    found = Stretches.of(chosen, num_experts=num_experts)
    expert_of_row = torch.arange(num_experts).repeat_interleave(torch.tensor(found.sizes))
    assert torch.equal(expert_of_row[found.slots], chosen)
    assert (found.tokens[found.slots] == torch.arange(num_tokens)[:, None]).all()
    assert found.slots.unique().numel() == chosen.numel()
    counts = torch.bincount(chosen.flatten(), minlength=num_experts).tolist()
    for size, count in zip(found.sizes, counts, strict=True):
        assert count <= size < count + max(STRETCH_STEP, count / 16)
        assert size == count or size % STRETCH_STEP == 0


def test_a_single_token_equals_itself_among_others():
    experts = build(Experts).double()
    x, weights = torch.randn(4, 16, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(8)[:2] for _ in range(4)])
    with torch.no_grad():
        together = experts(x, weights, chosen)
        alone = [experts(*(t[i : i + 1] for t in (x, weights, chosen))) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together)


@pytest.mark.parametrize("has_grad", [False, True])
@pytest.mark.parametrize("shape", [(2, 0, 16), (0, 3, 16)])
def test_no_tokens_are_no_results(has_grad, shape):
    with torch.set_grad_enabled(has_grad):
        assert build(MoE)(torch.zeros(shape)).shape == shape


def test_experts_that_nobody_chose_are_not_computed():
    experts = build(Experts)
    with torch.no_grad():
        experts.up_proj[3:] = torch.nan  # would spread if multiplied even by zero
    result = experts(torch.randn(5, 16), torch.ones(5, 2), torch.randint(0, 3, (5, 2)))
    assert result.isfinite().all()


def test_the_bias_decides_the_choice_but_not_the_weights():
    router = build(Router, norm_topk_prob=False, routed_scaling_factor=1.0)
    x = torch.randn(9, 16)
    scores = F.linear(x, router.weight).sigmoid()
    with torch.no_grad():
        router.e_score_correction_bias.zero_()[5] = 10.0
    weights, chosen = router(x)
    assert (chosen == 5).any(dim=1).all()
    torch.testing.assert_close(weights, scores.gather(1, chosen))


def test_normalised_weights_sum_to_the_scaling_factor():
    weights, _ = build(Router, routed_scaling_factor=2.5)(torch.randn(9, 16))
    torch.testing.assert_close(weights.sum(1), torch.full((9,), 2.5))


def test_chosen_experts_come_from_the_best_groups_only():
    router = build(Router, n_group=4, topk_group=1)
    _, chosen = router(torch.randn(50, 16))
    assert (chosen // 2 == chosen[:, :1] // 2).all()


def test_gradients_reach_the_router_through_the_weights():
    moe = build(MoE)
    moe(torch.randn(1, 7, 16)).square().sum().backward()
    assert moe.gate.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "cast", [lambda m: m.bfloat16(), lambda m: m.to(torch.float16), lambda m: m.double()]
)
def test_the_correction_bias_stays_float32_when_the_model_is_cast(cast):
    router = Router(tiny_config())
    router.e_score_correction_bias.fill_(1.0009765625)  # not a bfloat16 number
    cast(router)
    assert router.e_score_correction_bias.dtype == torch.float32
    assert router.e_score_correction_bias[0] == 1.0009765625
    assert router.weight.dtype != torch.float32


def test_groups_of_unequal_size_are_refused():
    with pytest.raises(ConfigError, match="n_routed_experts is 8, which n_group 3 does not divide"):
        Router(tiny_config(n_group=3))
