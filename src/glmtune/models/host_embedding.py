"""A token embedding in host memory."""

from torch import Tensor, nn

from glmtune.ops import HostTable


class HostEmbedding(nn.Module):
    """A frozen token embedding that stays in host memory when the model is moved to a device.

    Its weight is not a parameter, so that the model's device is that of its layers.

    Args:
        weight: The embedding matrix, [V, H]; copied to the CPU if it is elsewhere.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self._table = HostTable(weight.detach().cpu())

    @property
    def weight(self) -> Tensor:
        """The embedding matrix, [V, H], on the CPU."""
        return self._table.values_VH

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeds ids of any shape, on their device."""
        return self._table.rows(input_ids)
