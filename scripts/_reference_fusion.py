"""What packing replaces: our fusion model's weights in torch's own layers, groups padded to four views and masked.

G groups, V views (always four), H W map size, D map features, E features inside, N tokens of a group, C classes.
"""

import _root  # noqa: F401
import torch
from torch import Tensor, nn

from extract.heads.ml_decoder import CrossAttention, MLDecoder
from extract.heads.packing import Buckets
from fusion.model import Block, FusionModel


class PaddedFusion(nn.Module):
    """The same function as `FusionModel` for groups of up to four views, as padding and masks compute it.

    Only real views are projected; every later layer computes all four. In training it also drops attention weights,
    as `nn.TransformerEncoderLayer` does.
    """

    def __init__(self, ours: FusionModel) -> None:
        super().__init__()
        self.ours = ours
        self.layers = nn.ModuleList(encoder_layer(block) for block in ours.blocks)
        self.attention = cross_attention(ours.head.attention)

    def forward(self, maps: Tensor, view_types: Tensor, slots: Tensor, buckets: Buckets) -> Tensor:
        """Logits (G, C) of maps in a row, G * V of them in one bucket; an absent view has slot -1."""
        maps, view_types, slots = (part.unflatten(0, buckets[0]) for part in (maps, view_types, slots))
        ours, absent = self.ours, slots < 0
        of_view = ours.slot_embedding[slots] + ours.view_embedding[view_types]  # (G, V, E)
        real = ours.project(ours.norm_in(maps[~absent])) + ours.position_code
        x = torch.zeros(*slots.shape, *real.shape[1:], dtype=real.dtype)
        x[~absent] = real + of_view[~absent][:, None, None]
        hidden = absent.repeat_interleave(x.shape[2] * x.shape[3], dim=1)  # (G, N)
        x = x.flatten(1, 3)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        return self.decode(ours.head, ours.norm_out(x), hidden)

    def decode(self, head: MLDecoder, x: Tensor, hidden: Tensor) -> Tensor:
        """ML-Decoder with keys and values of every token, absent ones masked."""
        tokens = head.embed_tokens(x)
        queries = head.norm_queries(2 * head.queries).expand(len(x), -1, -1)
        gathered, _ = self.attention(queries, tokens, tokens, key_padding_mask=hidden, need_weights=False)
        y = head.norm_gathered(queries + head.dropout(gathered))
        y = head.norm_out(y + head.dropout(head.feed_forward(y)))
        return torch.einsum("gqe,qec->gqc", y, head.class_weight).flatten(1)[:, : head.num_classes] + head.class_bias


def encoder_layer(block: Block) -> nn.TransformerEncoderLayer:
    """Torch's layer with a block's weights."""
    width, dropout = block.out.in_features, block.drop.p
    layer = nn.TransformerEncoderLayer(
        width,
        block.num_heads,
        block.feed_forward[0].out_features,
        dropout,
        nn.functional.gelu,
        batch_first=True,
        norm_first=True,
    )
    layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias = (
        block.query_key_value.weight,
        block.query_key_value.bias,
    )
    layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias = block.out.weight, block.out.bias
    layer.linear1, layer.linear2 = block.feed_forward[0], block.feed_forward[3]
    layer.norm1, layer.norm2 = block.norm_attention, block.norm_feed_forward
    return layer


def cross_attention(ours: CrossAttention) -> nn.MultiheadAttention:
    """Torch's attention with the weights of ours; they are stored as one matrix there, so copied."""
    theirs = nn.MultiheadAttention(ours.out.in_features, ours.num_heads, ours.dropout, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.weight, theirs.out_proj.bias = ours.out.weight, ours.out.bias
    return theirs
