"""A token embedding in the host's memory."""

from torch import Tensor, nn

from glmtune.ops import HostTable


class HostEmbedding(nn.Module):
    """A frozen token embedding that stays in the host's memory wherever the model goes.

    Its weight is no parameter, so that a model's device is the one that its layers are on.

    Args:
        weight: The embedded tokens, [V, H]; copied to the CPU if it is not there.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self._table = HostTable(weight.detach().cpu())

    @property
    def weight(self) -> Tensor:
        """The embedded tokens, [V, H], on the CPU."""
        return self._table.values_VH

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeds ids of any shape, on the device that they are on."""
        return self._table.rows(input_ids)
