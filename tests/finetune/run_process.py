"""One process of a distributed run: python -m tests.finetune.run_process DATA OUT SETTINGS.json"""

import json
import sys
from pathlib import Path

from finetune.data import open_dataset
from finetune.loop import finetune
from finetune.settings import FinetuneSettings
from tests.support import tiny_omni

if __name__ == "__main__":
    data, out, settings = map(Path, sys.argv[1:])
    assistant = tiny_omni.assistant()
    finetune(
        assistant.model,
        assistant.processor,
        open_dataset(data),
        FinetuneSettings().changed(json.loads(settings.read_text())),
        out,
        base="tiny",
        resume=True,
    )
