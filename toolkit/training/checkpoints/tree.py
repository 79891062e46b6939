"""A state as nested dicts and lists, taken apart into its tensors and the rest, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from toolkit.checks import require

PLACE = "__tensor__"
"""Key of the dict that stands for a tensor in what is left of a tree."""


def take_apart(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """The tree with ``{PLACE: name}`` for every tensor, and the tensors by name.

    A name is the path of keys and indices: ``"optimizer_states/0/state/3/exp_avg"``.

    Raises:
        ValueError: if two paths have the same name.
    """
    tensors: dict[str, Tensor] = {}

    def place(path: str, tensor: Tensor) -> dict[str, str]:
        require(path not in tensors, "path", path, "of one tensor only; a key must not hold '/'")
        tensors[path] = tensor
        return {PLACE: path}

    return _mapped(tree, "", place), tensors


def put_together(rest: Any, tensors: Mapping[str, Tensor | None]) -> Any:
    """What :func:`take_apart` took apart.

    Raises:
        KeyError: if there is no tensor of a name.
    """
    if isinstance(rest, dict):
        if rest.keys() == {PLACE}:
            return tensors[rest[PLACE]]
        return {key: put_together(value, tensors) for key, value in rest.items()}
    if isinstance(rest, (list, tuple)):
        return type(rest)(put_together(value, tensors) for value in rest)
    return rest


def merged(here: Any, there: Any) -> Any:
    """Two processes' rests as one: dicts have the keys of both, lists of names the names of both; else ``here``'s."""
    if isinstance(here, dict) and isinstance(there, dict):
        both = {key: merged(value, there[key]) if key in there else value for key, value in here.items()}
        return both | {key: value for key, value in there.items() if key not in here}
    if not (isinstance(here, list) and isinstance(there, list)):
        return here
    if all(isinstance(value, str) for value in here + there):
        return here + [name for name in there if name not in here]
    return [merged(*pair) for pair in zip(here, there, strict=True)] if len(here) == len(there) else here


def _mapped(tree: Any, path: str, place: Callable[[str, Tensor], Any]) -> Any:
    def below(key: Any) -> str:
        return f"{path}/{key}" if path else str(key)

    if isinstance(tree, Tensor):
        return place(path, tree)
    if isinstance(tree, dict):
        return {key: _mapped(value, below(key), place) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)) and type(tree) in (list, tuple):
        return type(tree)(_mapped(value, below(index), place) for index, value in enumerate(tree))
    return tree
