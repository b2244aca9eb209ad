"""Multi-head attention with factored parameters, in the layout of the public one-layer modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .core import Options, Weights, combined_kq, combined_ov, multi_head_attention
from .projection import Plan, Sizes, plan

_ACTIVATIONS = ("softmax", "linear", "relu")
_PROJECTIONS = ("auto", "tokens", "query")


class MultiHeadAttention(nn.Module):
    """Attention with Linear layers q_proj, k_proj, v_proj, o_proj: heads along the rows of the first three, along the
    columns of o_proj.

    Head h computes KQ_h = scale · W_K,hᵀ W_Q,h and OV_h = W_O,h W_V,h; `kq` and `ov` give them. State dicts are those
    of modules with four Linear layers of these names and shapes, biases included where both have them. The layers hold
    parameters and are not called: hooks on them do not run, and layers that compute otherwise are a TypeError.

    Args:
        embed_dim: D, the width of a query.
        num_heads: H.
        kdim, vdim: widths Dk, Dv of keys and values; D unless given.
        head_dim: E, rows per head; D / H unless given, as in `torch.nn.MultiheadAttention`. One-layer studies mostly
            give each head the full width: head_dim=embed_dim.
        out_dim: O, the width of the output; D unless given.
        bias: whether q_proj, k_proj and v_proj have biases.
        out_bias: whether o_proj has one; as `bias` unless given.
        activation: "softmax", or "linear" or "relu" attention, whose weights are not normalised.
        scale: multiplies the logits; E^-½ unless given.
        projection: where to project, "auto", "tokens" or "query". "auto" counts the operations of both
            (`nn.projection`) and takes the fewer. The results agree to rounding. Linear and ReLU attention with biases
            always project tokens: there the key bias does not cancel and the value bias does not come out whole.
        device, dtype: of the parameters, which start as `nn.Linear` starts them.

    Raises:
        ValueError: a size is not positive, D is not divisible by H and there is no head_dim, or a name is not known.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        head_dim: int | None = None,
        out_dim: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        activation: str = "softmax",
        scale: float | None = None,
        projection: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.out_dim = embed_dim if out_dim is None else out_dim
        self.head_dim = _default_head_dim(embed_dim, num_heads) if head_dim is None else head_dim
        for name in ("embed_dim", "num_heads", "kdim", "vdim", "head_dim", "out_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.activation = _one_of("activation", activation, _ACTIVATIONS)
        self.projection = _one_of("projection", projection, _PROJECTIONS)
        self.scale = self.head_dim**-0.5 if scale is None else scale
        if projection == "query" and bias and activation != "softmax":
            raise ValueError(
                f"projection must be 'auto' or 'tokens' for {activation} attention with biases, got 'query': "
                "only the softmax lets a key bias cancel and a value bias come out whole"
            )
        inner = num_heads * self.head_dim
        self.q_proj = nn.Linear(embed_dim, inner, bias, device, dtype)
        self.k_proj = nn.Linear(self.kdim, inner, bias, device, dtype)
        self.v_proj = nn.Linear(self.vdim, inner, bias, device, dtype)
        self.o_proj = nn.Linear(inner, self.out_dim, bias if out_bias is None else out_bias, device, dtype)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor | None = None,
        key_lengths: Tensor | None = None,
        is_causal: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention of each query to its problem's tokens.

        Args:
            query: (N, Lq, D).
            key, value: (N, L, Dk) and (N, L, Dv). Where they are the same, pass the same object: one query per
                problem then reads the tokens once, in `prompt_attention`.
            attn_mask: boolean, True where a key is seen, or added to the logits; broadcastable to (N, H, Lq, L).
            key_lengths: (N,) integers: problem n has key_lengths[n] tokens, what the others hold never shows.
            is_causal: whether row i sees keys up to i only.
            return_weights: whether to give the attention weights too.

        Returns:
            (N, Lq, O), or that and the weights (N, H, Lq, L). A row that sees no key gives o_proj's bias.

        Raises:
            TypeError, ValueError: a tensor does not fit, or is not of the parameters' dtype, autocast apart; see also
                `mhicl_fast.attention`.
        """
        parameters = self.weights()
        _check_inputs(query, key, value, self)
        out, weights = multi_head_attention(
            query, key, value, parameters, self.num_heads, self.plan(query, key, value),
            Options(self.scale, self.activation, attn_mask, key_lengths, is_causal, return_weights),
        )  # fmt: skip
        return out if weights is None else (out, weights)

    def plan(self, query: Tensor, key: Tensor, value: Tensor) -> Plan:
        """Where `forward` projects for such inputs, and the multiply-adds that takes."""
        tokens_only = self.activation != "softmax" and self.q_proj.bias is not None
        sizes = Sizes(
            query.shape[0], query.shape[1], key.shape[1], self.num_heads, self.embed_dim, self.kdim, self.vdim,
            self.head_dim, self.out_dim, query.requires_grad, key.requires_grad, value.requires_grad,
        )  # fmt: skip
        return plan(sizes, "tokens" if tokens_only else self.projection)

    @property
    def kq(self) -> Tensor:
        """KQ_h = scale · W_K,hᵀ W_Q,h, (H, Dk, D), as `mhicl_fast.spectral` and `prompt_attention` take it."""
        return self.scale * combined_kq(self.weights(), self.num_heads)

    @property
    def ov(self) -> Tensor:
        """OV_h = W_O,h W_V,h, (H, O, Dv)."""
        return combined_ov(self.weights(), self.num_heads)

    def weights(self) -> Weights:
        """The parameters of the four layers; TypeError where one does not compute with them alone, as an adapter."""
        layers = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        for name, layer in zip(("q_proj", "k_proj", "v_proj", "o_proj"), layers):
            if type(layer).forward is not nn.Linear.forward:
                raise TypeError(f"{name} must compute as torch.nn.Linear does, got {type(layer).__name__}")
        return Weights(*(layer.weight for layer in layers), *(layer.bias for layer in layers))

    def extra_repr(self) -> str:
        return (
            f"heads={self.num_heads}, head_dim={self.head_dim}, activation={self.activation!r}, "
            f"scale={self.scale:.4g}, projection={self.projection!r}"
        )


def _default_head_dim(embed_dim: int, num_heads: int) -> int:
    if num_heads > 0 and embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}: give head_dim")
    return embed_dim // max(num_heads, 1)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def _check_inputs(query: Tensor, key: Tensor, value: Tensor, module: MultiHeadAttention) -> None:
    widths = {"query": module.embed_dim, "key": module.kdim, "value": module.vdim}
    for (name, width), tensor in zip(widths.items(), (query, key, value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != 3 or tensor.shape[2] != width:
            raise ValueError(f"{name} must be (problems, rows, {width}), got shape {list(tensor.shape)}")
        dtype = module.o_proj.weight.dtype
        if tensor.dtype != dtype and not torch.is_autocast_enabled(tensor.device.type):
            raise TypeError(f"{name} must be {dtype} like the module's parameters, got {tensor.dtype}")
    if key.shape[:2] != value.shape[:2] or query.shape[0] != key.shape[0]:
        raise ValueError(
            "query must be (N, Lq, ·), key and value (N, L, ·) of the same N and L, got shapes "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
