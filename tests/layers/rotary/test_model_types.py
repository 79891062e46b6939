"""Every config of transformers at its defaults: read as its model's own code rotates, refused, or listed here.

A new release that brings a model we would misread fails here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.layers import RotaryEmbedding
from toolkit.layers.rotary.model_types import (
    FIXED_BASES,
    FRACTIONS,
    INTERLEAVED,
    LATENT,
    UNHEEDED_ROTARY_DIM,
    UNREAD,
)

WITHOUT_A_CLASS = {
    "codegen",  # a table of angles that its attention holds
    "gptj",  # the same
}
"""Model types that rotate by other means than a ``RotaryEmbedding``: compared in tests of their own."""

UNREAD_DEFAULTS = {
    "blt": "head_dim=None",  # it holds a config for each of its parts, which are read
    "glm4_moe": "fraction=0.5",  # half of 42 dims, which are odd; its checkpoints have 128
}
"""Models of text that we read, but not at default values, and how the error begins."""

OWN_APPLY = {
    "dots3_note_audio_encoder": "apply_rotary_pos_emb",  # the interleaved one is the text's
}
"""The function a model rotates by, where the first of ``APPLY`` in its module is another's."""

OWN_CLASS = {
    "qwen3_omni_moe_talker_code_predictor": "Qwen3OmniMoeRotaryEmbedding",  # annotated with the whole's config
}
"""The embedding of a model, where its module holds several and annotations do not say which."""

FILLED_IN = ("partial_rotary_factor", "rotary_pct", "rope_interleave")

APPLY = ("apply_rotary_pos_emb_interleave", "apply_rotary_pos_emb", "apply_rotary_emb")

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096}


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    """Every config at its defaults that holds no other of text; the few that need arguments are left out."""
    return dict(defaults())


def defaults() -> Iterator[tuple[str, Any]]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for name in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:  # huggingface_hub's own classes of errors
            continue
        if getattr(config, "text_config", None) is None:
            yield name, config


def code_of(config: Any) -> Any:
    """Its module of modeling code, which for some is Llama's; None if there is none."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    own = type(config).__module__.replace(".configuration_", ".modeling_")
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    try:
        return importlib.import_module(own)
    except ModuleNotFoundError:
        return None if name is None else importlib.import_module(getattr(transformers, name).__module__)


def embeddings(config: Any, code: Any) -> list[Any]:
    """Those classes of rotary embedding that are annotated with this config; if none is, all for no image."""
    found = [thing for name, thing in vars(code).items() if inspect.isclass(thing) and name.endswith("RotaryEmbedding")]
    found = [kind for kind in found if kind.__name__ == OWN_CLASS.get(config.model_type)] or found
    annotated = {kind: inspect.signature(kind).parameters.get("config") for kind in found}
    own = [kind for kind, argument in annotated.items() if argument and argument.annotation is type(config)]
    return own or [kind for kind, argument in annotated.items() if argument and "Vision" not in kind.__name__]


def layer_types(config: Any) -> list[str | None]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [name for name, value in parameters.items() if isinstance(value, Mapping)]
    return [*nested] or [None]


def of_several_axes(config: Any, code: Any) -> bool:
    return any("mrope" in inspect.getsource(kind) for kind in embeddings(config, code))


def inv_freq_of(embedding: Any, layer_type: str | None) -> tuple[Tensor, float] | None:
    prefix = "" if layer_type is None else f"{layer_type}_"
    inv_freq = getattr(embedding, f"{prefix}inv_freq", None)
    return None if inv_freq is None else (inv_freq, getattr(embedding, f"{prefix}attention_scaling", 1.0))


def their_scores(config: Any, code: Any, embedding: Any, layer_type: str | None, q: Tensor, k: Tensor) -> Tensor:
    """q and k (1, 2, 9, dims that are rotated) at positions 0 to 8, rotated by the model's own functions."""
    allowed = APPLY if getattr(config, "rope_interleave", True) else APPLY[1:]
    apply = next(
        getattr(code, name) for name in (OWN_APPLY.get(config.model_type, ""), *allowed) if hasattr(code, name)
    )
    table = embedding(q, torch.arange(9)[None], *([] if layer_type is None else [layer_type]))
    parameters = inspect.signature(apply).parameters
    if "freqs_cis" in parameters:  # complex; Llama 4's queries are (batch, length, heads, head_dim)
        turned = [x.transpose(1, 2) if apply.__module__.endswith("llama4") else x for x in (q, k)]
        rotated = [x if turned[0] is q else x.transpose(1, 2) for x in apply(*turned, table)]
    else:
        rotated = list(apply(q, k, *table)) if "k" in parameters else [apply(x, *table) for x in (q, k)]
    return rotated[0] @ rotated[1].mT


