"""What the model read for an answer, and what that cost."""

import html

from omni.conversation import Conversation

EMPTY = '<p class="nothing-yet">Nothing has been answered yet.</p>'


def seen(conversation: Conversation) -> str:
    """Ledger and evidence of the last answer, as HTML.

    Args:
        conversation: After its last answer.
    """
    reply = conversation.reply
    if reply is None:
        return EMPTY
    ledger = reply.ledger
    rows = "".join(
        f"<li>{html.escape(entry['name'])}: kept {entry['kept']}, merged {entry['merged']}, "
        f"dropped {entry['dropped']}</li>"
        for entry in reply.evidence
    )
    return (
        f"<p>{ledger.prompt_tokens:,} tokens of prompt, {ledger.reused_tokens:,} of them read "
        f"before; {ledger.seconds.get('total', 0):.2f} s</p><ul>{rows}</ul>"
    )
