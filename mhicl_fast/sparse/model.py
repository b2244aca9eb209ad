"""The transformer of the study: residual multi-head attention over examples, without position codes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..ops import attention

ACTIVATIONS = ("softmax", "linear")


class LayerShape(NamedTuple):
    """The heads of a layer and the dimension of each."""

    heads: int
    head_dim: int


class Transformer(nn.Module):
    """Reads tokens (x_i, y_i) and (x_q, 0), and predicts each query's label.

    h⁰ = W_in z; h^{ℓ+1} = h^ℓ + Σ_j W_O,j Σ_l a_jl W_V,j h_l over the context examples l, where a_j· is the softmax of
    scale · (W_K,j h_l)·(W_Q,j h), or, with linear attention, that product itself divided by the number n of context
    examples. Queries are attended to by nobody, so a prompt can have any number of them without any effect on each
    other. The prediction is w_out · h at the query after the last layer.

    Args:
        dim_x: covariates d of an example.
        width: W, of the hidden states.
        layers: heads and head dimension of each layer.
        activation: "softmax" or "linear".
        scale: of the logits; head_dim^(−1/2) of each layer if None.
        layer_norm: whether to normalise what attention, MLP and the read-out read.
        mlp_width: hidden units of a GELU network after each layer's attention; 0: none.
        seed: of the starting weights, which are a pure function of it and of the sizes.

    Weights start as N(0, 1/fan-in), those that write into the residual stream 1/√layers as large, the read-out as 0.

    Raises ValueError for sizes below 1 (mlp_width: 0) and another activation.
    """

    def __init__(
        self,
        dim_x: int,
        width: int,
        layers: Sequence[LayerShape | tuple[int, int]],
        *,
        activation: str = "softmax",
        scale: float | None = None,
        layer_norm: bool = False,
        mlp_width: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shapes = [LayerShape(*shape) for shape in layers]
        if min(dim_x, width, len(shapes), *(size for shape in shapes for size in shape)) < 1 or mlp_width < 0:
            raise ValueError(
                "sizes must be at least 1 and mlp_width at least 0, got "
                f"dim_x={dim_x}, width={width}, layers={shapes}, mlp_width={mlp_width}"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.dim_x, self.width, self.activation, self.layer_norm = dim_x, width, activation, layer_norm
        self.mlp_width = mlp_width
        self.needs_gains = False  # whether predictions mean nothing without them, as where step sizes come with prompts
        self.read_in = nn.Parameter(torch.empty(width, dim_x + 1))
        self.layers = nn.ModuleList(Layer(width, shape, activation, scale, layer_norm, mlp_width) for shape in shapes)
        self.read_out = nn.Parameter(torch.empty(width))
        self._start(torch.Generator("cpu").manual_seed(seed))

    @property
    def shapes(self) -> list[LayerShape]:
        """Heads and head dimension of each layer."""
        return [layer.shape for layer in self._layers()]

    @property
    def scales(self) -> list[float]:
        """What each layer multiplies its logits by, before linear attention's 1/n."""
        return [layer.scale for layer in self._layers()]

    @property
    def head_masks(self) -> list[Tensor | None]:
        """For each layer zeros and ones (heads,), None where all heads speak."""
        return [layer.head_mask for layer in self._layers()]

    @property
    def attention_only(self) -> bool:
        """Whether there is neither layer norm nor an MLP."""
        return not self.layer_norm and all(layer.mlp is None for layer in self._layers())

    def forward(self, tokens: Tensor, n_queries: int, gains: Tensor | None = None) -> Tensor:
        """Predictions (N, Q) for the last Q = n_queries of the tokens (N, n + Q, d + 1).

        `gains` (layers, N) multiplies what attention adds in each layer and prompt.
        """
        return self._normalised(self._states(tokens, n_queries, gains)[-1]) @ self.read_out

    def hidden_states(self, tokens: Tensor, n_queries: int, gains: Tensor | None = None) -> list[Tensor]:
        """h⁰, …, h^layers of all tokens, each (N, n + Q, W)."""
        return self._states(tokens, n_queries, gains, all_tokens=True)

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, on the memory of the parameters: read_in, each layer's q, k, v, o, …, read_out."""
        found = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {**{name: found[name] for name in found if name != "read_out"}, "read_out": found["read_out"]}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Transformer:
        """A copy that holds other weights, in their type; its heads are masked as this one's."""
        model = copy.deepcopy(self).to(next(iter(tensors.values())).dtype)
        model.load_state_dict(tensors)
        return model

    def with_heads(self, layers: Sequence[LayerShape | tuple[int, int]], tensors: Mapping[str, Tensor]) -> Transformer:
        """A transformer of as many layers with other heads and these weights, by the names of `tensors`.

        All else, the logit scales too, is as in this one; no head is masked. RuntimeError where weights do not fit.
        """
        settings = {"activation": self.activation, "layer_norm": self.layer_norm, "mlp_width": self.mlp_width}
        model = Transformer(self.dim_x, self.width, layers, **settings).to(self.read_in)  # type: ignore[arg-type]
        model.load_state_dict(tensors)
        for ours, theirs in zip(model._layers(), self._layers(), strict=True):
            ours.scale = theirs.scale
        return model

    @contextmanager
    def masked(self, heads: Iterable[tuple[int, int]]) -> Iterator[Transformer]:
        """Within, the (layer, head) named, counted from 0, put out zeros; before and after, the model is as it was."""
        before = [layer.head_mask for layer in self._layers()]
        try:
            for index, head in heads:
                self._layer(index, head).silence(head)
            yield self
        finally:
            for layer, mask in zip(self._layers(), before, strict=True):
                layer.head_mask = mask

    def _states(self, tokens: Tensor, n_queries: int, gains: Tensor | None, all_tokens: bool = False) -> list[Tensor]:
        """All hidden states; without `all_tokens` the last one is of the queries alone."""
        if self.needs_gains and gains is None:
            raise ValueError(
                "this transformer's step sizes come with the prompts: give gains, as step_gains makes them"
            )
        n_context = tokens.shape[1] - n_queries
        if tokens.dim() != 3 or tokens.shape[2] != self.dim_x + 1 or not 0 <= n_context <= tokens.shape[1]:
            raise ValueError(
                f"tokens must be (prompts, examples and {n_queries} queries, {self.dim_x + 1}), "
                f"got {list(tokens.shape)}"
            )
        states = [tokens @ self.read_in.T]
        for index, layer in enumerate(self._layers()):
            rows = slice(n_context if index == len(self.layers) - 1 and not all_tokens else 0, None)
            states.append(layer(states[-1], rows, n_context, None if gains is None else gains[index]))
        return states

    def _start(self, generator: torch.Generator) -> None:
        """Draw the starting weights, in order."""
        output = 1 / math.sqrt(len(self.layers))
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name == "read_out" or weight.dim() == 1:
                    weight.zero_()
                else:
                    writes = name.endswith((".o", ".mlp.2.weight"))
                    size = (output if writes else 1.0) / math.sqrt(weight.shape[1])
                    weight.normal_(std=size, generator=generator)

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _layer(self, index: int, head: int) -> Layer:
        if not (0 <= index < len(self.layers) and 0 <= head < self.shapes[index].heads):
            raise ValueError(f"there is no head {head} in layer {index}: (heads, head dimension) are {self.shapes}")
        return self._layers()[index]

    def _normalised(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, (self.width,)) if self.layer_norm else hidden


