"""View-specific experts: small bottleneck networks behind which every view's tokens pass in a mixture of its own.

A PA film, a lateral one and an oblique one show the same finding differently. One network for all of them has to share
its weights; one network per view type wastes what they have in common and cannot serve an image of unknown type. Here
a router looks at what a view shows and at what type it is said to be, and mixes K experts softly (Jacobs et al., Neural
Computation 3, 1991; bottleneck adapters: Houlsby et al., arXiv 1902.00751).

Axes: **T** tokens of a view, **E** features, **K** experts, **R** features inside an expert.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data.views import VIEWS


class ExpertAdapter(nn.Module):
    """x + sum over k of p_k * expert_k(norm(x)), with p from the view's own mean token and its type.

    The last weights of all experts start at 0: a new adapter hands its input through to the bit. A view's output
    depends on no other view and no other group, so what holds for the transformer's batches holds with it.

    Args:
        width: Features of a token (E).
        num_experts: K, at least 1.
        bottleneck: Features inside an expert (R); `width` / 4 unless given.

    Raises:
        ValueError: Fewer than one expert.
    """

    def __init__(self, width: int, num_experts: int, bottleneck: int | None = None) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"model.experts must be at least 1 to have any, got {num_experts}")
        inside = bottleneck or max(1, width // 4)
        self.num_experts = num_experts
        self.norm = nn.LayerNorm(width)
        self.type_embedding = nn.Parameter(torch.randn(len(VIEWS), width) * 0.02)
        self.router = nn.Linear(width, num_experts)
        self.down = nn.Linear(width, num_experts * inside)  # all experts side by side: one large product, not K small
        self.up = nn.Linear(num_experts * inside, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "*views T E"], view_types: Int[Tensor, "*views"]) -> Float[Tensor, "*views T E"]:
        """Tokens in, as many out.

        Args:
            view_types: Numbers into `VIEWS`; UNKNOWN is a type like any other, then content decides.
        """
        normed = self.norm(x)
        share = self.shares(normed, view_types)
        hidden = F.gelu(self.down(normed)).unflatten(-1, (self.num_experts, -1))  # (*views, T, K, R)
        return x + self.up((hidden * share[..., None, :, None]).flatten(-2))

    def shares(
        self, normed: Float[Tensor, "*views T E"], view_types: Int[Tensor, "*views"]
    ) -> Float[Tensor, "*views K"]:
        """How much of each expert every view gets; they add up to 1."""
        return self.router(normed.mean(dim=-2) + self.type_embedding[view_types]).softmax(dim=-1)
