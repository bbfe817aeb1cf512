"""The heads: their published sizes, and the values of slow references with loops over samples, positions, classes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from extract.heads import HeadConfig, build_head
from extract.heads.csra import CSRA, TEMPERATURES, MultiHeadCSRA
from extract.heads.linear import LinearHead
from extract.heads.ml_decoder import MLDecoder
from extract.heads.mlp import MLPHead
from fusion.model import ModelConfig

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


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_other_published_heads_have_the_published_numbers_of_parameters():
    assert count(CSRA(1024, 30)) == 61_470
    assert count(CSRA(1024, 30, batch_norm=True)) == 61_470 + 2_048
    assert count(CSRA(1024, 30).attention) == 30_720
    assert [count(MultiHeadCSRA(1024, 30, n)) for n in (1, 2, 4, 6, 8)] == [30_720, 61_440, 122_880, 184_320, 245_760]
    layers = 2 * 1024 + (1024 * 512 + 512) + 2 * 512 + (512 * 14 + 14)
    assert count(MLPHead(1024, 14)) == layers == 535_054


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
    ("num_classes", "num_queries", "wanted"), [(5, None, 5), (130, None, 100), (5, 3, 3), (5, 9, 5), (26, 7, 7)]
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


def away_from_the_start(head: nn.Module) -> nn.Module:
    """In double precision, with weights, norms and statistics at values where a mistake would show."""
    head = head.double().eval()
    with torch.no_grad():
        for name, tensor in head.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor))
    return head


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("lam", [0.1, 0.7])
def test_csra_of_the_2026_winner_equals_a_slow_loop_over_its_equation(batch_norm, lam):
    torch.manual_seed(0)
    head = away_from_the_start(CSRA(D, C, lam, batch_norm))
    tokens = torch.randn(B, T, D, dtype=torch.float64)
    weight, bias, attention = head.classifier.weight, head.classifier.bias, head.attention.weight
    with torch.no_grad():
        found = head(tokens)
        for b in range(B):
            x = tokens[b].clone()
            if batch_norm:
                for d in range(D):
                    scale = head.norm.weight[d] / (head.norm.running_var[d] + 1e-5).sqrt()
                    x[:, d] = (x[:, d] - head.norm.running_mean[d]) * scale + head.norm.bias[d]
            for c in range(C):
                total = sum(torch.exp(attention[c] @ x[n]) for n in range(T))
                share = [torch.exp(attention[c] @ x[n]) / total for n in range(T)]
                pooled = sum(x[n] for n in range(T)) / T
                attended = sum(share[n] * x[n] for n in range(T))
                wanted = weight[c] @ pooled + bias[c] + lam * (weight[c] @ attended + bias[c])
                assert abs(found[b, c] - wanted) < 1e-6


def test_in_single_precision_csra_agrees_with_the_published_tensor_form():
    torch.manual_seed(0)
    head, tokens = CSRA(D, C).eval(), torch.randn(B, T, D)
    maps = tokens.transpose(1, 2)  # (B, D, T), channels first as published
    attention = F.conv1d(maps, head.attention.weight[:, :, None]).softmax(dim=2)
    attended = torch.bmm(attention, tokens)  # (B, C, D)
    gathered = (attended * head.classifier.weight).sum(dim=2) + head.classifier.bias
    torch.testing.assert_close(head(tokens), head.classifier(maps.mean(dim=2)) + 0.1 * gathered, rtol=0, atol=1e-6)


def test_the_bias_of_csra_enters_1_plus_lambda_times():
    torch.manual_seed(0)
    head, tokens = CSRA(D, C, lam=0.3).double(), torch.randn(B, T, D, dtype=torch.float64)
    with torch.no_grad():
        before = head(tokens)
        head.classifier.bias += torch.arange(C)
        torch.testing.assert_close(head(tokens) - before, (1.3 * torch.arange(C)).double().expand(B, C))


@pytest.mark.parametrize("num_heads", [1, 2, 4, 6, 8])
def test_the_original_csra_equals_a_slow_loop_and_temperature_99_is_the_maximum(num_heads):
    torch.manual_seed(0)
    head = away_from_the_start(MultiHeadCSRA(D, C, num_heads, lam=0.4))
    tokens = torch.randn(B, T, D, dtype=torch.float64)
    temperatures = {1: [1], 2: [1, 99], 4: [1, 2, 4, 99], 6: [1, 2, 3, 4, 5, 99], 8: [1, 2, 3, 4, 5, 6, 7, 99]}
    with torch.no_grad():
        found = head(tokens)
        for b in range(B):
            for c in range(C):
                wanted = 0.0
                for h, temperature in enumerate(temperatures[num_heads]):
                    m = head.weight[h, c]
                    s = [float(m @ x) / float(m @ m) ** 0.5 for x in tokens[b]]
                    total = sum(torch.exp(torch.tensor(temperature * v)).item() for v in s)
                    soft = sum(torch.exp(torch.tensor(temperature * v)).item() / total * v for v in s)
                    wanted += sum(s) / T + 0.4 * (max(s) if temperature == 99 else soft)
                assert abs(float(found[b, c]) - wanted) < 1e-6


def test_the_original_csra_does_not_see_the_length_of_its_weights():
    head = MultiHeadCSRA(D, C, 4)
    tokens = torch.randn(B, T, D)
    before = head(tokens)
    with torch.no_grad():
        head.weight *= 7
    torch.testing.assert_close(head(tokens), before)


WITH_MAPS = {
    "csra": {},
    "csra with BatchNorm": {"kind": "csra", "batch_norm": True},
    **{f"csra_multihead {n}": {"kind": "csra_multihead", "num_heads": n} for n in TEMPERATURES},
    "linear": {},
}


@pytest.mark.parametrize("name", WITH_MAPS)
def test_the_mean_of_a_class_map_over_positions_is_the_logit(name):
    torch.manual_seed(0)
    config = HeadConfig(**({"kind": name, "lam": 0.25} | WITH_MAPS[name]))
    head, tokens = away_from_the_start(build_head(config, D, C)), torch.randn(B, T, D, dtype=torch.float64)
    maps = head.class_maps(tokens)
    assert maps.shape == (B, C, T)
    torch.testing.assert_close(maps.mean(dim=2), head(tokens), rtol=0, atol=1e-9)
    order = torch.randperm(T)  # a map follows its positions
    torch.testing.assert_close(head.class_maps(tokens[:, order]), maps[:, :, order])


def test_a_class_map_is_largest_where_the_class_is():
    head = CSRA(D, C, lam=0.5)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.eye(C, D))
        head.attention.weight.copy_(torch.eye(C, D))
    tokens = torch.zeros(1, T, D)
    for c in range(C):
        tokens[0, (3 * c) % T, c] = 4.0
    assert head.class_maps(tokens)[0].argmax(dim=1).tolist() == [(3 * c) % T for c in range(C)]


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "ml_decoder", "width": W, "num_heads": HEADS},
        {"kind": "csra", "batch_norm": True},
        {"kind": "csra_multihead", "num_heads": 6},
        {"kind": "mlp", "width": 8},
        {"kind": "linear"},
    ],
)
def test_no_head_minds_the_layout_of_a_map_in_memory_or_the_order_of_its_positions(config):
    torch.manual_seed(0)
    head = away_from_the_start(build_head(HeadConfig(**config), D, C))
    first = torch.randn(B, D, 2, 3, dtype=torch.float64)  # channels first, as a convolution returns it
    last = first.contiguous(memory_format=torch.channels_last)
    assert first.stride() != last.stride()
    as_tokens = [maps.permute(0, 2, 3, 1).flatten(1, 2) for maps in (first, last)]
    with torch.no_grad():
        logits = head(as_tokens[0])
        torch.testing.assert_close(head(as_tokens[1]), logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(head(as_tokens[0][:, torch.randperm(6)]), logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(head(as_tokens[0][:1]), logits[:1], rtol=0, atol=1e-10)


def test_the_mlp_head_equals_a_slow_loop_in_evaluation_and_takes_a_single_image():
    torch.manual_seed(0)
    head = away_from_the_start(MLPHead(D, C, width=8))
    tokens = torch.randn(B, T, D, dtype=torch.float64)

    def norm(layer, x):
        return [
            (x[i] - layer.running_mean[i]) / (layer.running_var[i] + 1e-5) ** 0.5 * layer.weight[i] + layer.bias[i]
            for i in range(len(x))
        ]

    first, hidden, second, last = (head.layers[i] for i in (0, 2, 4, 6))
    with torch.no_grad():
        for b in range(B):
            x = torch.stack(norm(first, sum(tokens[b]) / T))
            x = torch.stack(norm(second, torch.relu(hidden.weight @ x + hidden.bias)))
            torch.testing.assert_close(head(tokens[b : b + 1])[0], last.weight @ x + last.bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "config", [{"kind": "mlp", "width": 8}, *({"kind": kind, "batch_norm": True} for kind in ("csra", "linear"))]
)
def test_batch_norm_trains_on_several_rows_and_passes_a_single_one_by_its_statistics(config):
    torch.manual_seed(0)
    head = build_head(HeadConfig(**config), D, C).train()
    head(torch.randn(B, T, D))
    before = {name: value.clone() for name, value in head.named_buffers()}
    assert any(value.any() for name, value in before.items() if name.endswith("running_mean"))
    head(torch.randn(1, 1, D)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in head.named_buffers())
    assert all(p.grad is not None for p in head.parameters())


def test_the_batch_norm_of_csra_is_that_of_a_map():
    torch.manual_seed(0)
    head, maps = CSRA(D, C, batch_norm=True).train(), torch.randn(B, D, 2, 3)
    published = nn.BatchNorm2d(D).train()
    published.load_state_dict(head.norm.state_dict())
    tokens = published(maps).flatten(2).transpose(1, 2)
    wanted = head.classifier(tokens), head.attention(tokens).softmax(dim=1)
    torch.testing.assert_close(head.attend(maps.flatten(2).transpose(1, 2)), wanted)
    torch.testing.assert_close(head.norm.running_var, published.running_var)


@pytest.mark.parametrize("kind", ["ml_decoder", "mlp", "linear"])
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
    ("wrong", "named"),
    [
        ({"width": 10, "num_heads": 3}, r"head\.num_heads must divide head\.width, got 3 and 10"),
        ({"num_heads": 0}, r"head\.num_heads"),
        ({"kind": "csra_multihead", "num_heads": 3}, r"head\.num_heads must be one of \[1, 2, 4, 6, 8\]"),
        ({"dropout": 1.0}, r"head\.dropout"),
        ({"dropout": -0.1}, r"head\.dropout"),
        ({"lam": -1.0}, r"head\.lam"),
        ({"kind": "mlp", "batch_norm": True}, r"head\.batch_norm belongs to head\.kind csra or linear"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused_by_its_configuration(wrong, named):
    with pytest.raises(ValueError, match=named):
        HeadConfig(**wrong)


@pytest.mark.parametrize("head", [{"kind": "mlp"}, {"kind": "csra", "batch_norm": True}])
def test_fusion_refuses_heads_that_mix_groups(head):
    with pytest.raises(ValueError, match=r"model\.head: .* depend on the other groups"):
        ModelConfig(head=HeadConfig(**head))
    ModelConfig(head=HeadConfig(kind="csra"))
