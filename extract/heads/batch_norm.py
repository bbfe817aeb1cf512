"""BatchNorm that also trains on a single row. N rows, D features."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over rows of features, whatever axes they came from.

    torch refuses to train on one row, which has no variance. A last batch of one image has one, and so has a process
    without a share of a batch: such a row is normalised by the running statistics and leaves them alone.
    """

    def forward(self, input: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:  # torch's own name
        """Normalised rows."""
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)
