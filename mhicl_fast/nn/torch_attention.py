"""`torch.nn.MultiheadAttention` with this package's kernels, and its place in whole models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conversion import check_supported, torch_weights
from .core import Options, attend_projected, multi_head_attention
from .projection import Sizes, plan


class TorchMultiheadAttention(nn.MultiheadAttention):
    """A `torch.nn.MultiheadAttention` whose forward runs on this package's kernels.

    Constructor, parameters, state dict, call and results are the parent's, with these differences: dropout, add_bias_kv
    and add_zero_attn are errors; a row that sees no key gives out_proj's bias, where the parent gives NaN; nested
    tensors are not taken; is_causal is trusted to describe attn_mask, as the parent says it may be.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _as_parent(self):
            nn.MultiheadAttention.__init__(self, *args, **kwargs)
        check_supported(self)

    def _reset_parameters(self) -> None:
        with _as_parent(self):
            nn.MultiheadAttention._reset_parameters(self)

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # TransformerEncoderLayer.forward has a shortcut in eval mode that reads the parameters and never calls this
        # module. It takes it only for packed weights, which is what this name says; the true answer is in_proj_weight.
        # The parent's methods that need it run in `_as_parent`.
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        self.__dict__["_qkv_same_embed_dim"] = value  # the parent's own, read again once the class is the parent's

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`: masks are True, or −∞, where a key is hidden."""
        check_supported(self)  # dropout may have been set since
        self._check_inputs(query, key, value)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask: pass the mask with it, as to PyTorch's own module")
        batched = query.dim() == 3
        query, key, value = self._batch_first(query, key, value)
        mask = self._merged_mask(None if is_causal else attn_mask, key_padding_mask, query)
        options = Options(self.head_dim**-0.5, "softmax", mask, None, is_causal, need_weights)
        out, weights = self._attend(query, key, value, options)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor | None]:
        weights = torch_weights(self)
        sizes = Sizes(
            query.shape[0], query.shape[1], key.shape[1], self.num_heads, self.embed_dim, self.kdim, self.vdim,
            self.head_dim, self.embed_dim, query.requires_grad, key.requires_grad, value.requires_grad,
        )  # fmt: skip
        chosen = plan(sizes)
        same = key is query and value is key
        if same and chosen.side == "tokens" and self.in_proj_weight is not None:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)  # one product for three
            return attend_projected(q, k, v, weights, self.num_heads, options)
        return multi_head_attention(query, key, value, weights, self.num_heads, chosen, options)

    def _batch_first(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def convert(x: Tensor) -> Tensor:
            return x[None] if x.dim() == 2 else x.transpose(0, 1)

        if query.dim() == 3 and self.batch_first:
            return query, key, value
        # One object stays one: it is projected, or read, once.
        first = convert(query)
        second = first if key is query else convert(key)
        return first, second, second if value is key else convert(value)

    def _merged_mask(self, attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        """Both masks as one, of the meaning that `attention` has: True where a key is seen, or added to the logits."""
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))  # (N, H, Lq, L)
        if padding is not None:
            padding = padding[None] if padding.dim() == 1 else padding
            padding = padding[:, None, None]  # (N, 1, 1, L)
        masks = [mask for mask in (attn_mask, padding) if mask is not None]
        if not masks:
            return None
        if all(mask.dtype == torch.bool for mask in masks):
            return ~masks[0] if len(masks) == 1 else ~(masks[0] | masks[1])
        additive = [_additive(mask, query.dtype) for mask in masks]
        return additive[0] if len(masks) == 1 else additive[0] + additive[1]

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError(
                "query, key and value must not be nested tensors, got one. A TransformerEncoder makes them in eval "
                "mode: call nn.replace_attention on the encoder itself, or set its .use_nested_tensor = False"
            )
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            raise ValueError(
                "query, key and value must all have two or three dimensions, got shapes "
                f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
            )
        for name, tensor, width in [
            ("query", query, self.embed_dim),
            ("key", key, self.kdim),
            ("value", value, self.vdim),
        ]:
            if tensor.shape[-1] != width:
                raise ValueError(f"{name} must have width {width}, got shape {list(tensor.shape)}")


@contextmanager
def _as_parent(module: TorchMultiheadAttention) -> Iterator[None]:
    """The module as one of the parent's class, with the parent's own `_qkv_same_embed_dim`."""
    own = type(module)
    module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
    try:
        yield
    finally:
        module.__class__ = own


def replace_attention(model: nn.Module) -> list[str]:
    """Run every `torch.nn.MultiheadAttention` in a model, itself included, on this package's kernels.

    The modules stay the objects that they are and keep parameters, hooks and state-dict names, so an optimiser made
    before goes on working and checkpoints fit either way; `restore_attention` undoes it. TransformerEncoders no longer
    make nested tensors in eval mode, so their output at padded positions is the layers', where it was 0.

    Returns:
        The names of the modules replaced now, "" for the model itself: none where all were replaced before.

    Raises:
        ValueError: the model has no attention modules, or one has dropout, add_bias_kv or add_zero_attn. Then nothing
            is changed.
        TypeError: one is of a subclass of `torch.nn.MultiheadAttention`, whose forward may differ.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    if not found:
        raise ValueError(f"there is no torch.nn.MultiheadAttention to replace in {type(model).__name__}")
    found = {name: module for name, module in found.items() if type(module) is not TorchMultiheadAttention}
    for name, module in found.items():
        if type(module) is not nn.MultiheadAttention:
            raise TypeError(
                f"{name or 'model'} must be a torch.nn.MultiheadAttention itself, got {type(module).__name__}"
            )
        try:
            check_supported(module)
        except ValueError as error:
            raise ValueError(f"{name or 'model'}: {error}") from None
    for module in found.values():
        module.__class__ = TorchMultiheadAttention
    for encoder in _encoders(model):
        encoder.__dict__.setdefault(_NESTED, encoder.use_nested_tensor)
        encoder.use_nested_tensor = False
    return list(found)


def restore_attention(model: nn.Module) -> list[str]:
    """Undo `replace_attention`; returns the names of the modules restored."""
    found = {name: module for name, module in model.named_modules() if type(module) is TorchMultiheadAttention}
    for module in found.values():
        module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
    for encoder in _encoders(model):
        encoder.use_nested_tensor = encoder.__dict__.pop(_NESTED, encoder.use_nested_tensor)
    return list(found)


_NESTED = "_use_nested_tensor_before_replacement"


def _encoders(model: nn.Module) -> list[nn.TransformerEncoder]:
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
