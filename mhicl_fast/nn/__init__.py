"""Places to drop the kernels into other people's code.

`MultiHeadAttention` is the one-layer module of in-context-learning studies, `from_torch` and `to_torch` convert it.
`replace_attention` and `restore_attention` change the kernels under every `torch.nn.MultiheadAttention` of a model.
`route_sdpa` routes `torch.nn.functional.scaled_dot_product_attention` inside a block.
`huggingface`, imported by name, adds an attention implementation to transformers.
"""

from __future__ import annotations

from .conversion import from_torch, to_torch
from .multi_head import MultiHeadAttention
from .routing import route_sdpa
from .torch_attention import TorchMultiheadAttention, replace_attention, restore_attention

__all__ = [
    "MultiHeadAttention",
    "TorchMultiheadAttention",
    "from_torch",
    "replace_attention",
    "restore_attention",
    "route_sdpa",
    "to_torch",
]
