"""An assistant's decoder is kept from batch to batch, and ends with it."""

import gc
from pathlib import Path

from omni.batching import decoders
from omni.media import MediaLimits
from tests.support import tiny_omni

PICTURE = str(Path(__file__).parents[3] / "examples" / "media" / "digit.png")


def test_a_decoder_is_used_again_until_its_limits_or_its_assistant_change() -> None:
    assistant = tiny_omni.assistant()
    decoder = decoders.borrow(assistant, 120.0)
    decoder.open(PICTURE)
    first = decoder.process
    other = decoders.borrow(assistant, 120.0)  # the first is in use
    assert other is not decoder
    decoders.keep(assistant, decoder)
    decoders.keep(assistant, other)
    assert other.process is None

    again = decoders.borrow(assistant, 120.0)
    assert again is decoder
    assert again.process is first
    decoders.keep(assistant, again)
    assistant.processor.limits = MediaLimits(max_pixels=10**6)
    changed = decoders.borrow(assistant, 120.0)
    assert changed is decoder
    assert first.wait(10) is not None
    changed.open(PICTURE)
    second = changed.process
    decoders.keep(assistant, changed)

    del assistant
    gc.collect()
    assert second.wait(10) is not None
