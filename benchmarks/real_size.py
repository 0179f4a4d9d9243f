"""The real size on a small box: quantise random weights of the 33 B model, load them, ask.

    python benchmarks/real_size.py --folder real-size                  # int4, 33 B
    python benchmarks/real_size.py --folder real-size --layers MEM*E   # fewer layers
    python benchmarks/real_size.py --folder real-size --keep           # a second run only asks

Writes a checkpoint in the released layout (experts one by one, 5 GB shards), of which never more
than one shard exists, so that 26 GB of disk are enough: each is filled with random numbers,
quantised by the code of `omni quantize`, and emptied. Then a new process loads the result and
answers a question about a 512 x 512 image. Prints one JSON line: peak memory and disk of the
conversion, seconds to load, of prefill and of decoding, peak resident memory, and shares of what
the machine could do: decoding, of the rate at which a matrix-vector product reads memory; prefill,
towers included, of int8 products at full speed.

The weights are random, so the answer means nothing; it costs what a real one would.
"""

import argparse
import json
import math
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbone_sides import measure_bandwidth
from PIL import Image
from quantization import measure_int8_gemm

import omni
from omni.assistant import EMBEDDED_PATH
from omni.config import OmniConfig
from omni.model import OmniModel
from omni.presets import nano_omni_30b_a3b
from omni.quantization import QuantizationConfig
from omni.quantization.modules import QuantizedWeight
from omni.quantize import quantize_checkpoint
from omni.weights_files import INDEX_NAME, stored_tensors
from omni.weights_layout import FILLED, KEPT_FLOAT32, WeightsLayout

SHARD_BYTES = 5 * 10**9
POOL_VALUES = 2**25
QUESTION = "What is in this picture?"
ANSWER_TOKENS = 24


def make_config(layers: str | None) -> OmniConfig:
    """The released sizes, or the same with fewer layers."""
    config = nano_omni_30b_a3b()
    if layers:
        fields = config.text_config.to_dict()
        fields |= {"hybrid_override_pattern": layers, "layers_block_type": None}
        config.text_config = type(config.text_config)(**fields)
    return config


def write_headers(folder: Path, config: OmniConfig) -> None:
    """Write a released checkpoint of which every shard is a hole of the right size."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = OmniModel(config)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if not FILLED.search(n)}
    parts = WeightsLayout.of(config).stored(shapes)
    shards: list[dict[str, Any]] = [{}]
    sizes = [0]
    for name, joined in parts.items():
        shape = shapes[joined[0][0]]
        if joined[0][1].row is not None:
            shape = shape[1:]
        elif len(joined) == 3:
            shape = (3 * shape[0], *shape[1:])
        dtype, itemsize = ("F32", 4) if KEPT_FLOAT32.search(name) else ("BF16", 2)
        if name.endswith("num_batches_tracked"):
            dtype, itemsize = "I64", 8
        nbytes = math.prod(shape) * itemsize
        if sizes[-1] + nbytes > SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        offsets = [sizes[-1], sizes[-1] + nbytes]
        shards[-1][name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        sizes[-1] += nbytes
    weight_map = {}
    for number, (header, size) in enumerate(zip(shards, sizes, strict=True), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + size)
        weight_map.update(dict.fromkeys(header, file))
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    config.save_pretrained(folder)
    for file in EMBEDDED_PATH.iterdir():  # its tokenizer has the same special tokens
        if file.name.startswith(("tokenizer", "processor", "chat_template")):
            shutil.copyfile(file, folder / file.name)


def random_pool() -> np.ndarray:
    """Bytes of normal bfloat16 numbers, deviation 0.02, from which shards are cut."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(POOL_VALUES, generator=generator).mul_(0.02).bfloat16()
    return values.view(torch.uint8).numpy()


