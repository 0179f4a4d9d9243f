"""What the model read for an answer, and what that cost."""

from omni.conversation import Conversation
from omni.errors import MediaError
from omni.ledger import Ledger, join_ledgers
from omni.panels import evidence_panel, ledger_panel, message_panel
from omni.reply import Reply

EMPTY = message_panel("Nothing has been answered yet.")


def seen(conversation: Conversation) -> str:
    """Ledger and evidence of the last answer, as HTML.

    Args:
        conversation: After its last answer.
    """
    reply = conversation.reply
    if reply is None:
        return EMPTY
    ledger = ledger_panel(whole_ledger(conversation, reply))
    try:
        return evidence_panel(reply) + ledger
    except MediaError as error:  # the pictures are read again, and a file may have gone
        return message_panel(str(error)) + ledger


def whole_ledger(conversation: Conversation, reply: Reply) -> Ledger:
    """What the last answer took; of the question for which media were read, with their reading."""
    reading = conversation.reading
    return reply.ledger if reading is None else join_ledgers(reading, reply.ledger)
