"""ML-Decoder: one query per class looks at the tokens.

B samples, T tokens of each, P tokens of all, D features, W width, Q queries, C classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from extract.heads.packing import Buckets, unpacked


class CrossAttention(nn.Module):
    """Multi-head attention over tokens of queries that all samples share, in the cheaper of two equal forms.

    *Explicit*: project every token to a key and a value, then attend. *Absorbed*: the key projection moves to the
    queries, ``q . (W_k x) = (W_k^T q) . x``, and the value projection behind the average, ``sum a_t (W_v x_t) = W_v
    (sum a_t x_t)``, so that a token is only compared and averaged. A key's bias shifts all scores of a query alike,
    which the softmax does not see. Same weights, same function, dropout of attention weights included.

    Samples may differ in length: in both forms only the attention itself goes bucket by bucket.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"head.num_heads={num_heads} does not divide head.width={width}")
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, queries: Float[Tensor, "Q W"], tokens: Float[Tensor, "P W"], buckets: Buckets
    ) -> Float[Tensor, "B Q W"]:
        """What each query gathers from each sample's tokens."""
        num_samples = sum(samples for samples, _ in buckets)
        absorbs = self.absorbing_pays(len(queries), len(tokens), num_samples)
        q = self.query(queries).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        return self.out((self.absorbed if absorbs else self.explicit)(q, tokens, buckets))

    def absorbing_pays(self, num_queries: int, num_tokens: int, num_samples: int) -> bool:
        """Whether the absorbed form multiplies less; at the published sizes (26 queries, 8 heads) from 18 tokens on.

        Args:
            num_tokens: Of all samples; it is their mean that counts.
        """
        width = self.out.in_features
        explicit = 2 * num_tokens * width * (width + num_queries)
        return 2 * num_tokens * width * self.num_heads * num_queries + num_samples * num_queries * width**2 < explicit

    def explicit(
        self, q: Float[Tensor, "heads Q d"], tokens: Float[Tensor, "P W"], buckets: Buckets
    ) -> Float[Tensor, "B Q W"]:
        """Keys and values of every token, then attention."""
        dropout, gathered = self.dropout if self.training else 0.0, []
        for part in unpacked(self.key_value(tokens), buckets):
            k, v = part.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(q.expand(len(part), -1, -1, -1), k, v, dropout_p=dropout)
            gathered.append(heads.transpose(1, 2).flatten(2))
        return torch.cat(gathered)

    def absorbed(
        self, q: Float[Tensor, "heads Q d"], tokens: Float[Tensor, "P W"], buckets: Buckets
    ) -> Float[Tensor, "B Q W"]:
        """Tokens themselves are compared and averaged, ``heads * Q`` times; memory is linear in T, for Q is fixed."""
        to_key, to_value = self.key_value.weight.unflatten(0, (2, self.num_heads, -1))  # (heads, d, W) each
        value_bias = self.key_value.bias.unflatten(0, (2, self.num_heads, -1))[1]  # (heads, d)
        asked = (q * q.shape[-1] ** -0.5 @ to_key).flatten(0, 1)  # (heads*Q, W)
        averages, shares = [], []
        for part, scores in zip(unpacked(tokens, buckets), unpacked(F.linear(tokens, asked), buckets), strict=True):
            weights = F.dropout(scores.softmax(dim=1), self.dropout, self.training)  # (B, T, heads*Q)
            averages.append(weights.transpose(1, 2) @ part)
            shares.append(weights.sum(dim=1))  # 1 without dropout
        average, share = (torch.cat(parts).unflatten(1, (self.num_heads, -1)) for parts in (averages, shares))
        gathered = average @ to_value.transpose(1, 2) + share[..., None] * value_bias[:, None]  # (B, heads, Q, d)
        return gathered.transpose(1, 2).flatten(2)


class MLDecoder(nn.Module):
    """ML-Decoder classification head (Ridnik et al., arXiv 2111.12933), for any number of classes.

    Self-attention between queries is left out and the queries stay as drawn, as in the paper's fixed-query form; the
    published code fails on torch >= 2.1 and ignores its padding mask. Here there is nothing to mask: tokens are
    real ones only. With `num_queries` below C, a query serves ``ceil(C / Q)`` classes (the paper's group
    decoding).

    Args:
        dim: Features D of the tokens.
        width: Features W inside the decoder; the feed-forward layer has 2048 (768 -> 2048 as published) or 8/3 W.
        num_queries: Q, by default one per class up to 100.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        width: int = 768,
        num_heads: int = 8,
        dropout: float = 0.1,
        num_queries: int | None = None,
    ) -> None:
        super().__init__()
        num_queries = min(num_classes, num_queries or 100)
        per_query = -(-num_classes // num_queries)
        hidden = 8 * width // 3  # 2048 at the published width of 768
        self.num_classes = num_classes
        self.embed = nn.Linear(dim, width)
        self.queries = nn.Parameter(torch.randn(num_queries, width), requires_grad=False)
        self.norm_queries, self.norm_gathered, self.norm_out = (nn.LayerNorm(width) for _ in range(3))
        self.attention = CrossAttention(width, num_heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.class_weight = nn.Parameter(torch.empty(num_queries, width, per_query))
        self.class_bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_normal_(self.class_weight)

    def embed_tokens(self, tokens: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows W"]:
        """Tokens as the queries see them."""
        return F.relu(self.embed(tokens))

    def forward(self, tokens: Float[Tensor, "*rows D"], buckets: Buckets = ()) -> Float[Tensor, "B C"]:
        """Logits of each sample.

        Args:
            tokens: (B, T, D), or with `buckets` (P, D), samples of unequal length in a row (extract/heads/packing.py).
        """
        buckets = buckets or [(tokens.shape[0], tokens.shape[1])]
        queries = self.norm_queries(2 * self.queries)  # the residual of the self-attention left out: q + q
        gathered = self.attention(queries, self.embed_tokens(tokens.flatten(0, -2)), buckets)
        x = self.norm_gathered(queries + self.dropout(gathered))
        x = self.norm_out(x + self.dropout(self.feed_forward(x)))
        logits = torch.einsum("bqw,qwc->bqc", x, self.class_weight).flatten(1)
        return logits[:, : self.num_classes] + self.class_bias
