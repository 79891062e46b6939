"""Decoders from Hugging Face's Llama, Mistral and Mixtral, and to them: models, or folders of safetensors."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toolkit.checks import require
from toolkit.files import replacing, write_atomically
from toolkit.models.config import DecoderConfig
from toolkit.models.decoder import Decoder
from toolkit.models.hf_config import read_config, write_config
from toolkit.models.hf_weights import read_weights, write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def from_hf(model_or_folder: nn.Module | str | Path, dtype: torch.dtype | None = None) -> Decoder:
    """The decoder with the config and a copy of the weights of a Llama, Mistral or Mixtral of Hugging Face's.

    A folder is read without transformers, one tensor at a time, and nothing in it is run. The decoder is on the device
    of the model's embedding and in its mode; from a folder, on the CPU and in evaluation. Ids of tokens and settings of
    generation are not carried. Mixtral's balance loss gets the coefficient top_k * ``router_aux_loss_coef``, since
    Hugging Face's is top_k at perfect balance and ours is 1; in training it is there whatever ``output_router_logits``
    says. Its jitter reaches the router and not the experts.

    Args:
        model_or_folder: a ``LlamaForCausalLM``, ``MistralForCausalLM`` or ``MixtralForCausalLM``, or a folder with
            config.json and model.safetensors, or model.safetensors.index.json and its shards.
        dtype: of the weights; None for that which they have.

    Raises:
        ValueError: naming a field of the config that is missing or that no decoder here has (biases, another
            activation, partly rotated heads, quantised weights), or a tensor that is missing, left over or of a wrong
            shape; if the folder lacks a file, or weights are of several dtypes and none is given.
        ImportError: if safetensors is not installed, to read a folder.

    >>> from toolkit.models import AttentionConfig, BlockConfig, FeedForwardConfig
    >>> block = BlockConfig(AttentionConfig(heads=2), FeedForwardConfig(hidden_dim=64))
    >>> decoder = Decoder(DecoderConfig(vocab_size=256, dim=32, blocks=(block, block)))
    >>> from_hf(to_hf(decoder)).config == decoder.config
    True
    """
    right = "a floating point type, or None for that of the weights"
    require(dtype is None or dtype.is_floating_point, "dtype", dtype, right)
    if isinstance(model_or_folder, nn.Module):
        model = model_or_folder
        right = "a model of Hugging Face's, which has a config with its model_type"
        require(hasattr(getattr(model, "config", None), "to_dict"), "model_or_folder", type(model).__name__, right)
        config = read_config(model.config.to_dict())  # type: ignore[operator, union-attr]  # just looked
        weights = model.state_dict()
        return _decoder(config, read_weights(config, weights, weights.__getitem__, dtype)).train(model.training)
    folder = Path(model_or_folder)
    config = read_config(_json(folder / "config.json"))
    with _tensors(folder) as (names, read):
        return _decoder(config, read_weights(config, names, read, dtype)).eval()


def to_hf(decoder: Decoder, *, for_evaluation: bool = False, max_length: int | None = None) -> PreTrainedModel:
    """A model of Hugging Face's with the same logits, and a copy of the weights.

    ``MixtralForCausalLM`` where the layers are MoEs, ``MistralForCausalLM`` where they are dense with a sliding window,
    else ``LlamaForCausalLM``; in the decoder's dtype, device and mode. :func:`from_hf` gives the decoder back. In
    training Hugging Face adds the balance loss only with ``output_router_logits=True``.

    Args:
        decoder: its layers are alike.
        for_evaluation: leave out what only training sees and Hugging Face has no field for: a MoE's ``z_loss``,
            ``capacity_factor``, ``drop_policy``, ``recompute``, ``causal``. Otherwise they are refused.
        max_length: ``max_position_embeddings``, which servers refuse longer prompts by and a decoder here knows
            nothing of; None leaves it to the scaling of the rotary embedding, or to transformers (2048).

    In half precision tokens near a tie between experts may take others there: Hugging Face rounds the router's logits.

    Raises:
        ValueError: naming the block and the setting that no family of Hugging Face's has, or a ``max_length`` that a
            dynamic scaling contradicts.
        ImportError: if transformers is not installed.
    """
    transformers = _library("transformers", "to_hf")
    settings = write_config(decoder.config, for_evaluation, max_length)
    with torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.for_model(**settings)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=_dtype(decoder))
    weights = write_weights(decoder.config, decoder.state_dict(), "modules")
    unmatched = model.load_state_dict(weights, strict=False)
    tied = ["lm_head.weight"] if decoder.head is None else []
    assert unmatched.missing_keys == tied and not unmatched.unexpected_keys, unmatched
    if model.dtype == torch.float64 and settings["model_type"] == "mixtral":
        model.set_experts_implementation("eager")  # the grouped product that is their default takes no fp64
    model.train(decoder.training)
    nn.Module.to(model, decoder.embedding.weight.device)
    return model


def save_hf(
    decoder: Decoder, folder: str | Path, *, for_evaluation: bool = False, max_length: int | None = None
) -> None:
    """Write config.json and model.safetensors, which ``from_pretrained`` of transformers and :func:`from_hf` read.

    transformers is not needed. Each file is there whole or not at all, config.json last.

    Args:
        decoder: see :func:`to_hf`.
        folder: made if it is not there.
        for_evaluation, max_length: see :func:`to_hf`.

    Raises:
        ValueError: as :func:`to_hf`.
        ImportError: if safetensors is not installed.
    """
    safetensors = _library("safetensors.torch", "save_hf")
    settings = write_config(decoder.config, for_evaluation, max_length)
    settings["dtype"] = str(_dtype(decoder)).removeprefix("torch.")
    weights = write_weights(decoder.config, decoder.state_dict(), "files")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as path:
        safetensors.save_file(weights, path, metadata={"format": "pt"})
    write_atomically(folder / "config.json", json.dumps(settings, indent=2) + "\n")


def _decoder(config: DecoderConfig, weights: dict[str, Tensor]) -> Decoder:
    """A decoder of ``config`` that holds ``weights``, each flat; none is initialised first."""
    with torch.device("meta"):
        decoder = Decoder(config)
    shaped = {name: weights[name].view(parameter.shape) for name, parameter in decoder.state_dict().items()}
    decoder.load_state_dict(shaped, strict=True, assign=True)
    return decoder


def _dtype(decoder: Decoder) -> torch.dtype:
    dtypes = {parameter.dtype for parameter in decoder.parameters()}
    require(len(dtypes) == 1, "decoder", f"of {sorted(map(str, dtypes))}", "of one dtype")
    return dtypes.pop()


def _json(path: Path) -> Any:
    require(path.is_file(), "model_or_folder", str(path.parent), f"a folder with {path.name}")
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _tensors(folder: Path) -> Iterator[tuple[Collection[str], Callable[[str], Tensor]]]:
    """The names of all tensors in a folder, and what reads one."""
    safetensors = _library("safetensors", "from_hf")
    index = None if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file() else _json(folder / INDEX)
    files = [WEIGHTS] if index is None else sorted(set(index["weight_map"].values()))
    with ExitStack() as opened:
        where: dict[str, Any] = {}
        for file in files:
            right = f"a folder with {file}" + ("" if index else f" or {INDEX}")
            require((folder / file).is_file(), "model_or_folder", str(folder), right)
            shard = opened.enter_context(safetensors.safe_open(folder / file, framework="pt"))
            where |= dict.fromkeys(shard.keys(), shard)
        yield where, lambda name: where[name].get_tensor(name)


def _library(name: str, verb: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needs = name.partition(".")[0]
        raise ImportError(f'{verb} needs {needs}: pip install "sparse-toolkit[hf]"') from error
