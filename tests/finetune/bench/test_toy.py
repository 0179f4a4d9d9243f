"""The model of the synthetic benchmark: both stages change what they say, and it can be asked."""

import pytest
import torch

from finetune.bench.synthetic import TASKS, Puzzles
from finetune.bench.toy import TRAINING_FREE, build_toy, train_base, train_sight
from omni.assistant import Assistant
from token_reduction import TokenShape, build

GRIDS = {"video": (5, 3, 5), "image": (1, 7, 5), "audio": (38, 1, 1)}


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_sight_trains_the_eyes_and_base_the_rest() -> None:
    model, processor = build_toy()
    before = state(model)
    train_sight(model, processor, steps=1)
    seeing = state(model)
    assert changed(before, seeing) == {"vision_model", "multi_modal_projector"}
    train_base(model, processor, steps=2)
    assert changed(seeing, state(model)) >= {"language_model", "audio_tower", "embed_audio"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assistant = Assistant(model, processor, name="toy")
    for task in TASKS:
        puzzle = Puzzles((task,), 1, 0)[0]
        reply = assistant.chat(puzzle.messages, max_new_tokens=3)
        assert reply.ledger.media[0].modality == TASKS[task]


def test_the_rivals_leave_about_as_many_tokens_as_is_asked() -> None:
    for modality, patterns in TRAINING_FREE.items():
        shape = TokenShape.full(modality, GRIDS[modality])
        for pattern in patterns:
            kept = build(pattern.format(rate=0.75)).num_tokens(shape)
            if "floor" not in pattern:
                assert kept == pytest.approx(shape.num_tokens / 4, abs=1)
