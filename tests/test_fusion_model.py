"""The promises of the fusion model, each with a test that fails when it is broken."""

import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch.utils.flop_counter import FlopCounterMode

from data.views import VIEWS
from extract.heads import HeadConfig
from extract.losses import ClassStatistics, LossConfig, multilabel_loss
from fusion.model import FusionModel, ModelConfig, mean_pooled, position_code
from fusion.passes import Views, make_passes
from tests.launch import ROOT

H, W, D, C, S = 3, 2, 5, 7, 6  # all different, so that swapped axes cannot pass by luck
CONFIG = ModelConfig(width=24, depth=2, num_heads=3, num_slots=S, head=HeadConfig(width=18, num_heads=2))
FRONTAL, LATERAL = VIEWS.index("PA"), VIEWS.index("LATERAL")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = FusionModel(CONFIG, (H, W, D), C).eval()
    torch.nn.init.normal_(model.slot_embedding)
    torch.nn.init.normal_(model.view_embedding)
    return model


def make_groups(num_groups, num_views, seed=1):
    rng = torch.Generator().manual_seed(seed)
    maps = torch.randn(num_groups, num_views, H, W, D, generator=rng)
    types = torch.randint(len(VIEWS), (num_groups, num_views), generator=rng)
    slots = torch.stack([torch.randperm(S, generator=rng)[:num_views] for _ in range(num_groups)])
    return maps, types, slots