def misread(config: Any, code: Any, layer_type: str | None) -> str | None:
    """What of our reading is not the model's, if anything is."""
    mine = RotaryEmbedding.from_hf(config, layer_type)
    if of_several_axes(config, code):
        return "positions of several axes"
    found = [kind(config) for kind in embeddings(config, code)]
    given = [(embedding, inv_freq_of(embedding, layer_type)) for embedding in found]
    if not given:
        return "no rotary embedding of theirs to compare with"
    inv_freq, factor = mine.frequencies(1)
    whole = RotaryEmbedding(mine.rotary_dim, mine.base, interleaved=mine.interleaved)
    q, k = torch.randn(2, 1, 2, 9, mine.rotary_dim, generator=torch.Generator().manual_seed(0)).unbind()
    for embedding, theirs in given:
        if theirs is None:
            if not hasattr(embedding, "layer_types") or layer_type in embedding.layer_types:
                return "no inv_freq of theirs"
            continue  # the default has no layer of this type
        if theirs[0].shape != inv_freq.shape:
            return f"{inv_freq.shape} frequencies for {theirs[0].shape}"
        if not torch.allclose(inv_freq, theirs[0], rtol=1e-5, atol=0) or abs(factor - theirs[1]) > 1e-6:
            return f"inv_freq or its factor: {factor} for {theirs[1]}"
        whole.frequencies = lambda *_: (inv_freq, factor)  # type: ignore[method-assign]
        ours = whole(q, k)
        if not torch.allclose(ours[0] @ ours[1].mT, their_scores(config, code, embedding, layer_type, q, k), atol=1e-3):
            return f"scores, at interleaved={mine.interleaved}"
    return None


def refusal(config: Any, layer_type: str | None) -> str | None:
    try:
        RotaryEmbedding.from_hf(config, layer_type)
    except ValueError as error:
        return str(error)
    return None


