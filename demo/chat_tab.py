"""The chat: ask about images, videos, recordings and documents, and follow up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from demo.models import Models
from demo.visitors import Visitors
from omni.errors import OmniError

FILE_TYPES = ["image", "video", "audio", ".pdf", ".tif", ".tiff"]
Turn = dict[str, Any]


def draw_chat_tab(models: Models, visitors: Visitors) -> None:
    """Draw the chat into the current tab and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    chatbot = gr.Chatbot(label="Conversation", height=420, elem_id="chat")
    message = gr.MultimodalTextbox(
        label="Your question and files",
        placeholder="Ask something; add images, videos, recordings, PDFs",
        file_types=FILE_TYPES,
        file_count="multiple",
        sources=["upload", "microphone"],
        elem_id="chat-message",
    )

    def answer(
        sent: dict[str, Any], history: list[Turn], request: gr.Request
    ) -> Iterator[tuple[list[Turn], Any]]:
        visitor = visitors.of(request.session_hash)
        files = [str(path) for path in sent.get("files") or []]
        visitors.add_files(visitor, files)
        for path in files:
            history.append({"role": "user", "content": {"path": path}})
        history.append({"role": "user", "content": sent.get("text") or ""})
        yield history, gr.MultimodalTextbox(value=None)
        history.append({"role": "assistant", "content": ""})
        try:
            for piece in models.run(
                models.get().assistant.stream(sent["text"], *map(Path, files), max_new_tokens=256)
            ):
                history[-1]["content"] += piece
                yield history, gr.skip()
        except OmniError as error:
            history[-1] = {"role": "assistant", "content": f"**Not answered.** {error}"}
            yield history, gr.skip()

    message.submit(
        answer,
        [message, chatbot],
        [chatbot, message],
        api_name="chat_turn",
        concurrency_id="model",
        concurrency_limit=1,
    )
