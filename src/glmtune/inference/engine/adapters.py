"""LoRA adapters that the rows of one pass choose from.

The A and B of all adapters are stacked, so that a projection computes them in two products whatever its rows chose:

    low = (x @ A.T) * chosen;  y += low @ B.T

where `chosen` has ones in the columns of a row's adapter and zeros elsewhere.

Legend of dimension suffixes: T rows, K inputs, N outputs, C columns: the ranks of all adapters together, padded.
"""

import copy
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from transformers import PreTrainedModel

from glmtune.adapters.adapter_files import load_adapter_weights, read_adapter_config
from glmtune.adapters.fusable import ADAPTER_NAME, adapter_parameters, lora_linears, why_not_plain
from glmtune.adapters.lora import changes_base, put_on
from glmtune.errors import AdapterError
from glmtune.models.families import family_of
from glmtune.models.family import Shape
from glmtune.ops.back_end import back_end

_COLUMN_STEP = 16  # tensor cores multiply in tiles of it
_FIRST_ROWS = 8

# A [R, K] and B [N, R], the scaling folded into B, by layer and projection (in the order of `LayerWeights`).
AdapterWeights = Mapping[tuple[int, int], tuple[Tensor, Tensor]]


class StackedAdapters:
    """The adapters of a model. Index 0 is none.

    Loading and unloading change the tensors in place as long as there is room in them.

    Args:
        shape: The model's sizes.
        dtype: The compute dtype.
        device: The model's device.

    Attributes:
        version: Grows whenever a tensor is replaced or added, so that a CUDA graph which uses the old ones is out of
            date.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> None:
        heads, groups, size = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self._sizes = (
            (shape.hidden_size, (heads + 2 * groups) * size),
            (heads * size, shape.hidden_size),
            (shape.hidden_size, 2 * shape.ffn_hidden_size),
            (shape.ffn_hidden_size, shape.hidden_size),
        )
        self.version = 0
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._table = self._like.new_zeros(_FIRST_ROWS, 0)
        self._pairs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._indices: dict[str, int] = {}
        self._numbers = count()
        self._namespaces: dict[str, str] = {}
        self._columns: dict[int, list[int]] = {}
        self._places: dict[int, frozenset[tuple[int, int]]] = {}

    @property
    def names(self) -> list[str]:
        """The loaded adapters."""
        return list(self._indices)

    def index(self, name: str) -> int:
        """The index of a loaded adapter."""
        return self._indices[name]

    def namespace(self, name: str) -> str:
        """What tells an adapter's keys and values from those of others, and of earlier ones of its name."""
        return self._namespaces[name]

    def chosen(self, adapter_T: Tensor) -> Tensor:
        """The columns of each row's adapter as ones, [T, C].

        Args:
            adapter_T: The index of each row's adapter, [T] integer.
        """
        return self._table.index_select(0, adapter_T)

    def add_to(self, output_TN: Tensor, x_TK: Tensor, layer: int, projection: int, chosen_TC: Tensor) -> None:
        """Adds the adapters' part of a projection to its output, in place.

        Args:
            output_TN: The output of the base's projection.
            x_TK: Its input.
            layer: The layer's number.
            projection: The projection's number, in the order of `LayerWeights.projections`.
            chosen_TC: From `chosen`.
        """
        pair = self._pairs.get((layer, projection))
        if pair is not None:
            a_CK, b_NC = pair
            output_TN.addmm_((x_TK @ a_CK.T).mul_(chosen_TC), b_NC.T)

    def beside_row(
        self, x_1K: Tensor, layer: int, projection: int, chosen_1C: Tensor, norm: tuple[Tensor, float] | None
    ) -> tuple[Tensor, Tensor] | None:
        """The adapters' part of a projection of a single row: `(norm(x) @ A.T) * chosen`, [1, C], and B, [N, C].

        Args:
            x_1K: The row.
            layer: As for `add_to`, as are `projection` and `chosen_1C`.
            norm: The norm before the projection, as `reference.gemv` takes it.
        """
        pair = self._pairs.get((layer, projection))
        if pair is None:
            return None
        a_CK, b_NC = pair
        return back_end(x_1K).gemv(x_1K, a_CK, scales=chosen_1C[0], norm=norm), b_NC

    def holds(self, name: str, weights: AdapterWeights) -> bool:
        """Whether an adapter is loaded with just these numbers, as far as the compute dtype can tell.

        Args:
            name: Its name.
            weights: Its A and B.
        """
        index = self._indices.get(name)
        if index is None or self._places[index] != weights.keys():
            return False
        columns = torch.tensor(self._columns[index], dtype=torch.int64, device=self._like.device)
        if any(a.shape[0] > len(columns) for a, _ in weights.values()):
            return False
        differs = self._like.new_zeros((), dtype=torch.bool)
        for place, (a, b) in weights.items():
            a_CK, b_NC = self._pairs[place]
            own = columns[: a.shape[0]]
            for loaded, given in ((a_CK.index_select(0, own), a), (b_NC.index_select(1, own), b)):
                differs |= (loaded != given.to(loaded)).any()
        return not differs.item()

    def load(self, name: str, weights: AdapterWeights) -> None:
        """Adds an adapter, or replaces the one of that name.

        Args:
            name: Its name.
            weights: Its A and B.
        """
        if name in self._indices:
            self.unload(name)
        rank = max((a.shape[0] for a, _ in weights.values()), default=0)
        columns = self._take_columns(rank)
        index = self._take_index()
        for place, (a, b) in weights.items():
            a_CK, b_NC = self._pair(place)
            own = columns[: a.shape[0]]
            a_CK[own] = a.to(a_CK)
            b_NC[:, own] = b.to(b_NC)
        self._table[index, columns] = 1
        self._indices[name] = index
        self._namespaces[name] = f"{next(self._numbers)} {name}"
        self._columns[index] = columns
        self._places[index] = frozenset(weights)

    def unload(self, name: str) -> None:
        """Takes an adapter out; what it holds is overwritten, since a zero in the table does not hide NaN."""
        index = self._indices.pop(name)
        columns = self._columns.pop(index)
        del self._places[index], self._namespaces[name]
        self._table[index] = 0
        for a_CK, b_NC in self._pairs.values():
            a_CK[columns] = 0
            b_NC[:, columns] = 0

    def _take_columns(self, count: int) -> list[int]:
        capacity = self._table.shape[1]
        used = {column for columns in self._columns.values() for column in columns}
        free = [column for column in range(capacity) if column not in used]
        if len(free) < count:
            missing = -(-(count - len(free)) // _COLUMN_STEP) * _COLUMN_STEP
            self._grow(missing)
            free += range(capacity, capacity + missing)
        return free[:count]

    def _grow(self, num_columns: int) -> None:
        self.version += 1
        self._table = _padded(self._table, 1, num_columns)
        self._pairs = {
            place: (_padded(a_CK, 0, num_columns), _padded(b_NC, 1, num_columns))
            for place, (a_CK, b_NC) in self._pairs.items()
        }

    def _take_index(self) -> int:
        used = self._columns.keys()
        index = next(index for index in range(1, len(used) + 2) if index not in used)
        if index == self._table.shape[0]:
            self.version += 1
            self._table = _padded(self._table, 0, index)
        return index

    def _pair(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if place not in self._pairs:
            self.version += 1
            num_inputs, num_outputs = self._sizes[place[1]]
            num_columns = self._table.shape[1]
            self._pairs[place] = (
                self._like.new_zeros(num_columns, num_inputs),
                self._like.new_zeros(num_outputs, num_columns),
            )
        return self._pairs[place]


def _padded(x: Tensor, dim: int, count: int) -> Tensor:
    """A tensor with `count` more zeros along a dimension."""
    size = list(x.shape)
    size[dim] = count
    return torch.cat((x, x.new_zeros(size)), dim)


def adapter_weights(model: PeftModel, name: str) -> AdapterWeights:
    """A and B of an adapter that is plain LoRA, by layer and projection, the scaling folded into B.

    Args:
        model: The model that holds it.
        name: Its name there.
    """
    base = model.get_base_model()
    weights = {}
    for index, parts in enumerate(family_of(base).layers(base)):
        for projection, layer in enumerate(parts.projections):
            if isinstance(layer, LoraLinear) and name in layer.lora_A:
                a, b = (parameter.detach() for parameter in adapter_parameters(layer, name))
                weights[index, projection] = a, b * layer.scaling[name]
    return weights


def all_adapter_weights(model: PreTrainedModel | PeftModel) -> dict[str, AdapterWeights]:
    """The adapters of a model by name, as `adapter_weights` gives them; none of a bare model."""
    return {name: adapter_weights(model, name) for name in model.peft_config} if isinstance(model, PeftModel) else {}


def read_adapter(base: PreTrainedModel, folder: str | Path) -> AdapterWeights:
    """Reads an adapter that is plain LoRA.

    PEFT puts it on a copy of the base without weights, so that PEFT's rules decide which layers it is for, of which
    rank and scaling.

    Args:
        base: The bare model that it is for.
        folder: A folder that `save_adapter` or PEFT wrote.

    Raises:
        AdapterError: It is damaged, does not fit the base, or is more than plain LoRA on the linear layers of blocks.
    """
    config = read_adapter_config(folder)
    reason = _why_not_config(config)
    if reason is None:
        with torch.device("meta"):
            model = put_on(type(base)(copy.deepcopy(base.config)), config)
        reason = why_not_plain(model, ADAPTER_NAME)
    if reason is not None:
        raise AdapterError(f"{folder} cannot be used beside other adapters: {reason}. Load it by itself, or merge it")
    for layer in lora_linears(model.get_base_model()):
        for part in (layer.lora_A, layer.lora_B):
            part.to_empty(device="cpu")
    load_adapter_weights(model, folder)
    return adapter_weights(model, ADAPTER_NAME)


def _why_not_config(config: LoraConfig) -> str | None:
    """What an adapter's configuration asks for beside adapters of linear layers, as a phrase."""
    if changes_base(config.init_lora_weights):
        return f"init_lora_weights={config.init_lora_weights} moved part of the base into the adapter"
    for key in ("trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens"):
        if config.to_dict().get(key):
            return f"a variant of LoRA is used ({key})"
    return None
