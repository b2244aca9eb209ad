"""The attention-only transformer on the CPU: a whole training step, or its predictions, in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float64, torch.float32)
_ACTIVATIONS = ("softmax", "linear")
Shape = tuple[int, int]  # heads and head dimension of a layer


def transformer_step(
    tokens: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    shapes: Sequence[Shape],
    *,
    activation: str,
    scales: Sequence[float],
    head_masks: Sequence[Tensor | None] | None = None,
) -> tuple[float, list[Tensor]]:
    """The loss of an attention-only transformer, mean (ŷ − target)² over prompts and queries, and its gradients.

    h⁰ = W_in z; h^{ℓ+1} = h^ℓ + Σ_j W_O,j Σ_l a_jl W_V,j h_l over the n context examples l, where a_j· is the softmax
    of scale · (W_K,j h_l)·(W_Q,j h), or, with linear attention, that product itself over n; ŷ = w_out · h at the
    queries, which nobody attends to. It is `sparse.model.Transformer` without layer norm and MLP.

    Forward and backward pass go through a few prompts at a time, and nothing is recorded for autograd: the gradients
    are what is returned, and tensors that require a gradient are read as constants. The result has the same bits for
    any number of threads. Without predictions (N = 0 or Q = 0) the loss is NaN, the mean of nothing, and gradients are
    zero.

    Args:
        tokens: (x, y) of the context and (x, 0) of the queries, (N, n + Q, d + 1); float32 or float64, on the CPU. For
            other devices there is the autograd path of `sparse.model.Transformer`.
        target: (N, Q).
        weights: read-in (W, d + 1), then of each layer q, k, v (H·E, W) and o (W, H·E), then read-out (W,).
        shapes: heads H and head dimension E of each layer.
        activation: "softmax" or "linear".
        scales: of each layer's logits, before linear attention's 1/n.
        head_masks: for each layer (H,) of zeros and ones, or None for all ones. A head with a zero is left out: it adds
            nothing, and its weights' gradients are zero.

    Raises:
        TypeError: an argument is no tensor of float32 or float64, or dtypes differ.
        ValueError: a shape does not fit, a tensor is not on the CPU, or an option is none that exists.
    """
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.dim() != 2:
        raise ValueError(f"target must be (prompts, queries), got shape {list(target.shape)}")
    model = _Model(tokens, target.shape[1], weights, shapes, activation, scales, head_masks)
    model.check_tensor("target", target, (tokens.shape[0], target.shape[1]))
    loss, gradients = torch.ops.mhicl.transformer_step(
        tokens.detach(), target.detach(), model.kept_weights(), **model.options()
    )
    return float(loss), model.with_dropped_heads(gradients)


def transformer_predict(
    tokens: Tensor,
    n_queries: int,
    weights: Sequence[Tensor],
    shapes: Sequence[Shape],
    *,
    activation: str,
    scales: Sequence[float],
    head_masks: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """The predictions (N, Q) for the last Q = n_queries tokens of each prompt, without a graph.

    Arguments and errors are those of `transformer_step`.
    """
    model = _Model(tokens, n_queries, weights, shapes, activation, scales, head_masks)
    return torch.ops.mhicl.transformer_predict(tokens.detach(), n_queries, model.kept_weights(), **model.options())


class _Model:
    """Checked arguments, and the model without the heads that are masked."""

    def __init__(
        self,
        tokens: Tensor,
        n_queries: int,
        weights: Sequence[Tensor],
        shapes: Sequence[Shape],
        activation: str,
        scales: Sequence[float],
        head_masks: Sequence[Tensor | None] | None,
    ) -> None:
        self.tokens, self.weights, self.activation = tokens, list(weights), activation
        self.shapes, self.scales = [tuple(shape) for shape in shapes], [float(scale) for scale in scales]
        masks = [None] * len(self.shapes) if head_masks is None else list(head_masks)
        self._check_options(masks)
        self._check_tensors(n_queries)
        self.kept = [
            _kept_heads(layer, heads, mask) for layer, ((heads, _), mask) in enumerate(zip(self.shapes, masks))
        ]

    def options(self) -> dict[str, object]:
        """What the operator is called with by keyword."""
        heads = [heads if kept is None else len(kept) for (heads, _), kept in zip(self.shapes, self.kept)]
        dims = [dim for _, dim in self.shapes]
        return {"heads": heads, "head_dims": dims, "scales": self.scales, "activation": self.activation}

    def kept_weights(self) -> list[Tensor]:
        """Those of the heads that speak."""
        return [
            weight.detach() if rows is None else weight.detach().index_select(dim, rows)
            for weight, (dim, rows) in zip(self.weights, self._kept_rows())
        ]

    def with_dropped_heads(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of all weights, zero where a head is left out."""
        return [
            gradient if rows is None else torch.zeros_like(weight).index_copy_(dim, rows, gradient)
            for weight, gradient, (dim, rows) in zip(self.weights, gradients, self._kept_rows())
        ]

    def check_tensor(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """Raise unless it is one of the dtype and device of the tokens, with this shape."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype != self.tokens.dtype:
            raise TypeError(f"{name} must be {self.tokens.dtype} like tokens, got {tensor.dtype}")
        if tensor.device != self.tokens.device:
            raise ValueError(f"{name} must be on {self.tokens.device} like tokens, got {tensor.device}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")

    def _kept_rows(self) -> list[tuple[int, Tensor | None]]:
        """For each weight the dimension that runs over heads, and the indices that are kept there; None: all."""
        found: list[tuple[int, Tensor | None]] = [(0, None)]
        for (_, dim), kept in zip(self.shapes, self.kept):
            rows = None if kept is None else (kept[:, None] * dim + torch.arange(dim, device=kept.device)).flatten()
            found += [(0, rows)] * 3 + [(1, rows)]
        return [*found, (0, None)]

    def _check_options(self, masks: Sequence[Tensor | None]) -> None:
        layers = len(self.shapes)
        if layers == 0 or any(len(shape) != 2 or min(shape) < 1 for shape in self.shapes):
            raise ValueError(f"shapes must be (heads, head_dim) of a layer or more, each at least 1, got {self.shapes}")
        for name, given in (("scales", len(self.scales)), ("head_masks", len(masks))):
            if given != layers:
                raise ValueError(f"{name} must have one entry for each of the {layers} layers, got {given}")
        if not all(map(math.isfinite, self.scales)):
            raise ValueError(f"scales must be finite, got {self.scales}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")
        if len(self.weights) != 4 * layers + 2:
            raise ValueError(
                f"weights must be read-in, q, k, v and o of each of the {layers} layers, and read-out, "
                f"{4 * layers + 2} tensors, got {len(self.weights)}"
            )

    def _check_tensors(self, n_queries: int) -> None:
        tokens, read_in = self.tokens, self.weights[0]
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens must be a torch.Tensor, got {type(tokens).__name__}")
        if tokens.dtype not in _DTYPES:
            raise TypeError(f"tokens must be float64 or float32, got {tokens.dtype}")
        if tokens.device.type != "cpu":
            raise ValueError(
                f"tokens are on {tokens.device}, but these kernels are the CPU's: on other devices call the model, "
                "sparse.model.Transformer, and let autograd differentiate it"
            )
        if tokens.dim() != 3 or tokens.shape[2] < 1 or not 0 <= n_queries <= tokens.shape[1]:
            raise ValueError(
                f"tokens must be (prompts, examples and {n_queries} queries, dim), got shape {list(tokens.shape)}"
            )
        if not isinstance(read_in, Tensor) or read_in.dim() != 2 or read_in.shape[0] < 1:
            came = list(read_in.shape) if isinstance(read_in, Tensor) else type(read_in).__name__
            raise ValueError(f"read_in, the first of the weights, must be (width, {tokens.shape[2]}), got {came}")
        width = read_in.shape[0]
        named = [("read_in", (width, tokens.shape[2]))]
        for layer, (heads, dim) in enumerate(self.shapes):
            named += [(f"{name} of layer {layer}", (heads * dim, width)) for name in "qkv"]
            named.append((f"o of layer {layer}", (width, heads * dim)))
        for (name, shape), weight in zip([*named, ("read_out", (width,))], self.weights):
            self.check_tensor(name, weight, shape)


def _kept_heads(layer: int, heads: int, mask: Tensor | None) -> Tensor | None:
    """The heads that a mask leaves, or None for all of them."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (heads,):
        came = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the head mask of layer {layer} must be a tensor of shape [{heads}], got {came}")
    values = mask.detach().cpu()
    if not ((values == 0) | (values == 1)).all():
        raise ValueError(f"the head mask of layer {layer} must hold zeros and ones, got {values.tolist()}")
    return None if values.all() else values.nonzero().flatten()


@torch.library.register_fake("mhicl::transformer_step")
def _(
    tokens: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    *,
    heads: Sequence[int],
    head_dims: Sequence[int],
    scales: Sequence[float],
    activation: str,
) -> tuple[Tensor, list[Tensor]]:
    return tokens.new_empty((), dtype=torch.float64), [weight.new_empty(weight.shape) for weight in weights]


@torch.library.register_fake("mhicl::transformer_predict")
def _(
    tokens: Tensor,
    n_queries: int,
    weights: Sequence[Tensor],
    *,
    heads: Sequence[int],
    head_dims: Sequence[int],
    scales: Sequence[float],
    activation: str,
) -> Tensor:
    return tokens.new_empty(tokens.shape[0], n_queries)
