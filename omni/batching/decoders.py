"""The process that decodes media: an assistant's is started once and kept for its next batch."""

from weakref import WeakKeyDictionary, finalize

from omni.assistant import Assistant
from omni.media.isolated import Decoder

_idle: WeakKeyDictionary[Assistant, Decoder] = WeakKeyDictionary()


def keep(assistant: Assistant, decoder: Decoder) -> None:
    """Give an assistant a decoder for its next batch; it ends with the assistant."""
    if assistant in _idle:
        decoder.close()
        return
    _idle[assistant] = decoder


def borrow(assistant: Assistant, timeout_s: float) -> Decoder:
    """The idle decoder of an assistant, or a new one; `keep` it afterwards.

    Args:
        assistant: Whose processor has the limits.
        timeout_s: As in `Decoder`.
    """
    processor = assistant.processor
    decoder = _idle.pop(assistant, None)
    if decoder is None:
        decoder = Decoder()
        finalize(assistant, decoder.close)
    decoder.set_up(
        limits=processor.limits, allowed_roots=processor.allowed_roots, timeout_s=timeout_s
    )
    decoder.start()
    return decoder
