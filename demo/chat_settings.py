"""The controls of how to answer."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

MOST_NEW_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerControls:
    """Controls in the order in which event handlers get their values, and the options they mean."""

    components: list[gr.components.Component]

    @staticmethod
    def options(
        system: str,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        seed: float | None,
        thinking: bool,
        reasoning_budget: float | None,
    ) -> dict[str, Any]:
        """Options of `omni.conversation.Conversation.stream`.

        Args:
            system: System prompt; empty is none.
            temperature: 0 takes the best token.
            top_p: Sample from the smallest set of tokens with this much probability.
            max_new_tokens: Most tokens of an answer.
            seed: Of sampling.
            thinking: Whether the model reasons first.
            reasoning_budget: Tokens after which it should come to an end; 0 is no bound.
        """
        return {
            "system": system.strip() or None,
            "temperature": float(temperature),
            "top_p": float(top_p),
            "max_new_tokens": min(int(max_new_tokens), MOST_NEW_TOKENS),
            "seed": int(seed or 0),
            "thinking": bool(thinking),
            "reasoning_budget": int(reasoning_budget) if reasoning_budget else None,
        }


def draw_answer_controls() -> AnswerControls:
    """Draw the controls into the current place."""
    system = gr.Textbox(
        value="",
        label="System prompt",
        info="Stands before the conversation.",
        lines=2,
        max_lines=6,
    )
    temperature = gr.Slider(
        0,
        2,
        value=0,
        step=0.05,
        label="Temperature",
        info="0 gives the same answer every time; higher is more varied.",
    )
    top_p = gr.Slider(
        0.05,
        1,
        value=1,
        step=0.05,
        label="Top p",
        info="Sample from the likeliest tokens with this much probability together.",
    )
    max_new_tokens = gr.Slider(
        1, MOST_NEW_TOKENS, value=256, step=1, label="Longest answer, in tokens"
    )
    seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", info="Of sampling.")
    thinking = gr.Checkbox(
        value=False, label="Think first", info="For models that were trained with reasoning."
    )
    budget = gr.Number(
        value=0,
        precision=0,
        minimum=0,
        label="Thinking budget, in tokens",
        info="0 is no bound.",
    )
    return AnswerControls(
        components=[system, temperature, top_p, max_new_tokens, seed, thinking, budget]
    )
