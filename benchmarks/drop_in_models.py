"""The models of drop_in.py, each in every form that competes; forms of one model start from the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mhicl_fast
from mhicl_fast.nn import MultiHeadAttention, huggingface

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


class StudyModule(nn.Module):
    """One layer as public studies write it: every token is projected, then heads attend."""

    def __init__(self, dim: int, heads: int, outputs: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, heads * dim, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(heads * dim, outputs, bias=False)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        projected = (self.q_proj(query), self.k_proj(context), self.v_proj(context))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        return self.o_proj(self.attention(q, k, v).transpose(1, 2).flatten(2))


class OurModule(MultiHeadAttention):
    def forward(self, query: Tensor, context: Tensor) -> Any:  # type: ignore[override]
        return super().forward(query, context, context)


def one_layer(dim: int, heads: int, outputs: int) -> dict[str, nn.Module]:
    study = StudyModule(dim, heads, outputs, eager)
    ours = OurModule(dim, heads, head_dim=dim, out_dim=outputs)
    ours.load_state_dict(study.state_dict())
    sdpa = copy.deepcopy(study)
    sdpa.attention = F.scaled_dot_product_attention
    return all_forms(study, sdpa, ours, to_compile=study)


class AttentionLayer(nn.Module):
    """x + W_O attention(W x), with the three input projections packed."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(self.attention(q, k, v).transpose(1, 2).flatten(2))


class AttentionOnly(nn.Sequential):
    def __init__(self, inputs: int, attention: Attention, *, width: int = 256, heads: int = 8, layers: int = 3) -> None:
        blocks = [AttentionLayer(width, heads, attention) for _ in range(layers)]
        super().__init__(nn.Linear(inputs, width), *blocks, nn.Linear(width, 1))


def transformer(inputs: int) -> dict[str, nn.Module]:
    plain = AttentionOnly(inputs, eager)
    forms: dict[str, nn.Module] = {}
    for name, attention in (("SDPA", F.scaled_dot_product_attention), ("ours", mhicl_fast.attention)):
        forms[name] = AttentionOnly(inputs, attention)
        forms[name].load_state_dict(plain.state_dict())
    return all_forms(plain, forms["SDPA"], forms["ours"], to_compile=plain)


class Gpt2Logits(nn.Module):
    """A randomly initialised GPT-2 of transformers, from token numbers to logits."""

    def __init__(self, vocabulary: int, tokens: int, implementation: str) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=vocabulary, n_positions=tokens, n_embd=256, n_layer=3, n_head=8, use_cache=False,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=None, eos_token_id=None,
            attn_implementation=implementation,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt2(vocabulary: int, tokens: int) -> dict[str, nn.Module]:
    forms = {name: Gpt2Logits(vocabulary, tokens, name) for name in ("eager", "sdpa", huggingface.register())}
    for module in forms.values():
        module.load_state_dict(forms["eager"].state_dict())
    return all_forms(forms["eager"], forms["sdpa"], forms[huggingface.NAME], to_compile=forms["sdpa"])


def all_forms(eager: nn.Module, sdpa: nn.Module, ours: nn.Module, *, to_compile: nn.Module) -> dict[str, nn.Module]:
    """With compiled copies, which have parameters of their own, of PyTorch's form that compiles best and of ours."""
    compiled, compiled_ours = (torch.compile(copy.deepcopy(module)) for module in (to_compile, ours))
    return {"eager": eager, "SDPA": sdpa, "compiled": compiled, "ours, compiled": compiled_ours, "ours": ours}
