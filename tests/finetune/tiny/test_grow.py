"""A decoder that has grown says what it said before, and its new layers can learn."""

import pytest
import torch

from finetune.tiny.grow import grow, share_keys
from finetune.tiny.model_config import text_config
from omni.backbone.model import HybridForCausalLM
from omni.errors import RequestError


def decoder(pattern: str, heads: int) -> HybridForCausalLM:
    torch.manual_seed(0)
    return HybridForCausalLM(text_config(64, pattern, heads)).eval()


def as_checkpoint(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"language_model.{name}": tensor for name, tensor in model.state_dict().items()}


def test_a_grown_decoder_says_the_same_and_its_new_layers_learn():
    small, large = decoder("M*E", 2), decoder("M*EM*E*E", 4)
    state = share_keys(grow(as_checkpoint(small), "M*E", "M*EM*E*E"), 2, 4)
    large.load_state_dict({k.removeprefix("language_model."): v for k, v in state.items()})
    ids = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    expected, found = small(ids).logits, large(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    found.square().mean().backward()
    for layer in large.model.layers[3:]:
        assert any(weight.grad is not None and weight.grad.any() for weight in layer.parameters())


@pytest.mark.parametrize("grown", ["M*", "ME*E", "M*E-"])
def test_layers_that_would_change_the_others_are_refused(grown):
    with pytest.raises(RequestError, match=r"expected M\*E and more of the same kinds"):
        grow(as_checkpoint(decoder("M*E", 2)), "M*E", grown)


def test_heads_that_cannot_be_shared_are_refused():
    with pytest.raises(RequestError, match="expected a multiple of 2"):
        share_keys({}, 2, 3)
