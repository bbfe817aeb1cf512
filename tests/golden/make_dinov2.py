"""Golden files: small models of transformers with random weights, an image each, and what the models make of them.

    pip install transformers==5.23.0
    python tests/golden/make_dinov2.py

One file has the names of weights that `save_pretrained` writes, the other those of a state dict in memory. Weights and
pixels are kept in 16 bits, so that the files are small; the models calculate with the same numbers in float32.
"""

import tempfile
from pathlib import Path

import safetensors.torch
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 42, "patch_size": 14}


def saved(model):
    """Weights under the names that a downloaded file has."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def in_memory(model):
    """Weights under the names that transformers 5 has in memory."""
    return model.state_dict()


@torch.no_grad()
def make(model, spelling, name):
    """Move every weight away from where it starts, so that forgetting any shows, and write the file."""
    for weight_name, weight in model.named_parameters():
        drawn = torch.randn_like(weight) * (0.3 if weight.ndim < 2 else 0.2)
        weight.copy_((drawn + ("norm" in weight_name or "lambda1" in weight_name)).half())
    pixels = torch.randn(1, 3, 42, 42).half()
    tensors = {"pixel_values": pixels, "last_hidden_state": model.eval()(pixels.float()).last_hidden_state}
    tensors |= {f"model.{key}": value.half() for key, value in spelling(model).items()}
    safetensors.torch.save_file(tensors, Path(__file__).with_name(f"{name}.safetensors"))


if __name__ == "__main__":
    torch.manual_seed(0)
    make(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)), in_memory, "dinov2_with_registers")
    make(Dinov2Model(Dinov2Config(**SIZES)), saved, "dinov2")
