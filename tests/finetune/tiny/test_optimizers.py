"""Every trained parameter has exactly one optimiser, and matrices of the layers have Muon."""

import torch
from torch import nn

from finetune.tiny.optimizers import build_optimizers, set_rates


def test_each_parameter_is_in_one_optimiser_and_frozen_ones_in_none():
    layers = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Conv1d(6, 2, 3))
    head = nn.Linear(2, 3)
    layers[1].bias.requires_grad_(False)
    parameters = [*layers.parameters(), *head.parameters()]
    muon, adamw = build_optimizers(parameters, layers.parameters(), weight_decay=0.1)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(6, 4)]
    held = [p for o in (muon, adamw) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(id(p) for p in parameters if p.requires_grad)
    assert adamw.param_groups[0]["weight_decay"] == 0


def test_rates_are_zero_until_set_and_each_gets_its_own():
    layer = nn.Linear(4, 4)
    optimizers = build_optimizers(layer.parameters(), layer.parameters(), weight_decay=0.0)
    before = [p.clone() for p in layer.parameters()]
    layer(torch.ones(1, 4)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    set_rates(optimizers, muon=0.5, adamw=0.25)
    assert [o.param_groups[0]["lr"] for o in optimizers] == [0.5, 0.25]
