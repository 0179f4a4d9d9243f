"""Int8 and int4 weights for inference on a CPU."""

from omni.quantization.recipe import QuantizationConfig, quantize_modules, quantize_weights

__all__ = ["QuantizationConfig", "quantize_modules", "quantize_weights"]
