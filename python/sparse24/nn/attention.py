"""``SparseMultiheadAttention``: ``nn.MultiheadAttention`` for inference, with compressed projections."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import NotSparse24Error
from .linear import SparseLinear
from .tracing import Unscriptable, leaf_of


class SparseMultiheadAttention(Unscriptable, nn.Module):
    """Inference drop-in for ``nn.MultiheadAttention`` whose four projections are ``SparseLinear``.

    The packed ``in_proj`` of the dense module becomes ``q_proj``, ``k_proj`` and ``v_proj``; scores,
    softmax and the sum over values stay dense. All options of the dense module are supported.

    Attributes:
        in_proj_weight, in_proj_bias: always ``None``, and ``_qkv_same_embed_dim`` false: this is how
            ``nn.TransformerEncoderLayer`` sees that its fused dense path does not apply.

    Raises:
        ValueError: embed_dim is no multiple of num_heads; in forward: shapes that do not fit, a mask that
            is neither bool nor floating, ``is_causal`` without ``attn_mask``.
    """

    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads <= 0 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.add_zero_attn = add_zero_attn
        self.q_proj = SparseLinear(embed_dim, embed_dim, bias, device, dtype)
        self.k_proj = SparseLinear(self.kdim, embed_dim, bias, device, dtype)
        self.v_proj = SparseLinear(self.vdim, embed_dim, bias, device, dtype)
        self.out_proj = SparseLinear(embed_dim, embed_dim, bias, device, dtype)
        for name in ("bias_k", "bias_v"):
            with torch.inference_mode(False):
                extra = torch.zeros((1, 1, embed_dim), device=device, dtype=self.q_proj.values.dtype)
            self.register_parameter(name, nn.Parameter(extra, False) if add_bias_kv else None)

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
        """Shapes, masks and results as ``nn.MultiheadAttention.forward``.

        ``is_causal`` is a hint that ``attn_mask`` is the causal mask, and only ever saves reading it.
        """
        options = {
            "key_padding_mask": key_padding_mask,
            "need_weights": need_weights,
            "attn_mask": attn_mask,
            "average_attn_weights": average_attn_weights,
            "is_causal": is_causal,
        }
        if (leaf := leaf_of(self, (query, key, value), options)) is not None:
            return cast(tuple[Tensor, Tensor | None], leaf)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says that attn_mask is causal: give attn_mask too")
        self._check_shapes(query, key, value)
        batched = query.dim() == 3
        batch_dim = 0 if self.batch_first or not batched else 1
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q = self._heads(self.q_proj(query), batch_dim)
        k, v = self._with_extra_keys(
            self._heads(self.k_proj(key), batch_dim), self._heads(self.v_proj(value), batch_dim)
        )
        causal = (
            is_causal
            and key_padding_mask is None
            and not need_weights
            and k.shape[2] == key.shape[1 - batch_dim]
        )
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            heads, weights = _attend(q, k, v, mask, dropout)
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        merged = heads.transpose(1, 2) if batch_dim == 0 else heads.permute(2, 0, 1, 3)
        output = self.out_proj(merged.flatten(2))
        if batched:
            return output, weights
        return output.squeeze(0), None if weights is None else weights.squeeze(0)

    def _check_shapes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        wanted = (self.embed_dim, self.kdim, self.vdim)
        shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
        dims = {len(shape) for shape in shapes}
        if dims not in ({2}, {3}) or any(s[-1] != w for s, w in zip(shapes, wanted, strict=True)):
            raise ValueError(
                f"query, key and value must end in {wanted} and be all 2-D or all 3-D, not {shapes}"
            )
        batch_dim = 0 if self.batch_first else 1
        if shapes[1][:-1] != shapes[2][:-1] or (dims == {3} and shapes[0][batch_dim] != shapes[1][batch_dim]):
            raise ValueError(
                f"key and value must have one length, and all three one batch size, not {shapes} "
                f"with batch_first={self.batch_first}"
            )

    def _heads(self, projected: Tensor, batch_dim: int) -> Tensor:
        """[N, L, E] or [L, N, E] to [N, heads, L, E / heads]."""
        split = projected.view(*projected.shape[:2], self.num_heads, self.head_dim)
        return split.transpose(1, 2) if batch_dim == 0 else split.permute(1, 2, 0, 3)

    def _with_extra_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``bias_k`` and ``bias_v``, and the key of zeros that ``add_zero_attn`` asks for."""
        batch = k.shape[0]
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self._heads(self.bias_k, 0).expand(batch, -1, -1, -1)], dim=2)
            v = torch.cat([v, self._heads(self.bias_v, 0).expand(batch, -1, -1, -1)], dim=2)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return k, v

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Both masks as one additive mask that broadcasts to [N, heads, L, S]; extra keys are open."""
        batch, heads, queries, _ = q.shape
        extra = (self.bias_k is not None) + self.add_zero_attn
        keys = k.shape[2] - extra
        merged = None
        if attn_mask is not None:
            legal = {2: (queries, keys), 3: (batch * heads, queries, keys)}.get(attn_mask.dim())
            if tuple(attn_mask.shape) != legal:
                raise ValueError(
                    f"attn_mask must be {(queries, keys)} or {(batch * heads, queries, keys)}, "
                    f"not {tuple(attn_mask.shape)}"
                )
            merged = _additive(attn_mask, "attn_mask", q.dtype)
            if merged.dim() == 3:
                merged = merged.view(batch, heads, queries, keys)
        if key_padding_mask is not None:
            if tuple(key_padding_mask.shape) != (batch, keys):
                raise ValueError(
                    f"key_padding_mask must be {(batch, keys)}, not {tuple(key_padding_mask.shape)}"
                )
            padding = _additive(key_padding_mask, "key_padding_mask", q.dtype).view(batch, 1, 1, keys)
            merged = padding if merged is None else merged + padding
        return F.pad(merged, (0, extra)) if merged is not None and extra else merged

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A checkpoint of the dense module: its projections are split; the layers inside compress them."""
        for kind in ("weight", "bias"):
            packed = state_dict.pop(f"{prefix}in_proj_{kind}", None)
            parts = [None] * 3 if packed is None else packed.chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                own = state_dict.pop(f"{prefix}{name}_{kind}", part)
                if own is not None:
                    state_dict[f"{prefix}{name}.{kind}"] = own
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    def like(
        cls, module: nn.MultiheadAttention, dtype: torch.dtype | None = None
    ) -> SparseMultiheadAttention:
        """The module that :meth:`from_dense` gives, on the meta device."""
        return cls(**_arguments(module), device="meta", dtype=dtype or module.out_proj.weight.dtype)

    @classmethod
    def from_dense(
        cls, module: nn.MultiheadAttention, dtype: torch.dtype | None = None
    ) -> SparseMultiheadAttention:
        """Compress a pruned ``nn.MultiheadAttention``; ``dtype`` casts it.

        Raises:
            TypeError: ``module`` is no ``nn.MultiheadAttention``.
            ValueError: a projection is not 2:4 along its input features; it is named, with row and columns.
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(f"from_dense needs an nn.MultiheadAttention, not {type(module).__name__}")
        weights = projections(module)
        sparse = cls.like(module, dtype)
        for name, (weight, bias) in weights.items():
            try:
                setattr(sparse, name, SparseLinear.from_weight(weight, bias, dtype))
            except NotSparse24Error as error:
                raise NotSparse24Error(f"{name}, {error.place}", weight.shape) from error
        for name in ("bias_k", "bias_v"):
            extra = getattr(module, name)
            if extra is not None:
                extra = nn.Parameter(extra.detach().clone().to(sparse.q_proj.values.dtype), False)
            setattr(sparse, name, extra)
        return sparse.train(module.training)

    @torch.inference_mode(False)
    def to_dense(self) -> nn.MultiheadAttention:
        """The equal ``nn.MultiheadAttention``, zeros included, with parameters that require gradients."""
        dense = nn.MultiheadAttention(**_arguments(self), device="meta")
        q, k, v, out = (m.to_dense() for m in (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        if dense._qkv_same_embed_dim:
            dense.in_proj_weight = nn.Parameter(torch.cat([q.weight, k.weight, v.weight]).detach())
        else:
            for name, projection in (("q_proj_weight", q), ("k_proj_weight", k), ("v_proj_weight", v)):
                setattr(dense, name, projection.weight)
        if dense.in_proj_bias is not None:
            dense.in_proj_bias = nn.Parameter(torch.cat([q.bias, k.bias, v.bias]).detach())
            dense.out_proj.bias = out.bias
        dense.out_proj.weight = out.weight
        for name in ("bias_k", "bias_v"):
            extra = getattr(self, name)
            setattr(dense, name, None if extra is None else nn.Parameter(extra.detach().clone()))
        return dense.train(self.training)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


def projections(module: nn.MultiheadAttention) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weight and bias of every projection of a dense attention, by the name it has in the sparse one."""
    if module._qkv_same_embed_dim:
        weights = list(module.in_proj_weight.chunk(3))
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases: list[Tensor | None] = [None] * 3
    if module.in_proj_bias is not None:
        biases = list(module.in_proj_bias.chunk(3))
    names = ("q_proj", "k_proj", "v_proj")
    inputs = {name: (w, b) for name, w, b in zip(names, weights, biases, strict=True)}
    return inputs | {"out_proj": (module.out_proj.weight, module.out_proj.bias)}


def _arguments(module: nn.MultiheadAttention | SparseMultiheadAttention) -> dict[str, Any]:
    """What both kinds of attention are built from, device and dtype apart."""
    shared = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
    return {name: getattr(module, name) for name in shared} | {
        "bias": module.out_proj.bias is not None,
        "add_bias_kv": module.bias_k is not None,
    }


def _additive(mask: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A bool mask (True: closed) as one that is added to the scores; a floating one as it is."""
    if mask.is_floating_point():
        return mask.to(dtype)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool or floating, not {mask.dtype}")
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention that also returns its weights [N, heads, L, S]."""
    scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
    weights = F.dropout((scores if mask is None else scores + mask).softmax(dim=-1), dropout)
    return weights @ v, weights
