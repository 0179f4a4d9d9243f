"""How many answers by a schema parse and validate: omni-tiny on real files.

    python benchmarks/schema_answers.py                                  # examples/media
    python benchmarks/schema_answers.py --files DIR --runs 500 --out results.json

Takes the schemas below in turn, each with the next file, temperature (0, 0.8, 1.5) and bound on
the answer's length (just enough, and up to 100 tokens), twenty requests at a time. Each answer is
parsed by Python's json and checked by the jsonschema package, which know nothing of the grammar
that made it. Prints one JSON line; every failure is in it. Exit code 1 if there is one.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import torch

import omni

EXAMPLES = Path(__file__).parents[1] / "examples" / "media"
TEMPERATURES = (0.0, 0.8, 1.5)
ROWS = 20
KINDS = {".png", ".jpg", ".jpeg", ".wav", ".mp4", ".pdf"}

TEXT = {"type": "string"}
ADDRESS = {
    "type": "object",
    "properties": {
        "street": TEXT,
        "city": TEXT,
        "postcode": {"type": "string", "pattern": "^\\d{5}$"},
    },
    "required": ["street", "city"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {"label": TEXT, "count": {"type": "integer"}, "sure": {"type": "boolean"}},
        "required": ["label", "count", "sure"],
    },
    "nested": {
        "type": "object",
        "properties": {
            "shop": {"type": "object", "properties": {"name": TEXT, "address": ADDRESS}}
        },
        "required": ["shop"],
    },
    "array": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": TEXT, "price": {"type": "number", "minimum": 0}},
            "required": ["name", "price"],
        },
        "minItems": 1,
        "maxItems": 4,
    },
    "enum": {"enum": ["image", "video", "recording", "document", None, 3]},
    "numbers": {
        "type": "object",
        "properties": {
            "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "digit": {"type": "integer", "minimum": 0, "maximum": 9},
            "any": {"type": "number"},
            "sevens": {"type": "integer", "multipleOf": 7},
        },
        "required": ["share", "digit", "any", "sevens"],
    },
    "patterns": {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            "day": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"},
        },
        "required": ["code", "day", "at"],
    },
    "optional": {
        "type": "object",
        "properties": dict.fromkeys("abcdef", TEXT),
        "additionalProperties": {"type": "integer"},
    },
    "union": {
        "anyOf": [
            {"type": "null"},
            {"type": "array", "items": {"type": ["string", "integer"]}},
            {
                "type": "object",
                "properties": {"kind": {"const": "word"}, "text": {**TEXT, "minLength": 3}},
                "required": ["kind", "text"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "number"}, "value": {"type": "number"}},
                "required": ["kind", "value"],
            },
        ]
    },
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {**TEXT, "maxLength": 12},
                    "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3},
                },
                "required": ["name", "parts"],
            }
        },
        "$ref": "#/$defs/node",
    },
    "anything": {"type": "object", "properties": {"answer": {}}, "required": ["answer"]},
}


def files_below(folder: Path, most: int) -> list[Path]:
    """Media of all kinds there are, in turn."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    random.Random(0).shuffle(found)
    chosen: list[Path] = []
    while found and len(chosen) < most:
        for kind in sorted({path.suffix.lower() for path in found}):
            path = next(path for path in found if path.suffix.lower() == kind)
            found.remove(path)
            chosen.append(path)
    return chosen


def check(text: str, schema: dict[str, Any]) -> str | None:
    """What is wrong with an answer."""
    try:
        jsonschema.validate(
            json.loads(text),
            schema,
            cls=jsonschema.Draft202012Validator,
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
    except ValueError as error:
        return f"does not parse: {error}"
    except jsonschema.ValidationError as error:
        return f"does not validate: {error.message}"
    return None


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, nargs="*", default=[EXAMPLES])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    begin = time.perf_counter()
    assistant = omni.load()
    files = [file for folder in options.files for file in files_below(folder, 8)]
    names = list(SCHEMAS)
    bounds = {}
    for name in names:
        shortest = len(assistant.vocabulary.grammars.compile(SCHEMAS[name]).shortest)
        bounds[name] = (shortest, shortest + 9, 100)
    counts: Counter[str] = Counter()
    failures, tokens = [], 0
    for start in range(0, options.runs, ROWS):
        turn = start // ROWS
        chosen = [
            names[(start + row) % len(names)] for row in range(min(ROWS, options.runs - start))
        ]
        temperature = TEMPERATURES[turn % len(TEMPERATURES)]
        # One bound for all rows of a batch; just enough for the longest of them, now and then.
        bound = max(bounds[name][turn // len(TEMPERATURES) % 3] for name in chosen)
        request = {"max_new_tokens": bound, "temperature": temperature, "seed": start}
        prompts = []
        for row in range(len(chosen)):
            parts = [{"type": "media", "media": str(files[(start + row) % len(files)])}]
            parts.append({"type": "text", "text": "What is this? Answer in JSON."})
            prompts.append(assistant.prepare([{"role": "user", "content": parts}], **request))
        replies = assistant.reply_lots(
            [[prompt] for prompt in prompts], schemas=[SCHEMAS[name] for name in chosen], **request
        )
        print(f"{start + len(chosen)} of {options.runs}", file=sys.stderr)
        for name, reply in zip(chosen, replies, strict=True):
            wrong = check(reply.text, SCHEMAS[name])
            counts["answers"] += 1
            counts["parse"] += wrong is None or not wrong.startswith("does not parse")
            counts["validate"] += wrong is None
            counts["ended_by_length"] += reply.finish_reason == "length"
            counts[f"temperature {temperature}"] += 1
            tokens += reply.ledger.answer_tokens
            if wrong is not None:
                failures.append({"schema": name, "text": reply.text[:300], "wrong": wrong})
    result = {
        "benchmark": "schema_answers",
        **counts,
        "tokens": tokens,
        "schemas": names,
        "files": len(files),
        "kinds": sorted({file.suffix for file in files}),
        "failures": failures,
        "seconds": round(time.perf_counter() - begin, 1),
        "model": assistant.name,
        "versions": {name: version(name) for name in ("llguidance", "jsonschema", "torch")},
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count()},
    }
    print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result) + "\n")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
