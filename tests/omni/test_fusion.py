import pytest
import torch

from omni.errors import AlignmentError
from omni.fusion import fuse
from omni.inputs import MediaItem, Window, collate, pack
from tests.support import tiny_omni
from token_reduction import TokenLayout

EMBED = torch.nn.Embedding(300, 4)


def item(**changes) -> MediaItem:
    fields = {"modality": "image", "windows": [], "grid": (1, 2, 2), "token_id": 18}
    return MediaItem(**{**fields, "num_tokens": 4, "start": 1, "name": "cat.jpg", **changes})


def encoded(tokens: int, steps: int = 1) -> tuple[torch.Tensor, TokenLayout]:
    kind = "video" if steps > 1 else "image"
    return torch.randn(tokens, 4), TokenLayout.full(kind, (steps, 1, tokens // steps))


def test_features_stand_at_their_placeholders_and_text_keeps_its_embedding():
    ids = torch.tensor([[40, 18, 18, 18, 18, 41]])
    features, layout = encoded(4)
    embeddings, laid = fuse(ids, [item()], [(features, layout)], EMBED, [18])
    assert torch.equal(laid, ids)
    torch.testing.assert_close(embeddings[0, 1:5], features)
    torch.testing.assert_close(embeddings[0, [0, 5]], EMBED(torch.tensor([40, 41])))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_gradients_reach_the_features_and_the_text(is_frozen):
    ids = torch.tensor([[40, 18, 18, 18, 18, 41], [42, 18, 18, 18, 18, 43]])
    media = [(torch.randn(4, 4, requires_grad=True), encoded(4)[1]) for _ in range(2)]
    found = []

    def embed(ids):
        # As PEFT's `enable_input_require_grads` does to a frozen table: a leaf with a gradient.
        table = EMBED.weight.detach() if is_frozen else EMBED.weight
        found.append(torch.nn.functional.embedding(ids, table))
        if is_frozen:
            found[0].requires_grad_()
        return found[0]

    embeddings, _ = fuse(ids, [item(), item(row=1)], media, embed, [18])
    weights = torch.randn(2, 6, 4)
    text = found[0] if is_frozen else EMBED.weight
    grad_text, *grads = torch.autograd.grad(
        (embeddings * weights).sum(), [text, *(features for features, _ in media)]
    )
    torch.testing.assert_close(torch.stack(grads), weights[:, 1:5])
    expected = weights[:, [0, 5]].flatten(0, 1)
    torch.testing.assert_close(grad_text if is_frozen else grad_text[40:44], expected)


def test_a_block_keeps_its_length_whatever_reduction_leaves_in_each_step():
    video = item(num_tokens=4, separators=((22, 50, 21), (22, 51, 21)))
    for counts in ([4, 0, 0], [1, 2, 1], [0, 0, 4]):
        ids, offsets = video.lay(counts)
        assert len(ids) == video.block_length == 10
        assert [ids[i] for i in offsets] == [18] * 4


def test_too_few_features_raise_with_both_numbers():
    ids = torch.tensor([[40, 18, 18, 18, 18, 41]])
    with pytest.raises(AlignmentError, match=r"cat.jpg.* gave 3 token\(s\).* has 4 placeholder"):
        fuse(ids, [item()], [encoded(3)], EMBED, [18])


def test_a_placeholder_without_a_medium_raises():
    ids = torch.tensor([[40, 18, 18, 18, 18, 18]])
    with pytest.raises(AlignmentError, match=r"5 placeholder token\(s\), 1 of them outside"):
        fuse(ids, [item()], [encoded(4)], EMBED, [18])


def test_truncated_ids_raise_instead_of_losing_features():
    with pytest.raises(AlignmentError, match="Do not cut or move ids"):
        fuse(torch.tensor([[40, 18, 18]]), [item()], [encoded(4)], EMBED, [18])


def test_two_media_never_share_a_column():
    ids = torch.tensor([[40, 18, 18, 18, 18, 41]])
    with pytest.raises(AlignmentError, match="overlaps another medium"):
        fuse(ids, [item(), item()], [encoded(4), encoded(4)], EMBED, [18])


def test_padding_that_looks_like_a_placeholder_is_not_one():
    ids, mask = torch.tensor([[18, 40, 41]]), torch.tensor([[False, True, True]])
    embeddings, _ = fuse(ids, [], [], EMBED, [18], mask)
    torch.testing.assert_close(embeddings, EMBED(ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_collated_media_move_with_their_rows(side):
    processor = tiny_omni.omni_processor()
    image = processor.load_media(tiny_omni.picture(40, 40))
    samples = [processor.from_text("x" * n + "<image>", [image]) for n in (0, 7)]
    batch = collate(samples, pad_token_id=0, padding_side=side)
    for row, medium in enumerate(batch.media):
        assert medium.row == row
        block = batch.input_ids[row, medium.start : medium.start + medium.num_tokens]
        assert set(block.tolist()) == {18}


def test_packing_refuses_padded_samples():
    processor = tiny_omni.omni_processor()
    padded = collate(
        [processor.from_text("a"), processor.from_text("abc")], pad_token_id=0, padding_side="left"
    )
    with pytest.raises(AlignmentError, match=r"found shape \(2, 3\) with 4 real"):
        pack([padded])


def test_windows_are_made_anew_by_each_iteration():
    processor = tiny_omni.omni_processor()
    [medium] = processor.from_text("<image>", [processor.load_media(tiny_omni.picture(8, 8))]).media
    first, again = list(medium.windows), list(medium.windows)
    assert isinstance(first[0], Window)
    assert torch.equal(first[0].rows, again[0].rows)
