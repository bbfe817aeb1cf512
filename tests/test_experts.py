"""Experts for views: identity at the start, a mixture as the equation says, no view hears another."""

import pytest
import torch
from torch.nn import functional as F

from data.views import VIEWS
from extract.heads import HeadConfig
from fusion.experts import ExpertAdapter
from fusion.model import FusionModel, ModelConfig

G, V, T, E, K, R = 2, 3, 5, 8, 4, 6


@pytest.fixture
def x():
    return torch.randn(G, V, T, E, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def types():
    return torch.tensor([[0, 2, 4], [1, 1, 3]])


@pytest.fixture
def adapter():
    torch.manual_seed(1)
    module = ExpertAdapter(E, K, R)
    torch.nn.init.normal_(module.up.weight, std=0.5)
    return module


def test_a_new_adapter_hands_its_input_through_to_the_bit(x, types):
    assert torch.equal(ExpertAdapter(E, K)(x, types), x)


def test_the_adapter_equals_a_slow_loop_over_experts(adapter, x, types):
    found = adapter(x, types)
    for g in range(G):
        for v in range(V):
            normed = F.layer_norm(x[g, v], (E,), adapter.norm.weight, adapter.norm.bias)
            seen = normed.mean(0) + adapter.type_embedding[types[g, v]]
            share = torch.softmax(adapter.router.weight @ seen + adapter.router.bias, 0)
            wanted = x[g, v].clone()
            for k in range(K):
                rows = slice(k * R, (k + 1) * R)
                inside = F.gelu(normed @ adapter.down.weight[rows].T + adapter.down.bias[rows])
                wanted = wanted + share[k] * inside @ adapter.up.weight[:, rows].T
            torch.testing.assert_close(found[g, v], wanted, rtol=0, atol=1e-5)


def test_a_views_output_hears_no_other_view_and_follows_it_to_any_place(adapter, x, types):
    found = adapter(x, types)
    noisy = x.clone()
    noisy[0, 1] += torch.randn(T, E)
    changed = adapter(noisy, types)
    others = [(g, v) for g in range(G) for v in range(V) if (g, v) != (0, 1)]
    assert all(torch.equal(changed[place], found[place]) for place in others)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(adapter(x[:, order], types[:, order]), found[:, order], rtol=0, atol=1e-6)


def test_routing_hears_type_and_content(adapter, x, types):
    with torch.no_grad():
        adapter.type_embedding *= 30
        shares = adapter.shares(adapter.norm(x), types)
        torch.testing.assert_close(shares.sum(-1), torch.ones(G, V))
        by_type = [adapter.shares(adapter.norm(x), torch.full_like(types, t)) for t in range(len(VIEWS))]
        assert all((by_type[0] - other).abs().max() > 1e-2 for other in by_type[1:])
        by_content = adapter.shares(adapter.norm(x + torch.randn(G, V, 1, E)), types)
    assert (by_content - shares).abs().max() > 1e-2


def test_every_weight_learns(adapter, x, types):
    adapter(x, types).square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_new_adapter_starts_to_learn_at_its_last_weights(x, types):
    module = ExpertAdapter(E, K, R)
    module(x, types).square().sum().backward()
    assert module.up.weight.grad is not None
    assert module.up.weight.grad.abs().max() > 0


def test_no_expert_is_refused():
    with pytest.raises(ValueError, match=r"model\.experts must be at least 1"):
        ExpertAdapter(E, 0)


def fusion_model(experts):
    torch.manual_seed(0)
    config = ModelConfig(width=E, num_heads=2, experts=experts, head=HeadConfig(width=10, num_heads=2))
    return FusionModel(config, (5, 3, 7), 6).eval()


def test_the_fusion_model_starts_as_if_it_had_none_and_then_uses_them(types):
    maps, slots = torch.randn(G, V, 5, 3, 7), torch.arange(V).expand(G, V)
    plain, mixed = fusion_model(0), fusion_model(K)
    assert set(mixed.state_dict()) - set(plain.state_dict()) == {f"experts.{n}" for n in mixed.experts.state_dict()}
    assert torch.equal(mixed(maps, types, slots), plain(maps, types, slots))
    torch.nn.init.normal_(mixed.experts.up.weight, std=0.5)
    together = mixed(maps, types, slots)
    assert (together - plain(maps, types, slots)).abs().max() > 1e-2
    alone = torch.cat([mixed(maps[g : g + 1], types[g : g + 1], slots[g : g + 1]) for g in range(G)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
