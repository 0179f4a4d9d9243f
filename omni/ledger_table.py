"""The ledger as a table for a terminal."""

from rich.console import Group
from rich.table import Table

from omni.budget import readable_bytes
from omni.ledger import Ledger, MediaEntry, readable, readable_flops


def ledger_table(ledger: Ledger) -> Group:
    """One line a medium, then the totals, the memory, and what a budget changed."""
    table = Table("medium", "kind", "stages", "settings", "tower", "prompt tokens")
    for entry in ledger.media:
        stages = " → ".join(f"{stage.name} {stage.count:,}" for stage in entry.stages[:-1])
        table.add_row(
            entry.name.rsplit("/", 1)[-1],
            entry.modality,
            stages,
            _settings(entry),
            readable_flops(entry.tower_flops),
            f"{entry.stages[-1].count:,}",
        )
    table.add_row("text", "", "", "", "", f"{ledger.text_tokens:,}")
    table.add_row("[bold]prompt[/bold]", "", "", "", "", f"[bold]{ledger.prompt_tokens:,}[/bold]")
    lines = [
        f"room for the answer {ledger.answer_tokens:,} · context {ledger.context_tokens:,} · "
        f"towers {readable_flops(ledger.tower_flops)} · "
        f"prefill {readable_flops(ledger.prefill_flops)}",
        f"working memory {readable_bytes(ledger.memory_bytes)}: "
        f"attention cache {readable_bytes(ledger.kv_cache_bytes)} · "
        f"Mamba state {readable_bytes(ledger.mamba_state_bytes)} · "
        f"embeddings {readable_bytes(ledger.embedding_bytes)} · "
        f"activations {readable_bytes(ledger.activation_bytes)} · "
        f"overhead {readable_bytes(ledger.overhead_bytes)}",
    ]
    if ledger.budget is not None:
        lines.append(_budget(ledger))
    return Group(table, *lines)


def _settings(entry: MediaEntry) -> str:
    """What was chosen; in brackets what was asked, where that is something else."""
    parts = []
    for name, value in entry.chosen.items():
        before = f" (asked {readable(entry.asked[name])})" if name in entry.asked else ""
        parts.append(f"{name} {readable(value)}{before}")
    return ", ".join(parts)


def _budget(ledger: Ledger) -> str:
    budget = ledger.budget
    assert budget is not None
    limits = [f"{budget.max_tokens:,} tokens"]
    if budget.max_memory_bytes is not None:
        limits.append(readable_bytes(budget.max_memory_bytes))
    changed = "lowered to fit" if ledger.lowered else "fits as asked"
    return (
        f"budget {' and '.join(limits)} · as asked {budget.asked_tokens:,} tokens and "
        f"{readable_bytes(budget.asked_memory_bytes)} · {changed}"
    )