def fill(file: Path, pool: np.ndarray) -> None:
    """Give every tensor of a shard values that a decoder survives."""
    rng = np.random.default_rng(len(file.name))
    tensors = [t for t in stored_tensors(file.parent).values() if t.file == file]
    with file.open("r+b") as stream:
        for tensor in tensors:
            stream.seek(tensor.offset)
            ones = "norm" in tensor.name or tensor.name.endswith((".D", "running_var"))
            if ones or tensor.dtype != torch.bfloat16:
                value = torch.full(tensor.shape, float(ones), dtype=tensor.dtype)
                stream.write(value.view(-1).view(torch.uint8).numpy().data)
                continue
            left = 2 * tensor.num_elements
            while left:
                start = 2 * int(rng.integers(POOL_VALUES // 2))
                written = stream.write(pool[start : start + left].data)
                left -= written


def empty(file: Path) -> None:
    """Give the disk of a shard back; header and size stay."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        stream.truncate(8 + length)
        stream.truncate(size)


def on_disk(folder: Path) -> int:
    """Bytes that the files of a folder really take."""
    return sum(512 * f.stat().st_blocks for f in folder.rglob("*") if f.is_file())


class Watch(threading.Thread):
    """Samples this process's memory and a folder's disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.peak = {"RssAnon": 0, "RssFile": 0, "disk": 0}
        self.stopped = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self.stopped.wait(0.5):
            found = status()
            try:
                found["disk"] = on_disk(self.folder)
            except FileNotFoundError:  # renamed just now
                continue
            self.peak = {name: max(value, found[name]) for name, value in self.peak.items()}


def status() -> dict[str, int]:
    """Memory fields of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")
    }


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """Write and quantise, shard by shard."""
    source, out = options.folder / "released", options.folder / "quantized"
    shutil.rmtree(source, ignore_errors=True)
    write_headers(source, make_config(options.layers))
    pool = random_pool()
    seconds = {"fill": 0.0}

    def before(file: Path) -> None:
        start = time.perf_counter()
        fill(file, pool)
        seconds["fill"] += time.perf_counter() - start

    def after(file: Path, done: int, total: int) -> None:
        empty(file)
        print(f"{file.name}: {done} of {total}", file=sys.stderr, flush=True)

    watch = Watch(options.folder)
    watch.start()
    start = time.perf_counter()
    choices = QuantizationConfig(bits=options.bits, towers=True)
    summary = quantize_checkpoint(source, out, choices, before_file=before, after_file=after)
    total = time.perf_counter() - start
    watch.stopped.set()
    watch.join()
    shutil.rmtree(source)
    return {
        "source_gb": round(summary.source_bytes / 1e9, 2),
        "quantized_gb": round(summary.bytes / 1e9, 2),
        "weights": summary.quantized + summary.kept,
        "seconds": round(total - seconds["fill"], 1),
        "fill_seconds": round(seconds["fill"], 1),
        "peak_anonymous_gib": round(watch.peak["RssAnon"] / 2**30, 2),
        "peak_mapped_gib": round(watch.peak["RssFile"] / 2**30, 2),
        "peak_disk_gb": round(watch.peak["disk"] / 1e9, 2),
    }


def ask(options: argparse.Namespace) -> dict[str, Any]:
    """Load the result and answer, twice: with the pages still on disk, and in memory."""
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    assistant = omni.load(options.folder / "quantized")
    loaded = time.perf_counter() - start
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    runs = []
    for _ in range(options.repeats):
        reply = assistant.ask(QUESTION, picture, max_new_tokens=ANSWER_TOKENS)
        ledger = reply.ledger.to_dict()
        runs.append({"seconds": ledger["seconds"], "tokens": ledger.get("answer_tokens")})
    memory = status()
    stepped, read = decode_rate(assistant)
    operations = reply.ledger.tower_flops + reply.ledger.prefill_flops
    prefill = min(run["seconds"]["prefill"] for run in runs)
    return {
        "load_seconds": round(loaded, 2),
        "prompt_tokens": reply.ledger.prompt_tokens,
        "answer": reply.text[:80],
        "runs": runs,
        "decode_tokens_per_second": round(1 / stepped, 2),
        "decode_gb_per_token": round(read / 1e9, 3),
        "decode_gb_per_second": round(read / stepped / 1e9, 1),
        "decode_limit_fraction": round(read / stepped / measure_bandwidth(), 3),
        "prefill_tokens_per_second": round(reply.ledger.prompt_tokens / prefill, 1),
        "prefill_gop_per_second": round(operations / prefill / 1e9, 1),
        "prefill_limit_fraction": round(operations / prefill / measure_int8_gemm(), 3),
        "peak_rss_gib": round(memory["VmHWM"] / 2**30, 2),
        "anonymous_gib": round(memory["RssAnon"] / 2**30, 2),
        "mapped_gib": round(memory["RssFile"] / 2**30, 2),
    }


@torch.no_grad()
def decode_rate(assistant: omni.Assistant, steps: int = 16) -> tuple[float, float]:
    """Median seconds of one step after a short prompt, and the bytes of weights it reads."""
    decoder = assistant.model.language_model
    cache = decoder.new_cache(64)
    logits = decoder(torch.arange(32)[None], cache=cache, logits_to_keep=1).logits
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        logits = decoder(logits.argmax(-1), cache=cache, logits_to_keep=1).logits
        seconds.append(time.perf_counter() - start)
    config = decoder.config
    chosen = config.num_experts_per_tok / config.n_routed_experts
    read = sum(
        (chosen if len(module.shape) == 3 else 1.0) * sum(t.nbytes for t in module.tensors())
        for module in decoder.modules()
        if isinstance(module, QuantizedWeight)
    )
    return statistics.median(seconds), read


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new one; removed at the end")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--layers", help="pattern of the decoder [default: all 52 layers]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="questions")
    parser.add_argument("--keep", action="store_true", help="keep the quantised model")
    parser.add_argument("--only-ask", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_ask:
        print(json.dumps(ask(options)))
        return
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"benchmark": "real_size", "bits": options.bits}
    result |= {"layers": options.layers or "all 52"}
    if not (options.folder / "quantized").is_dir():
        result["conversion"] = convert(options)
    # A process of its own, so that peak memory is that of answering.
    command = [sys.executable, __file__, *sys.argv[1:], "--only-ask"]
    answered = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result["answering"] = json.loads(answered.stdout.splitlines()[-1])
    if not options.keep:
        shutil.rmtree(options.folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
