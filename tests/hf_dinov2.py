"""Hugging Face's DINOv2 written out slowly, head by head, over a dictionary of weights; random checkpoints.

`test_the_slow_reference_of_these_tests_is_transformers` compares it with outputs of transformers itself.
"""

import torch
from torch.nn import functional as F

PATCH = 14
IN_MEMORY = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def shapes(width, depth, side, registers=4):
    """Names of weights, as files have them, and their shapes."""
    names = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + side**2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    if registers:
        names["embeddings.register_tokens"] = (1, registers, width)
    for n in range(depth):
        layer = f"encoder.layer.{n}."
        matrices = {name: (width, width) for name in IN_MEMORY}
        matrices |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, (rows, columns) in matrices.items():
            names[f"{layer}{name}.weight"], names[f"{layer}{name}.bias"] = (rows, columns), (rows,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            names[layer + name] = (width,)
        names[layer + "layer_scale1.lambda1"] = names[layer + "layer_scale2.lambda1"] = (width,)
    return names


def random_checkpoint(width=24, depth=5, side=3, registers=4, seed=0):
    """Every weight away from where it starts, large enough that forgetting any shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    draw = {
        name: torch.randn(shape, generator=generator) for name, shape in shapes(width, depth, side, registers).items()
    }
    return {
        name: 1 + 0.3 * value if "norm" in name or "lambda1" in name else value * (0.3 if value.ndim < 2 else 0.2)
        for name, value in draw.items()
    }


def in_memory(weights):
    """The spelling of transformers 5."""
    for saved, memory in IN_MEMORY.items():
        weights = {name.replace(saved, memory): value for name, value in weights.items()}
    return weights


def hidden_states(weights, images, num_heads):
    """Tokens (class, registers, patches) after each layer, the embeddings first; without the final norm."""
    width = weights["layernorm.weight"].shape[0]
    projection = "embeddings.patch_embeddings.projection."
    rows = []
    for image in images:
        tokens = [weights["embeddings.cls_token"][0, 0]]
        for y in range(0, image.shape[1], PATCH):
            for x in range(0, image.shape[2], PATCH):
                patch = image[:, y : y + PATCH, x : x + PATCH]
                tokens.append(
                    weights[projection + "weight"].flatten(1) @ patch.flatten() + weights[projection + "bias"]
                )
        tokens = torch.stack(tokens) + weights["embeddings.position_embeddings"][0]
        registers = weights.get("embeddings.register_tokens", torch.empty(1, 0, width))[0]
        rows.append(torch.cat([tokens[:1], registers, tokens[1:]]))
    states = [torch.stack(rows)]
    while (layer := f"encoder.layer.{len(states) - 1}.") + "norm1.weight" in weights:
        own = {name.removeprefix(layer): value for name, value in weights.items() if name.startswith(layer)}
        states.append(torch.stack([one_layer(own, tokens, num_heads) for tokens in states[-1]]))
    return states


def one_layer(own, tokens, num_heads):
    """Pre-norm attention, then a network of two layers, each scaled and added."""

    def linear(name, x):
        return x @ own[name + ".weight"].T + own[name + ".bias"]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], own[name + ".weight"], own[name + ".bias"], eps=1e-6)

    x, heads = norm("norm1", tokens), []
    q, k, v = (linear("attention.attention." + name, x).chunk(num_heads, dim=-1) for name in ("query", "key", "value"))
    for h in range(num_heads):
        scores = q[h] @ k[h].T / q[h].shape[-1] ** 0.5
        heads.append(scores.softmax(dim=-1) @ v[h])
    tokens = tokens + own["layer_scale1.lambda1"] * linear("attention.output.dense", torch.cat(heads, dim=-1))
    hidden = F.gelu(linear("mlp.fc1", norm("norm2", tokens)))
    return tokens + own["layer_scale2.lambda1"] * linear("mlp.fc2", hidden)


def final_norm(weights, tokens):
    """What `last_hidden_state` is of the last layer's tokens."""
    return F.layer_norm(tokens, tokens.shape[-1:], weights["layernorm.weight"], weights["layernorm.bias"], eps=1e-6)
