"""One call of the experts on its way to the kernels: inputs checked and laid out, tiles chosen, rows shared out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from toolkit.checks import require, require_choice
from toolkit.kernels.families import family_of
from toolkit.kernels.launch import run
from toolkit.layers.experts.activations import Activation
from toolkit.layers.experts.kernels.config import DTYPES, Tile, fit_tile, shipped_tile, vector
from toolkit.layers.experts.kernels.plan import row_tiles
from toolkit.layers.experts.weights import Weights
from toolkit.routing import ExpertRows

Tiles = Mapping[str, Tile]


@dataclass(frozen=True)
class Call:
    """The inputs of one pass, laid out for the kernels: unit strides, gates in fp32."""

    x: Tensor
    weight: Tensor
    rows: ExpertRows
    starts: Tensor
    weights: Weights
    activation: Activation
    tiles: Tiles | None
    shared: dict[int, Tensor] = field(default_factory=dict)  # the row tiles of each block_m

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights, activation: Activation,
        tiles: Tiles | None,
    ) -> Call:  # fmt: skip
        """Check the inputs and lay them out."""
        check_inputs(x, weight, rows, starts, weights, activation)
        parameters = (weights.first, weights.second, weights.first_bias, weights.second_bias)
        weights = Weights(*(None if x is None else x.contiguous() for x in parameters))  # type: ignore[arg-type]
        return cls(laid_out(x), weight.float().contiguous(), rows, starts, weights, activation, tiles)

    @property
    def n(self) -> int:
        """Triples."""
        return len(self.rows.order)

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.rows.ends)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """dim, width and hidden_dim."""
        return (*self.weights.first.shape[:0:-1], self.weights.second.shape[2])

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Memory on the device, by default in x's dtype, that nobody has written."""
        return torch.empty(*shape, dtype=dtype or self.x.dtype, device=self.x.device)

    def arguments(self) -> dict[str, Any]:
        """What several kernels take."""
        dim, _, hidden_dim = self.sizes
        allow_tf32 = self.x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
        return {
            **{"x": self.x, "X_ROW": self.x.stride(0), "weight": self.weight, "starts": self.starts},
            **{"token": self.rows.token, "order": self.rows.order, "ends": self.rows.ends},
            **{name: getattr(self.weights, name) for name in ("first", "second", "first_bias", "second_bias")},
            **{"alpha": self.activation.alpha, "limit": self.activation.limit, "ACTIVATION": self.activation.name},
            **{"GATED": self.activation.gated, "DIM": dim, "HIDDEN_DIM": hidden_dim},
            **{"n_rows": self.n, "n_experts": self.experts, "PRECISION": "tf32" if allow_tf32 else "ieee"},
        }

    def by_rows(self, kernel: Any, name: str, columns: int, length: int, arguments: dict[str, Any]) -> int:
        """Launch a product of the rows, ``length`` long, with ``columns`` columns; how many tiles hold those."""
        tile = self._tile(name, -(-self.n // self.experts), columns, length)
        if tile.block_m not in self.shared:
            self.shared[tile.block_m] = row_tiles(self.rows.ends, self.n, tile.block_m)
        parts = self.shared[tile.block_m]
        column_tiles = -(-columns // tile.block_n)
        run(kernel, (len(parts) * column_tiles, 1, 1), tile, {**arguments, **_sides(tile), "row_tiles": parts})
        return column_tiles

    def by_expert(self, kernel: Any, name: str, height: int, width: int, arguments: dict[str, Any]) -> None:
        """Launch a product over the rows of each expert, (height, width)."""
        tile = self._tile(name, height, width, -(-self.n // self.experts))
        grid = (-(-height // tile.block_m) * -(-width // tile.block_n), self.experts, 1)
        run(kernel, grid, tile, {**arguments, **_sides(tile), "HEIGHT": height, "WIDTH": width})

    def column_tiles(self, name: str, columns: int, length: int) -> int:
        """How many tiles hold the columns of such a product."""
        return -(-columns // self._tile(name, -(-self.n // self.experts), columns, length).block_n)

    def _tile(self, name: str, m: int, n: int, k: int) -> Tile:
        """The tile the caller asks for, else the shipped one, no larger than an expert of mean load calls for."""
        if self.tiles is not None and name in self.tiles:
            return self.tiles[name]
        aligned = all(size % vector(self.x.dtype) == 0 for size in self.sizes)
        return fit_tile(shipped_tile(name, self.x.dtype, family_of(self.x.device), aligned), m, n, k)


def check_inputs(
    x: Tensor, weight: Tensor, rows: ExpertRows, starts: Tensor, weights: Weights, activation: Activation
) -> None:
    """Raise a ``ValueError`` that names what the kernels cannot take."""
    require_choice("dtype", x.dtype, DTYPES)
    require(x.ndim == 2, "x.shape", tuple(x.shape), "(tokens, dim)")
    require(weights.second.ndim == 3, "second.shape", tuple(weights.second.shape), "(experts, dim, hidden_dim)")
    n, dim, hidden_dim = len(rows.order), x.shape[1], weights.second.shape[2]
    experts, width = len(rows.ends), activation.width(hidden_dim)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "weight": (weight, (n,)),
        "starts": (starts, (len(x) + 1,)),
        "first": (weights.first, (experts, width, dim)),
        "second": (weights.second, (experts, dim, hidden_dim)),
        "first_bias": (weights.first_bias, (experts, width)),
        "second_bias": (weights.second_bias, (experts, dim)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        require(tuple(tensor.shape) == shape, f"{name}.shape", tuple(tensor.shape), f"{shape}")
        require(tensor.device == x.device, f"{name}.device", tensor.device, f"{x.device}, where x is")
        if name not in ("weight", "starts"):
            require(tensor.dtype == x.dtype, f"{name}.dtype", tensor.dtype, f"{x.dtype}, as x is")


def laid_out(x: Tensor) -> Tensor:
    """``x`` (rows, columns) itself where its rows can be read as well as a contiguous copy's, else that copy."""
    return x if x.stride(1) == 1 and (x.stride(0) - x.shape[1]) % vector(x.dtype) == 0 else x.contiguous()


def _sides(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k}
