"""Model weights by name: GGUF and safetensors in, GGUF out. A tensor is read when asked for, never before."""

from diptych.weights.gguf import Progress, write_gguf
from diptych.weights.safetensors import open_safetensors
from diptych.weights.split import open_gguf
from diptych.weights.tensor import DTYPES, Tensor, Weights, stored

__all__ = ["DTYPES", "Progress", "Tensor", "Weights", "open_gguf", "open_safetensors", "stored", "write_gguf"]
