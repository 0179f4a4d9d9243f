"""Batch processing: the same questions about many files, resumable, one bad file one error.

The door is `omni.batch` (hence this folder's name is not `batch`), and `omni batch`.
"""

from omni.batching.run import BatchRun
from omni.batching.summary import Summary

__all__ = ["BatchRun", "Summary"]
