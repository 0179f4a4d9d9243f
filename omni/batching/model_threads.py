"""Threads in which the model answers: two of them fill each other's pauses.

Between the products of a small model lie many small operations that one core does alone. Two groups
of prompts at the same time, each with half of the cores, keep all of them busy
(`benchmarks/batch_throughput.py` measures it). A large model is bound by its products or by reading
its weights, and gains nothing for the memory of a second group.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from omni.model import OmniModel

SMALL_BYTES = 2**30  # of the weights of a model that does not fill the cores by itself


def default_workers(model: OmniModel) -> int:
    """How many groups a model best answers at the same time."""
    is_small = model.get_memory_footprint() < SMALL_BYTES
    return 2 if model.device.type == "cpu" and is_small and torch.get_num_threads() > 1 else 1


def model_threads(workers: int) -> ThreadPoolExecutor:
    """Start threads that share this thread's cores for what PyTorch computes in them.

    Args:
        workers: How many threads; each has at least one core.
    """
    cores = torch.get_num_threads()
    begun = threading.Barrier(workers + 1)

    def begin() -> None:
        # A thread's first look takes the number that was set last in any thread; from then on it
        # has its own.
        torch.get_num_threads()
        torch.set_num_threads(max(cores // workers, 1))
        begun.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="model", initializer=begin)
    try:
        for _ in range(workers):
            pool.submit(int)  # a thread is started when none waits for work, and these wait for all
        begun.wait()
    except BaseException:  # no thread to be had, or Ctrl-C: those that wait must not wait for ever
        begun.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    torch.set_num_threads(cores)
    return pool