class Layer(nn.Module):
    """Attention of all heads, then the MLP if there is one, each added to its input."""

    head_mask: Tensor | None  # (heads,) of 0 and 1; None: all heads

    def __init__(
        self,
        width: int,
        shape: LayerShape,
        activation: str,
        scale: float | None,
        layer_norm: bool,
        mlp_width: int,
    ) -> None:
        super().__init__()
        self.width, self.shape, self.activation, self.layer_norm = width, shape, activation, layer_norm
        self.scale = shape.head_dim**-0.5 if scale is None else scale
        self.head_mask = None
        inner = shape.heads * shape.head_dim
        self.q, self.k, self.v = (nn.Parameter(torch.empty(inner, width)) for _ in range(3))
        self.o = nn.Parameter(torch.empty(width, inner))
        self.mlp = _mlp(width, mlp_width) if mlp_width else None

    def forward(self, hidden: Tensor, rows: slice, n_context: int, gain: Tensor | None) -> Tensor:
        """The hidden states after the layer of the tokens `rows`, from those of all tokens (N, T, W) before it."""
        read = self._normalised(hidden)
        added = self.heads_output(read[:, rows], read[:, :n_context]) @ self.o.T
        out = hidden[:, rows] + (added if gain is None else gain[:, None, None] * added)
        return out if self.mlp is None else out + self.mlp(self._normalised(out))

    def heads_output(self, rows: Tensor, context: Tensor) -> Tensor:
        """What the heads put out before W_O, side by side: (N, R, H·E) from (N, R, W) and (N, n, W)."""
        query, key, value = (
            F.linear(tokens, weight).unflatten(-1, self.shape).transpose(1, 2)
            for tokens, weight in ((rows, self.q), (context, self.k), (context, self.v))
        )
        scale = self.scale if self.activation == "softmax" else self.scale / max(context.shape[1], 1)
        out = attention(query, key, value, scale=scale, activation=self.activation)
        assert isinstance(out, Tensor)
        if self.head_mask is not None:
            out = out.masked_fill(self.head_mask.to(out.device)[:, None, None] == 0, 0)  # NaN too
        return out.transpose(1, 2).flatten(2)

    def silence(self, head: int) -> None:
        """Let a head put out zeros."""
        mask = torch.ones(self.shape.heads) if self.head_mask is None else self.head_mask.clone()
        mask[head] = 0
        self.head_mask = mask

    def _normalised(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, (self.width,)) if self.layer_norm else hidden


def _mlp(width: int, hidden: int) -> nn.Sequential:
    """Without weights: PyTorch's own would be drawn from its global generator."""
    return nn.Sequential(skip_init(nn.Linear, width, hidden), nn.GELU(), skip_init(nn.Linear, hidden, width))


def uniform_layers(width: int, n_layers: int, n_heads: int) -> list[LayerShape]:
    """Layers of `n_heads` heads each that share the width; ValueError where they cannot evenly."""
    if n_heads < 1 or width % n_heads:
        raise ValueError(f"width must be a multiple of n_heads, got width={width}, n_heads={n_heads}")
    return [LayerShape(n_heads, width // n_heads)] * n_layers
