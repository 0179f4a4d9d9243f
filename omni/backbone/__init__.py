"""The hybrid Mamba-2 / attention / mixture-of-experts decoder."""

from omni.backbone.cache import CacheSnapshot, HybridCache
from omni.backbone.model import HybridForCausalLM, HybridModel, HybridOutput

__all__ = ["CacheSnapshot", "HybridCache", "HybridForCausalLM", "HybridModel", "HybridOutput"]