def test_a_groups_logits_do_not_depend_on_who_shares_the_batch(model):
    maps, types, slots = make_groups(11, 4)
    with torch.inference_mode():
        together = model(maps, types, slots)
        alone = torch.cat([model(maps[g : g + 1], types[g : g + 1], slots[g : g + 1]) for g in range(11)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * max(1, float(alone.abs().max())))
    maps[1:] += torch.randn_like(maps[1:])  # other neighbours
    with torch.inference_mode():
        changed = model(maps, types, slots)
    torch.testing.assert_close(changed[0], together[0], rtol=0, atol=1e-6)


def test_no_gradient_crosses_from_one_group_to_another(model):
    maps, types, slots = make_groups(4, 3)
    maps.requires_grad_()
    model(maps, types, slots)[1].square().sum().backward()
    reach = maps.grad.abs().amax(dim=(1, 2, 3, 4))
    assert reach[1] > 0
    assert (reach[[0, 2, 3]] == 0).all()


def test_every_view_hears_every_other_view_of_its_group(model):
    maps, types, slots = make_groups(2, 4)
    heard = []
    hook = model.norm_out.register_forward_hook(lambda _, __, tokens: heard.append(tokens))
    model(maps, types, slots)
    for view in range(4):
        changed = maps.clone()
        changed[0, view] += torch.randn(H, W, D)  # not a constant: LayerNorm would not see it
        model(changed, types, slots)
        moved = (heard[-1] - heard[0]).abs().amax(dim=1).unflatten(0, (2, -1))  # (G, V*T)
        assert (moved[0] > 1e-4).all(), f"a token does not hear view {view}"
        assert (moved[1] == 0).all()
    hook.remove()


def test_the_position_code_varies_over_rows_and_over_columns():
    code = position_code(5, 4, 24)
    flat = code.flatten(0, 1)
    distances = torch.cdist(flat, flat) + 9 * torch.eye(20)
    assert distances.min() > 0.1, "two positions share a code"
    assert (code[0] - code[1]).abs().max() > 0.1
    assert (code[:, 0] - code[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_logits_change_when_a_map_is_shuffled_along_one_axis(model, axis):
    maps, types, slots = make_groups(3, 2)
    shuffled = maps.flip(2 if axis == "rows" else 3)
    assert (model(maps, types, slots) - model(shuffled, types, slots)).abs().max() > 1e-3


@pytest.mark.parametrize("num_views", [1, 2, 5, 64])
def test_any_number_of_views_is_taken_and_none_is_dropped(model, num_views):
    maps = torch.randn(1, num_views, H, W, D, requires_grad=True)
    types = torch.full((1, num_views), FRONTAL)
    slots = (torch.arange(num_views) % S)[None]
    model(maps, types, slots).square().sum().backward()
    assert (maps.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_the_same_input_gives_the_same_output(model):
    maps, types, slots = make_groups(3, 2)
    assert torch.equal(model(maps, types, slots), model(maps, types, slots))


def test_views_can_be_listed_in_any_order_once_slots_and_types_go_along(model):
    maps, types, slots = make_groups(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(maps[:, order], types[:, order], slots[:, order])
    torch.testing.assert_close(shuffled, model(maps, types, slots), rtol=0, atol=1e-5)


@pytest.mark.parametrize("what", ["type", "slot"])
def test_view_type_and_slot_are_inputs(model, what):
    maps, types, slots = make_groups(3, 2)
    types[:] = FRONTAL
    other_types, other_slots = types.clone(), slots.clone()
    if what == "type":
        other_types[:, 0] = LATERAL
    else:
        other_slots = other_slots.flip(1)
    assert (model(maps, types, slots) - model(maps, other_types, other_slots)).abs().min(dim=1).values.max() > 1e-4


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("head", ["ml_decoder", "linear"])
def test_every_trainable_parameter_gets_a_gradient(stride, head):
    torch.manual_seed(0)
    config = ModelConfig(
        width=24, num_heads=3, num_slots=S, token_stride=stride, head=HeadConfig(kind=head, width=18, num_heads=2)
    )
    model = FusionModel(config, (H, W, D), C)
    maps, _, _ = make_groups(S, len(VIEWS))
    types = torch.arange(len(VIEWS)).expand(S, -1)
    slots = torch.stack([torch.arange(S).roll(g)[: len(VIEWS)] for g in range(S)])
    model(maps, types, slots).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == (
        ["head.queries"] if head == "ml_decoder" else []
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_finite_in_every_precision(model, dtype):
    maps, types, slots = make_groups(4, 3)
    targets = torch.randint(2, (4, C)).float()
    targets[0, 0] = float("nan")
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(30 * maps, types, slots)
    statistics = ClassStatistics(torch.full((C,), 10.0), torch.full((C,), 100.0))
    loss = multilabel_loss(logits, targets, statistics, LossConfig())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_attention_equals_a_slow_loop_over_heads_and_tokens(model):
    lengths = [5, 5, 3]
    x = torch.randn(sum(lengths), 24)
    block = model.blocks[0]
    slow = []
    for group in x.split(lengths):
        q, k, v = block.query_key_value(group).split(24, dim=-1)
        slow.append(torch.zeros(len(group), 24))
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            for n in range(len(group)):
                weights = torch.softmax(k[:, part] @ q[n, part] / 8**0.5, dim=0)
                slow[-1][n, part] = weights @ v[:, part]
    torch.testing.assert_close(block.attend(x, [(2, 5), (1, 3)]), block.out(torch.cat(slow)), rtol=0, atol=1e-6)


PEAK_MEMORY = """
import resource, torch
from extract.heads import HeadConfig
from fusion.model import FusionModel, ModelConfig

config = ModelConfig(width=24, depth=1, num_heads=6, head=HeadConfig(width=18, num_heads=2))
model = FusionModel(config, (8, 8, 4), 7)
for num_views in (1, 64):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slots = torch.arange(num_views)[None] % 16
    model(torch.randn(1, num_views, 8, 8, 4), slots % 3, slots).square().sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)
"""


def in_a_process_of_its_own(code):
    """Without jaxtyping's hook, and with a peak of memory that no other test has set; what it printed."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_training_memory_does_not_grow_with_the_square_of_the_tokens():
    """64 views of 8 x 8 tokens: full attention weights alone would be 6 heads x 4096^2 x 4 bytes = 403 MB."""
    assert int(in_a_process_of_its_own(PEAK_MEMORY)) < 150  # MB


COMPILED = """
import torch
from torch._dynamo.utils import counters
from extract.heads import HeadConfig
from fusion.model import FusionModel, ModelConfig

torch.manual_seed(0)
head = HeadConfig(width=18, num_heads=2, dropout=0.0)
model = FusionModel(ModelConfig(width=24, depth=1, num_heads=3, head=head, dropout=0.0), (9, 8, 10), 7)
compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
one_bucket = [((11, 2),), ((4, 3),), ((5, 1),)]  # no size equals another: torch would take them for one
two_buckets = [((5, 2), (3, 4)), ((7, 1), (2, 3))]
for buckets in one_bucket + two_buckets:
    slots = torch.cat([torch.arange(V).repeat(G) for G, V in buckets])
    maps, ends = torch.randn(len(slots), 9, 8, 10), []
    for each in (model, compiled):
        model.zero_grad()
        logits = each(maps, slots % 5, slots, buckets)
        logits.square().sum().backward()
        ends.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    print(counters["stats"]["unique_graphs"])
"""


def test_it_compiles_as_one_graph_per_number_of_buckets_for_any_number_of_groups_and_views():
    """Of a bucket that holds a single group torch makes a graph of its own: it takes a size of 1 for a constant."""
    assert in_a_process_of_its_own(COMPILED).split() == ["1", "1", "1", "2", "2"]


def test_shape_annotations_are_checked_in_tests(model):
    maps, types, slots = make_groups(3, 2)
    with pytest.raises(TypeCheckError, match="slots"):
        model(maps, types, slots[:2])


VIEW_COUNTS = [1, 3, 2, 1, 4, 2, 1]


def packed_logits(model, bank, groups, max_views=0):
    """Logits of groups of unequal size, as training computes them."""
    views = [Views(*(part.numpy() for part in group), np.zeros(len(group[0]), dtype=int)) for group in groups]
    logits = [None] * len(groups)
    for one in make_passes(CONFIG, np.arange(len(groups)), views, max_views):
        out = model(bank[torch.from_numpy(one.ordinals)], one.view_types, one.slots, one.buckets)
        for place, number in enumerate(one.groups):
            logits[number] = out[place]
    return torch.stack(logits)


def looped_logits(model, bank, groups):
    """Group after group, each in a forward pass of its own."""
    return torch.cat([model(bank[ordinals][None], types[None], slots[None]) for ordinals, types, slots in groups])


def unequal_groups():
    """A map for each view, and groups of `VIEW_COUNTS` views."""
    bank, groups = torch.randn(sum(VIEW_COUNTS), H, W, D), []
    for ordinals in torch.arange(len(bank)).split(VIEW_COUNTS):
        groups.append((ordinals, torch.randint(len(VIEWS), ordinals.shape), torch.randperm(S)[: len(ordinals)]))
    return bank, groups


def outcome(form, model, bank, groups):
    """Logits and all gradients of one of the forms, the maps' included."""
    model.zero_grad()
    bank = bank.clone().requires_grad_()
    logits = form(model, bank, groups)
    (logits * torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return gradients | {"logits": logits.detach(), "maps": bank.grad}


def assert_alike(found, wanted, atol):
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        limit = atol * max(1, float(expected.abs().max()))
        torch.testing.assert_close(found[name], expected, rtol=0, atol=limit, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("max_views", [0, 5])
@pytest.mark.parametrize("change", [{}, {"head": HeadConfig(kind="csra")}, {"experts": 3}, {"token_stride": 2}])
def test_a_packed_pass_equals_a_slow_loop_over_groups_forward_and_backward(change, max_views):
    torch.manual_seed(0)
    model = FusionModel(replace(CONFIG, **change), (H, W, D), C).eval()
    for weight in model.parameters():  # not 0, as some are at the start
        torch.nn.init.normal_(weight, std=0.3)
    inputs = model, *unequal_groups()
    packed = outcome(partial(packed_logits, max_views=max_views), *inputs)
    assert_alike(packed, outcome(looped_logits, *inputs), atol=1e-6)
    assert float(packed["logits"].std()) > 0.1


def test_layers_that_treat_each_token_alike_run_once_for_all_buckets_of_a_pass(model):
    bank, groups = unequal_groups()
    rows = defaultdict(list)
    for name, part in model.named_modules():
        if not list(part.children()):
            part.register_forward_pre_hook(lambda _, arguments, n=name: rows[n].append(len(arguments[0])))
    packed_logits(model, bank, groups)
    twice = {name for name, calls in rows.items() if len(calls) > 1}
    assert twice == {"blocks.0.drop", "blocks.1.drop", "head.dropout"}
    assert rows["blocks.1.query_key_value"] == rows["head.embed"] == [sum(VIEW_COUNTS) * H * W]
    assert rows["head.attention.out"] == rows["head.feed_forward.0"] == [len(VIEW_COUNTS)]


def masked_attention(q, k, v, hidden, num_heads):
    """Written out: q (G, Q, E), k and v (G, N, E), `hidden` (G, N)."""
    parts = []
    for one_q, one_k, one_v in zip(*(x.chunk(num_heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = torch.einsum("gqd,gnd->gqn", one_q, one_k) / one_q.shape[-1] ** 0.5
        parts.append(scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1) @ one_v)
    return torch.cat(parts, dim=-1)


def padded_logits(model, bank, groups):
    """The slow form that packing replaces: groups padded with noise to the largest, and masked."""
    G, most = len(groups), max(len(group[0]) for group in groups)
    maps, hidden = 9 * torch.randn(G, most, H, W, D), torch.ones(G, most, dtype=torch.bool)
    types, slots = torch.randint(len(VIEWS), (G, most)), torch.randint(S, (G, most))
    for g, (ordinals, of_types, of_slots) in enumerate(groups):
        n = len(ordinals)
        maps[g, :n], types[g, :n], slots[g, :n], hidden[g, :n] = bank[ordinals], of_types, of_slots, False
    hidden = hidden.repeat_interleave(H * W, dim=1)
    x = model.project(model.norm_in(maps)) + model.position_code
    x = x + (model.slot_embedding[slots] + model.view_embedding[types])[:, :, None, None]
    x = x.reshape(G, most * H * W, -1)
    for block in model.blocks:
        q, k, v = block.query_key_value(block.norm_attention(x)).chunk(3, dim=-1)
        x = x + block.out(masked_attention(q, k, v, hidden, block.num_heads))
        x = x + block.feed_forward(block.norm_feed_forward(x))
    head = model.head
    tokens = torch.relu(head.embed(model.norm_out(x)))
    queries = head.norm_queries(2 * head.queries).expand(G, -1, -1)
    k, v = head.attention.key_value(tokens).chunk(2, dim=-1)
    gathered = masked_attention(head.attention.query(queries), k, v, hidden, head.attention.num_heads)
    y = head.norm_gathered(queries + head.attention.out(gathered))
    y = head.norm_out(y + head.feed_forward(y))
    return torch.einsum("gqw,qwc->gqc", y, head.class_weight).flatten(1)[:, :C] + head.class_bias


def test_packing_equals_the_masked_and_padded_form_forward_and_backward(model):
    inputs = model, *unequal_groups()
    packed, padded = outcome(packed_logits, *inputs), outcome(padded_logits, *inputs)
    assert len(packed) > 30
    assert_alike(packed, padded, atol=1e-5)


def test_packing_does_no_work_on_padding():
    with torch.device("meta"):
        model = FusionModel(CONFIG, (H, W, D), C).eval()

    def flops(*buckets):
        inputs = torch.empty(sum(groups * views for groups, views in buckets), dtype=torch.long, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(*inputs.shape, H, W, D, device="meta"), inputs, inputs, buckets)
        return counter.get_total_flops()

    views = [Views(*[np.zeros(count, dtype=int)] * 4) for count in VIEW_COUNTS]
    (one,) = make_passes(CONFIG, np.arange(len(views)), views)
    packed = flops(*one.buckets)
    assert packed <= sum(flops((1, count)) for count in VIEW_COUNTS)  # less: the queries are shared
    assert flops((len(views), 4)) > 1.7 * packed


@pytest.mark.parametrize("shape", [(8, 4), (6, 5)])
def test_tokens_of_stride_4_are_those_of_a_pooled_cache(shape):
    maps = torch.randn(6, *shape, D)
    pooled = torch.stack(
        [
            torch.stack([maps[:, y : y + 4, x : x + 4].mean(dim=(1, 2)) for x in range(0, shape[1], 4)], dim=1)
            for y in range(0, shape[0], 4)
        ],
        dim=1,
    )
    torch.testing.assert_close(mean_pooled(maps, 4), pooled, rtol=0, atol=1e-6)
    sizes = {"width": 24, "num_heads": 3, "head": HeadConfig(width=18, num_heads=2)}
    cheap = FusionModel(ModelConfig(token_stride=4, **sizes), (*shape, D), C).eval()
    plain = FusionModel(ModelConfig(**sizes), (*pooled.shape[1:3], D), C).eval()
    plain.load_state_dict(cheap.state_dict())
    _, types, slots = make_groups(2, 3)
    maps, pooled = (part.unflatten(0, (2, 3)) for part in (maps, pooled))
    torch.testing.assert_close(cheap(maps, types, slots), plain(pooled, types, slots), rtol=0, atol=1e-5)


def test_the_features_inside_feed_forward_layers_can_be_chosen():
    for given, found in ((0, 96), (40, 40)):
        model = FusionModel(replace(CONFIG, feed_forward=given), (H, W, D), C)
        for block in model.blocks:
            assert [part.weight.shape for part in block.feed_forward if hasattr(part, "weight")] == [
                (found, 24),
                (24, found),
            ]


def test_64_tokens_per_view_cost_a_fourth_of_256_at_most():
    counts = {}
    for stride in (2, 4):
        sizes = {"width": 768, "num_heads": 8, "head": HeadConfig(width=768, num_heads=8)}
        with torch.device("meta"):
            model = FusionModel(ModelConfig(token_stride=stride, **sizes), (32, 32, 768), 26).eval()
            types = torch.empty(1, 1, dtype=torch.long)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 1, 32, 32, 768), types, types)
        counts[stride] = counter.get_total_flops()
    assert counts[2] > 4 * counts[4]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"width": 22}, "model.width must be a multiple of 4, got 22"),
        ({"width": 24, "num_heads": 5}, "model.num_heads=5 does not divide model.width=24"),
        ({"num_slots": 0}, "model.num_slots must be at least 1, got 0"),
        ({"experts": -1}, "model.experts must be 0 or more, got -1"),
        ({"feed_forward": -8}, "model.feed_forward must be 0 or more, got -8"),
        ({"kind": "published"}, "model.token_stride 2, model.head.kind ml_decoder and no model.experts, got 1, ml_d"),
    ],
)
def test_a_size_that_does_not_fit_is_named(values, names):
    with pytest.raises(ValueError, match=names):
        ModelConfig(**values)
