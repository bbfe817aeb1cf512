"""The two forms of ML-Decoder's attention are one function, and the cheaper one is taken."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from extract.heads.ml_decoder import CrossAttention, MLDecoder

LENGTHS, W, Q, HEADS = [7, 7, 3, 4, 4], 12, 5, 2
BUCKETS = [(2, 7), (1, 3), (2, 4)]
B, P = len(LENGTHS), sum(LENGTHS)  # samples and their tokens, packed


@pytest.fixture
def attention():
    torch.manual_seed(0)
    attention = CrossAttention(W, HEADS, dropout=0.4).eval()
    torch.nn.init.normal_(attention.key_value.bias)  # not small: it must not be forgotten
    return attention


def outcome(attention, form, queries, tokens):
    """Output and all gradients of one of the forms."""
    queries, tokens = (x.clone().requires_grad_() for x in (queries, tokens))
    attention.zero_grad()
    out = attention.out(form(attention.query(queries).unflatten(-1, (HEADS, -1)).transpose(0, 1), tokens, BUCKETS))
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return [out.detach(), queries.grad, tokens.grad, *(p.grad.clone() for p in attention.parameters())]


def slow_loop(attention, q, tokens, kept=None):
    """Sample by sample, query by query; `kept`: dropout's factor of each weight, (P, HEADS * Q)."""
    kept = torch.ones(P, HEADS * Q, dtype=tokens.dtype) if kept is None else kept
    d, rows = W // HEADS, []
    for sample, factors in zip(tokens.split(LENGTHS), kept.split(LENGTHS), strict=True):
        k, v = attention.key_value(sample).split(W, dim=-1)
        for query in range(Q):
            parts = []
            for head in range(HEADS):
                part = slice(head * d, head * d + d)
                weights = torch.softmax(k[:, part] @ q[head, query] / d**0.5, dim=0)
                parts.append((weights * factors[:, head * Q + query]) @ v[:, part])
            rows.append(torch.cat(parts))
    return torch.stack(rows).unflatten(0, (B, Q))


@pytest.mark.parametrize("form", ["explicit", "absorbed"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_each_form_equals_a_slow_loop_forward_and_backward(attention, form, dtype, atol):
    attention = attention.to(dtype)
    queries, tokens = torch.randn(Q, W, dtype=dtype), torch.randn(P, W, dtype=dtype)
    ours = outcome(attention, getattr(attention, form), queries, tokens)
    slow = outcome(attention, lambda q, x, _: slow_loop(attention, q, x), queries, tokens)
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1, float(b.abs().max())))


def test_dropout_falls_on_the_weights_in_the_absorbed_form_too(attention, monkeypatch):
    kept = (torch.rand(P, HEADS * Q, dtype=torch.float64) > 0.4).double() / 0.6
    factors = (part.unflatten(0, bucket) for part, bucket in zip(kept.split([14, 3, 8]), BUCKETS, strict=True))
    monkeypatch.setattr(F, "dropout", lambda weights, p, training: weights * next(factors) if training else weights)
    attention = attention.double().train()
    queries, tokens = torch.randn(Q, W, dtype=torch.float64), torch.randn(P, W, dtype=torch.float64)
    ours = outcome(attention, attention.absorbed, queries, tokens)
    slow = outcome(attention, lambda q, x, _: slow_loop(attention, q, x, kept), queries, tokens)
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_dropout_is_drawn_anew_in_training_and_absent_after(attention):
    query, tokens = torch.randn(1, W), torch.randn(P, W)
    assert attention.absorbing_pays(1, P, B)
    assert torch.equal(attention(query, tokens, BUCKETS), attention(query, tokens, BUCKETS))
    attention.train()
    assert not torch.equal(attention(query, tokens, BUCKETS), attention(query, tokens, BUCKETS))


@pytest.mark.parametrize(
    ("width", "heads", "num_queries", "num_tokens", "pays"),
    [
        (768, 8, 26, 256, True),
        (768, 8, 26, 18, True),
        (768, 8, 26, 17, False),
        (128, 4, 26, 64, True),
        (768, 8, 100, 256, False),
        (48, 4, 26, 64, False),
    ],
)
def test_the_form_with_fewer_multiplications_is_taken(width, heads, num_queries, num_tokens, pays):
    with torch.device("meta"):
        attention = CrossAttention(width, heads, dropout=0.0).eval()
        q, tokens = torch.empty(heads, num_queries, width // heads), torch.empty(40 * num_tokens, width)
    counts = {}
    for name in ("explicit", "absorbed"):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            getattr(attention, name)(q, tokens, [(25, num_tokens), (15, num_tokens)])
        counts[name] = counter.get_total_flops()
    counts["absorbed"] -= 2 * num_queries * width**2  # the queries' part, once per forward pass
    found = attention.absorbing_pays(num_queries, 40 * num_tokens, 40)
    assert found == (counts["absorbed"] < counts["explicit"]) == pays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_absorbed_form_is_as_precise_under_autocast(attention, dtype):
    tokens, buckets = 3 * torch.randn(600, W), [(1, 100), (2, 250)]
    q = torch.randn(HEADS, Q, W // HEADS)
    exact, errors = attention.explicit(q, tokens, buckets), {}
    for name in ("explicit", "absorbed"):
        with torch.autocast("cpu", dtype):
            rounded = getattr(attention, name)(q, tokens, buckets).float()
            errors[name] = float((rounded - exact).square().mean().sqrt().detach())
    assert errors["absorbed"] < 2 * errors["explicit"]


def test_the_decoder_takes_the_absorbed_form_at_the_published_sizes(monkeypatch):
    decoder, taken = MLDecoder(24, 26).eval(), []
    absorbed = decoder.attention.absorbed
    monkeypatch.setattr(decoder.attention, "absorbed", lambda q, *rest: taken.append(rest[1]) or absorbed(q, *rest))
    assert decoder(torch.randn(2, 64, 24)).shape == (2, 26)
    assert taken == [[(2, 64)]]


def test_packed_samples_of_unequal_length_get_the_logits_of_each_alone():
    decoder = MLDecoder(24, 7, width=W, num_heads=HEADS).eval()
    tokens = torch.randn(P, 24)
    alone = torch.cat([decoder(sample[None]) for sample in tokens.split(LENGTHS)])
    torch.testing.assert_close(decoder(tokens, BUCKETS), alone, rtol=0, atol=1e-6)
