"""`OmniModel` with our collator trains under plain `transformers.Trainer`, and learns the same."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finetune.batches import Batches
from finetune.data import open_dataset
from finetune.data.encode import decode_media, encode_sample
from omni.inputs import collate
from tests.finetune.test_loop import SETTINGS, conversation
from tests.support import tiny_omni
from tests.support.rows import write_jsonl, write_media


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    kinds = [("image", "a.png"), ("video", "v.mp4"), ("audio", "s.wav"), (None, "")]
    rows = [conversation(*kinds[i], i) for i in range(4)]
    return write_jsonl(folder / "data.jsonl", rows)


def test_a_trainer_trains_mixed_media(data, tmp_path):
    assistant = tiny_omni.assistant()
    samples = [
        decode_media(encode_sample(sample, assistant.processor)) for sample in open_dataset(data)
    ]
    seen = []

    def collator(rows):
        batch = collate(rows, pad_token_id=assistant.processor.ids.pad, padding_side="right")
        seen.append(batch)
        return dict(**batch)

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_grad_norm=1e9,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        logging_steps=1,
    )
    trainer = Trainer(
        model=assistant.model, args=arguments, train_dataset=samples, data_collator=collator
    )
    trainer.train()
    found = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(seen) >= 4

    fresh = tiny_omni.assistant()
    whole = Batches(open_dataset(data), fresh.processor, SETTINGS)
    rows = [whole.read(i) for i in range(4)]
    batch = collate(rows, pad_token_id=fresh.processor.ids.pad, padding_side="right")
    with torch.no_grad():
        expected = fresh.model(**batch).loss.item()
    assert found[0] == pytest.approx(expected, rel=1e-3)  # the mean over all target tokens
    assert found[1] < found[0]
