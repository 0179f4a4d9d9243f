"""What the model read for an answer, and what that cost."""

from dataclasses import replace

from omni.conversation import Conversation
from omni.errors import MediaError
from omni.ledger import Ledger
from omni.panels import evidence_panel, ledger_panel, message_panel

EMPTY = message_panel("Nothing has been answered yet.")


def seen(conversation: Conversation) -> str:
    """Ledger and evidence of the last answer, as HTML.

    Args:
        conversation: After its last answer.
    """
    reply = conversation.reply
    if reply is None:
        return EMPTY
    ledger = reply.ledger
    if conversation.reading is not None:
        ledger = _with_reading(ledger, conversation.reading)
    try:
        return evidence_panel(reply) + ledger_panel(ledger)
    except MediaError as error:  # the pictures are read again, and a file may have gone
        return message_panel(str(error)) + ledger_panel(ledger)


def _with_reading(ledger: Ledger, reading: Ledger) -> Ledger:
    """The ledger of a first question, with the seconds that reading its media took."""
    seconds = {"reading the media": reading.seconds["total"], **ledger.seconds}
    if "total" in seconds:
        seconds["total"] += reading.seconds["total"]
    return replace(ledger, media=reading.media, reused_tokens=0, seconds=seconds)
