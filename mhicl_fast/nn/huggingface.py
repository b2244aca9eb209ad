"""`attn_implementation="mhicl_fast"` for Hugging Face transformers.

transformers looks up two functions by that name: one that attends, and one that makes the mask. A model whose mask
function is missing gets no mask at all, so causality and padding would be lost without a word: `register` adds both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mhicl_fast import attention

NAME = "mhicl_fast"


def register() -> str:
    """Make "mhicl_fast" an attention implementation of transformers; returns the name. Calling it again is harmless.

    Raises:
        ImportError: transformers is not installed, or older than its mask interface.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError(
            f"transformers is missing, or has no mask interface: pip install 'mhicl_fast[transformers]' ({error})"
        ) from error
    AttentionInterface.register(NAME, attention_forward)
    # SDPA's masks: boolean, True where a key is seen; None where all are, or where is_causal says it all.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' attention layers call: query (B, Hq, Lq, E), key and value (B, Hk, L, ·).

    Returns:
        (B, Lq, Hq, Ev), and the weights (B, Hq, Lq, L) if the call has output_attentions=True, else None.

    Raises:
        ValueError: dropout is not 0, or the layer asks for what changes the weights in ways the kernels do not know:
            soft-capped logits, attention sinks, a paged cache.
    """
    _check_supported(dropout, kwargs)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    # Without a mask the rows are the first ones of the keys, or one row at their end that sees them all.
    is_causal = query.shape[2] > 1 and attention_mask is None and is_causal
    mask = attention_mask if position_bias is None else _biased(position_bias, attention_mask)
    want_weights = bool(kwargs.get("output_attentions"))
    result: Any = attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scaling, return_weights=want_weights
    )  # fmt: skip
    out, weights = result if want_weights else (result, None)
    return out.transpose(1, 2).contiguous(), weights


def _biased(position_bias: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return position_bias
    if attention_mask.dtype == torch.bool:
        return position_bias.masked_fill(~attention_mask, -torch.inf)
    return position_bias + attention_mask


def _check_supported(dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout > 0:
        raise ValueError(
            f'attn_implementation="{NAME}" has no dropout on the attention weights, got {dropout}: set attn_pdrop, '
            "attention_dropout or attention_probs_dropout_prob in the model's config to 0, or call model.eval()"
        )
    for name, meaning in (("softcap", "soft-capped logits"), ("s_aux", "attention sinks"), ("cache", "a paged cache")):
        if kwargs.get(name) is not None:
            raise ValueError(f'attn_implementation="{NAME}" does not support {meaning} ({name}): use "eager"')