def test_every_config_of_transformers_is_read_as_its_own_code_does_or_refused(configs: dict[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    wrong, read = {}, 0
    for name, config in configs.items():
        for layer_type in layer_types(config) if name not in WITHOUT_A_CLASS else ():
            refused = refusal(config, layer_type)
            code = None if refused and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else code_of(config)
            if refused is None:
                wrong[name, layer_type] = misread(config, code, layer_type)
                read += 1
            elif code is not None and embeddings(config, code) and config.model_type not in UNREAD:
                expected = name in UNREAD_DEFAULTS and refused.startswith(UNREAD_DEFAULTS[name])
                wrong[name, layer_type] = None if expected else f"refused: {refused}"
    print(f"\n{read} rotary embeddings compared")
    assert {key: what for key, what in wrong.items() if what is not None} == {}
    assert read > 150


def test_a_file_that_leaves_out_fraction_and_layout_is_read_as_transformers_fills_them_in(
    configs: dict[str, Any],
) -> None:
    wrong, read = {}, 0
    for name, config in configs.items():
        if layer_types(config) != [None] or refusal(config, None):
            continue
        written = {key: value for key, value in config.to_dict().items() if key not in FILLED_IN}
        if written.get("rope_parameters"):
            rope = written["rope_parameters"].items()
            written["rope_parameters"] = {key: value for key, value in rope if key not in FILLED_IN}
        if refusal(written, None):  # such as for the names of its sizes
            continue
        both = [RotaryEmbedding.from_hf(form) for form in (written, type(config).from_dict(written))]
        mine, expected = [(rotary.fraction, rotary.interleaved) for rotary in both]
        read += 1
        if mine != expected:
            wrong[name] = mine, expected
    assert wrong == {}
    assert read > 120


@pytest.mark.parametrize("model_type", UNREAD)
def test_what_is_refused_is_refused_by_name(model_type: str) -> None:
    for written in ({"model_type": model_type}, {"text_config": {"model_type": model_type}}):
        with pytest.raises(ValueError, match=f"model_type='{model_type}': it must be one with a plain rotary"):
            RotaryEmbedding.from_hf({**written, "head_dim": 8, "rope_theta": 1e4})


def test_the_tables_hold_model_types_of_transformers_and_refuse_none_for_axes_it_has_not() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    named = {*INTERLEAVED, *LATENT, *FRACTIONS, *UNHEEDED_ROTARY_DIM, *FIXED_BASES, *UNREAD}
    assert named <= set(CONFIG_MAPPING)
    assert not set(UNREAD) & {*INTERLEAVED, *LATENT, *FRACTIONS, *FIXED_BASES}
    for name, fraction in FRACTIONS.items():
        assert CONFIG_MAPPING[name]().rope_parameters["partial_rotary_factor"] == fraction
    sections = [name for name, why in UNREAD.items() if "mrope" in why]
    plain = {name for name in sections if not of_several_axes(CONFIG_MAPPING[name](), code_of(CONFIG_MAPPING[name]()))}
    assert plain == set()
    for name in (name for name, why in UNREAD.items() if "has no rotary" in why):
        config = CONFIG_MAPPING[name]()
        assert embeddings(config, code_of(config)) == []


@pytest.mark.parametrize("model_type", LATENT)
def test_the_softmax_is_scaled_where_the_models_code_scales_it(model_type: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(model_type)
    rope = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
    written = {**theirs.to_dict(), "rope_parameters": rope}
    code = code_of(theirs)
    applied = hasattr(code, "yarn_apply_mscale")
    assert applied == ("self.scaling = yarn_apply_mscale(" in inspect.getsource(code)) == LATENT[model_type]
    expected = code.yarn_apply_mscale(rope, 1.0) if applied else 1.0
    assert RotaryEmbedding.from_hf(written).softmax_scale_multiplier == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("model_type", sorted(WITHOUT_A_CLASS))
def test_scores_are_those_of_models_that_hold_a_table_of_angles(model_type: str) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(model_type)
    mine, code = RotaryEmbedding.from_hf(theirs), code_of(theirs)
    q, k = torch.randn(2, 1, 2, 9, mine.head_dim, generator=torch.Generator().manual_seed(0)).unbind()
    sin, cos = code.create_sinusoidal_positions(9, theirs.rotary_dim)[None].chunk(2, dim=-1)
    rotated = []
    for x in (q.transpose(1, 2), k.transpose(1, 2)):
        part = code.apply_rotary_pos_emb(x[..., : theirs.rotary_dim], sin, cos)
        rotated.append(torch.cat([part, x[..., theirs.rotary_dim :]], -1).transpose(1, 2))
    for ours, other in zip(mine(q, k), rotated, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=2e-5)


def test_latent_attention_of_an_unlisted_type_is_refused() -> None:
    written = {"qk_rope_head_dim": 64, "rope_theta": 1e4}
    for model_type in ({}, {"model_type": "unheard_of"}):
        with pytest.raises(ValueError, match="model_type='.*': it must be one of axk1, .*latent attention"):
            RotaryEmbedding.from_hf({**written, **model_type})


def test_nanochat_turns_the_other_way() -> None:
    half = importlib.import_module("transformers.models.nanochat.modeling_nanochat").rotate_half
    llamas = importlib.import_module("transformers.models.llama.modeling_llama").rotate_half
    x = torch.randn(3, 8)
    assert torch.equal(half(x), -llamas(x))
