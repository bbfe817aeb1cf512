"""ML-Decoder and the linear head: the published sizes, and the values of a slow reference with loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from extract.heads import HeadConfig, build_head
from extract.heads.linear import LinearHead
from extract.heads.ml_decoder import MLDecoder

B, T, D, W, HEADS, C = 2, 7, 10, 24, 3, 5  # all different


@pytest.mark.parametrize(
    ("dim", "num_classes", "parameters"),
    [
        (768, 14, 6_127_630),
        (768, 26, 6_146_074),
        (768, 30, 6_152_222),
        (768, 36, 6_161_444),
        (768, 40, 6_167_592),
        (1024, 30, 6_348_830),
    ],
)
def test_the_published_head_has_the_published_number_of_parameters(dim, num_classes, parameters):
    head = MLDecoder(dim, num_classes)
    assert sum(p.numel() for p in head.parameters()) == parameters
    assert sum(p.numel() for p in head.parameters() if not p.requires_grad) == 768 * num_classes  # the queries


def reference(head: MLDecoder, tokens: torch.Tensor) -> torch.Tensor:
    """One sample and one query at a time, attention by torch.nn.MultiheadAttention, classes read out in a loop."""
    width = head.queries.shape[1]
    attention = nn.MultiheadAttention(width, head.attention.num_heads).to(tokens.dtype).eval()
    key_value, query, out = head.attention.key_value, head.attention.query, head.attention.out
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([query.weight, key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([query.bias, key_value.bias]))
        attention.out_proj.weight.copy_(out.weight)
        attention.out_proj.bias.copy_(out.bias)

    def norm(layer, x):
        return F.layer_norm(x, (width,), layer.weight, layer.bias)

    per_query = head.class_weight.shape[2]
    logits = torch.full((len(tokens), head.num_classes), float("nan"), dtype=tokens.dtype)
    for b, sample in enumerate(tokens):
        memory = torch.stack([F.relu(head.embed.weight @ token + head.embed.bias) for token in sample])
        for q, start in enumerate(head.queries):
            target = norm(head.norm_queries, start + start)
            gathered = attention(target[None], memory, memory)[0][0]
            x = norm(head.norm_gathered, target + gathered)
            first, last = head.feed_forward[0], head.feed_forward[3]
            x = norm(head.norm_out, x + last(F.relu(first(x))))
            for place in range(per_query):
                c = q * per_query + place
                if c < head.num_classes:
                    logits[b, c] = x @ head.class_weight[q, :, place] + head.class_bias[c]
    return logits


@pytest.mark.parametrize("num_queries", [None, 1, 2, 3, 5, 50])
def test_ml_decoder_equals_the_slow_reference(num_queries):
    torch.manual_seed(0)
    head = MLDecoder(D, C, width=W, num_heads=HEADS, num_queries=num_queries).double().eval()
    for p in head.parameters():
        nn.init.normal_(p, std=0.5)  # norms and biases too: at 1 and 0 a mistake would not show
    tokens = torch.randn(B, T, D, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(head(tokens), reference(head, tokens), rtol=0, atol=1e-6)
        torch.testing.assert_close(head.float()(tokens.float()).double(), head.double()(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("num_classes", "num_queries", "wanted"), [(5, None, 5), (130, None, 100), (5, 3, 3), (5, 9, 5)]
)
def test_there_is_one_query_per_class_up_to_a_hundred(num_classes, num_queries, wanted):
    head = MLDecoder(D, num_classes, width=W, num_heads=HEADS, num_queries=num_queries).eval()
    assert len(head.queries) == wanted
    assert head(torch.zeros(B, T, D)).shape == (B, num_classes)


def test_every_trained_parameter_gets_a_gradient_and_the_queries_stay():
    torch.manual_seed(0)
    head = MLDecoder(D, C, width=W, num_heads=HEADS, num_queries=3)
    before, optimizer = head.queries.clone(), torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1)
    head(torch.randn(B, T, D)).square().sum().backward()
    for name, p in head.named_parameters():
        assert name == "queries" or (p.grad is not None and p.grad.abs().max() > 0), name
    optimizer.step()
    assert torch.equal(head.queries, before)
    assert "queries" in head.state_dict()


def test_tokens_are_a_set_and_every_one_of_them_counts():
    torch.manual_seed(0)
    head = MLDecoder(D, C, width=W, num_heads=HEADS).eval()
    tokens = torch.randn(B, T, D)
    shuffled = tokens[:, torch.randperm(T)]
    torch.testing.assert_close(head(tokens), head(shuffled), rtol=0, atol=1e-5)
    for t in range(T):
        changed = tokens.clone()
        changed[1, t] += torch.randn(D)
        change = (head(changed) - head(tokens)).abs()
        assert change[1].min() > 0
        assert change[0].max() < 1e-6


@pytest.mark.parametrize("kind", ["ml_decoder", "linear"])
def test_dropout_acts_in_training_only(kind):
    head = build_head(HeadConfig(kind=kind, width=W, num_heads=HEADS, dropout=0.5), D, C)
    tokens = torch.randn(B, T, D)
    assert not torch.equal(head(tokens), head(tokens))
    head.eval()
    assert torch.equal(head(tokens), head(tokens))


def test_the_linear_head_averages_tokens():
    head = LinearHead(D, C).eval()
    tokens = torch.randn(B, T, D)
    expected = (
        torch.stack([tokens[:, t] for t in range(T)]).sum(0) / T @ head.classifier.weight.T + head.classifier.bias
    )
    torch.testing.assert_close(head(tokens), expected)


@pytest.mark.parametrize(
    "wrong", [{"width": 10, "num_heads": 3}, {"num_heads": 0}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_a_head_that_cannot_be_built_is_refused_by_its_configuration(wrong):
    with pytest.raises(ValueError, match=r"head\."):
        HeadConfig(**wrong)
