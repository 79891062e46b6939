"""Decoders against Hugging Face's Llama, Mistral and Mixtral: logits, gradients, folders, and what is not read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_cases import (
    DENSE,
    DIM,
    HIDDEN,
    MOE,
    TOLERANCE,
    VOCAB,
    WINDOW,
    assert_same_logits_and_gradients,
    assert_same_weights,
    config,
    made,
)
from torch import Tensor, nn

from toolkit.layers import auxiliary_losses
from toolkit.models import (
    DecoderConfig,
    FeedForwardConfig,
    MoEConfig,
    from_hf,
    save_hf,
    to_hf,
)
from toolkit.models.hf_weights import write_weights

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

CONFIGS = {
    "llama": config(kv_heads=None, tied_head=False),
    "llama-grouped-tied": config(),
    "llama-one-key-head": config(heads=2, kv_heads=1, rope_base=5e5, norm_eps=1e-3),
    "llama-wide-heads": config(head_dim=16, tied_head=False),
    "mistral-1": config(pattern=WINDOW.format(1), tied_head=False),
    "mistral-4": config(pattern=WINDOW.format(4)),
    "mixtral": config(MOE, rope_base=1e6, tied_head=False),
    "mixtral-tied": config(replace(MOE, top_k=3)),
    "mixtral-window": config(MOE, pattern=WINDOW.format(5), tied_head=False),
    "mixtral-window-100": config(MOE, pattern=WINDOW.format(100)),
}
every_config = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)


@every_config
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_and_all_gradients_are_hugging_faces(settings: DecoderConfig, dtype: torch.dtype) -> None:
    decoder = made(settings, dtype)
    theirs = to_hf(decoder)
    assert type(theirs).__name__.lower().startswith(theirs.config.model_type)
    assert theirs.dtype == dtype
    assert_same_logits_and_gradients(decoder, theirs)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Mixtral"])
@pytest.mark.parametrize("tied_head", [True, False])
def test_a_model_of_theirs_is_read(kind: str, tied_head: bool) -> None:
    theirs = their_model(kind, tie_word_embeddings=tied_head)
    decoder = from_hf(theirs)
    assert decoder.config.tied_head == tied_head
    assert not decoder.training
    assert_same_logits_and_gradients(decoder, theirs)


def their_model(kind: str, **settings: Any) -> Any:
    sizes = {"vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": HIDDEN, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"Mistral": {"sliding_window": 4}, "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2}}
    settings = {**sizes, **heads, **more.get(kind, {}), "eos_token_id": None, **settings}
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model.eval()


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_the_same_bits_and_the_same_config(settings: DecoderConfig, dtype: torch.dtype) -> None:
    decoder = made(settings, dtype)
    back = from_hf(to_hf(decoder))
    assert back.config == decoder.config
    assert_same_weights(back, decoder)


@every_config
def test_what_is_saved_here_is_loaded_there_and_here(settings: DecoderConfig, tmp_path: Path) -> None:
    decoder = made(settings)
    save_hf(decoder, tmp_path / "new" / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "folder")
    assert_same_weights(theirs, to_hf(decoder))
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}
    back = from_hf(tmp_path / "new" / "folder")
    assert back.config == decoder.config
    assert_same_weights(back, decoder)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Mixtral"])
@pytest.mark.parametrize(
    "how",
    [{}, {"max_shard_size": "9KB"}, {"save_original_format": False}],
    ids=["one-file", "shards", "names-of-modules"],
)
def test_what_they_save_is_read_here(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    theirs = their_model(kind)
    theirs.save_pretrained(tmp_path, **how)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == ("max_shard_size" in how)
    decoder = from_hf(tmp_path)
    assert decoder.config == from_hf(theirs).config
    assert_same_weights(decoder, from_hf(theirs))
    ids = torch.randint(VOCAB, (2, 9))
    torch.testing.assert_close(decoder(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


@every_config
def test_greedy_generation_is_theirs(settings: DecoderConfig) -> None:
    decoder = made(settings)
    prompt = torch.randint(VOCAB, (2, 6))
    theirs: Any = to_hf(decoder)
    how = {"do_sample": False, "attention_mask": torch.ones_like(prompt)}
    # Their cache of a window of one keeps all keys, as x[-0:] is all of x.
    how["use_cache"] = settings != CONFIGS["mistral-1"]
    expected = theirs.generate(prompt, max_new_tokens=10, **how)
    assert torch.equal(decoder.generate(prompt, 10, temperature=0), expected)


SCALINGS = [
    "LinearScaling(factor=3)",
    "DynamicNTKScaling(factor=2.0, original_length=8)",
    "YaRNScaling(factor=4, original_length=8, beta_fast=4, truncate=False)",
    "YaRNScaling(4, 8, attention_factor=1.25)",
    "LongRoPEScaling((1.0, 1.1, 1.2, 1.3), (1.5, 2.0, 3.0, 5.0), original_length=8, factor=4)",
    "Llama3Scaling(factor=8, original_length=12)",
    "ProportionalScaling(fraction=0.5)",
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("feed_forward", [DENSE, MOE], ids=["dense", "moe"])
def test_scaled_rotary_embeddings_are_theirs(
    scaling: str, feed_forward: FeedForwardConfig | MoEConfig, tmp_path: Path
) -> None:
    """At 23 tokens, beyond the length trained on: logits and gradients, there and back, and in a folder."""
    decoder = made(config(feed_forward, rope_scaling=scaling))
    assert_same_logits_and_gradients(decoder, to_hf(decoder))
    save_hf(decoder, tmp_path)
    for source in (to_hf(decoder), tmp_path):
        rope = from_hf(source).blocks[0].attention.rope
        assert rope.scaling == decoder.blocks[0].attention.rope.scaling  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Mixtral"])
def test_fields_left_out_are_what_transformers_takes(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 11, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {
        "num_attention_heads": 16,
        **({"num_local_experts": 2, "num_experts_per_tok": 2} if kind == "Mixtral" else {}),
    }
    whole = getattr(transformers, f"{kind}Config")(**sizes)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(whole)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind.lower(), **sizes}))
    assert from_hf(tmp_path).config == from_hf(theirs).config


def test_older_files_are_read(tmp_path: Path) -> None:
    decoder = made(config(rope_base=5e5))
    save_hf(decoder, tmp_path)
    change_config(tmp_path, rope_parameters=None, rope_theta=5e5, rope_scaling=None, torch_dtype="float32")
    old = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": decoder.embedding.weight}
    change_weights(tmp_path, lambda weights: weights | {name: part.detach().clone() for name, part in old.items()})
    assert from_hf(tmp_path).config == decoder.config
    assert_same_weights(from_hf(tmp_path), decoder)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    safetensors.save_file(change(safetensors.load_file(path)), path)


def test_the_dtype_is_the_weights_or_what_is_asked(tmp_path: Path) -> None:
    decoder = made(config(MOE), torch.bfloat16)
    save_hf(decoder, tmp_path)
    for source in (tmp_path, to_hf(decoder)):
        assert {part.dtype for part in from_hf(source).parameters()} == {torch.bfloat16}
        assert_same_weights(from_hf(source, dtype=torch.float64), decoder.double())
        decoder.bfloat16()
    change_weights(tmp_path, lambda weights: weights | {"model.norm.weight": weights["model.norm.weight"].float()})
    with pytest.raises(ValueError, match=r"dtype=None: it must be given: model\.norm\.weight is torch\.float32"):
        from_hf(tmp_path)
    assert from_hf(tmp_path, torch.float32).norm.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype=torch\.int64"):
        from_hf(tmp_path, torch.int64)


def test_weights_are_copies_the_mode_is_carried_and_nothing_is_drawn() -> None:
    decoder = made(config(MOE)).train()
    state = torch.get_rng_state()
    theirs: Any = to_hf(decoder)
    back = from_hf(theirs)
    assert torch.equal(torch.get_rng_state(), state)
    assert theirs.training
    assert back.training
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert all(parameter.requires_grad for parameter in back.parameters())
    assert_same_weights(back, decoder)


@pytest.mark.parametrize(("top_k", "coefficient"), [(2, 0.02), (3, 0.001)])
def test_the_balance_loss_of_one_layer_is_theirs(top_k: int, coefficient: float) -> None:
    theirs = their_model(
        "Mixtral",
        num_hidden_layers=1,
        num_local_experts=5,
        num_experts_per_tok=top_k,
        router_aux_loss_coef=coefficient,
        output_router_logits=True,
    )
    decoder, ids = from_hf(theirs).train(), torch.randint(VOCAB, (2, 9))
    decoder(ids)
    losses = auxiliary_losses(decoder)
    assert losses.keys() == {"balance"}
    torch.testing.assert_close(losses["balance"], coefficient * theirs(ids).aux_loss)


@pytest.mark.parametrize(
    ("top_k", "balance", "jitter", "router"),
    [
        (2, 0.0, 0.0, None),
        (3, 0.01, 0.0, None),
        (2, 0.01, 0.1, "TopKRouter(noise=Jitter(0.1), losses=[LoadBalancingLoss(0.01)])"),
        (3, 0.0, 0.25, "TopKRouter(noise=Jitter(0.25), losses=[])"),
        (1, 0.07, 0.0, "TopKRouter(normalize=True, losses=[LoadBalancingLoss(0.07)])"),
        (1, 1e-05, 0.1, "TopKRouter(normalize=True, noise=Jitter(0.1), losses=[LoadBalancingLoss(1e-05)])"),
    ],
)
@pytest.mark.filterwarnings("ignore:normalize=True with top_k=1")
def test_mixtrals_router_is_carried(top_k: int, balance: float, jitter: float, router: str | None) -> None:
    # At perfect balance their loss is top_k, so that the coefficient there is ours over top_k.
    fields = {"router_aux_loss_coef": balance / top_k, "router_jitter_noise": jitter}
    theirs = their_model("Mixtral", num_experts_per_tok=top_k, **fields)
    decoder = from_hf(theirs)
    moe = decoder.config.blocks[0].feed_forward
    assert isinstance(moe, MoEConfig)
    assert moe.router == router
    if router is None:
        assert (moe.balance, moe.z_loss) == (balance, 0.0)
    assert_same_logits_and_gradients(decoder, theirs)
    back: Any = to_hf(decoder)
    assert {name: getattr(back.config, name) for name in fields} == pytest.approx(fields)
    assert from_hf(back).config == decoder.config


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': it must be one of 'llama', 'mistral', 'mixtral'"),
        ({"model_type": None}, "model_type=None"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"sliding_window": 8}, "sliding_window=8"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position_embeddings=None"),
        ({"rope_parameters": None, "rope_scaling": {"type": "swirl", "factor": 2.0}}, "rope_type='swirl'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_key_value_heads": 3}, "kv_heads=3"),
        ({"vocab_size": VOCAB + 1}, r"model\.embed_tokens\.weight\.shape=\(37, 32\): it must be \(38, 32\)"),
        ({"num_hidden_layers": 1}, r"weights='model\.layers\.1.* and 6 more': it must be left out"),
        ({"num_hidden_layers": 3}, r"weights='model\.layers\.2.* and 6 more': it must be there"),
        ({"tie_word_embeddings": False}, r"weights='lm_head\.weight': it must be there"),
    ],
)
def test_a_config_that_no_decoder_has_is_refused(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    save_hf(made(config()), tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(ValueError, match=named):
        from_hf(tmp_path)


@pytest.mark.parametrize("layout", ["files", "modules"])
@pytest.mark.parametrize("fault", ["missing", "left over", "shape", "untied"])
def test_tensors_that_do_not_fit_are_refused(layout: str, fault: str, tmp_path: Path) -> None:
    decoder = made(config(MOE))
    save_hf(decoder, tmp_path)
    weights = write_weights(decoder.config, decoder.state_dict(), layout)
    name = next(name for name in weights if ".experts." in name and name.startswith("model.layers.1."))
    extra = torch.zeros(VOCAB, DIM)
    changed: dict[str, tuple[dict[str, Tensor], str]] = {
        "missing": ({other: part for other, part in weights.items() if other != name}, f"{name}': it must be there"),
        "left over": (weights | {"score.weight": extra}, "score.weight': it must be left out"),
        "shape": (weights | {name: weights[name][..., :-1]}, f"{name}.shape="),
        "untied": (weights | {"lm_head.weight": extra}, "tie_word_embeddings=True"),
    }
    parts, named = changed[fault]
    change_weights(tmp_path, lambda _: {other: part.clone() for other, part in parts.items()})
    with pytest.raises(ValueError, match=named):
        from_hf(tmp_path)


def test_what_is_no_model_or_folder_of_theirs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_or_folder='Linear'"):
        from_hf(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"it must be a folder with config\.json"):
        from_hf(tmp_path)
    their_model("Llama").save_pretrained(tmp_path, max_shard_size="9KB")
    min(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="it must be a folder with model-00001-of-"):
        from_hf(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"a folder with model\.safetensors or model\.safetensors\.index\.json"):
        from_hf(str(tmp_path))


def test_folders_need_no_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = made(config(MOE))
    monkeypatch.setitem(sys.modules, "transformers", None)
    save_hf(decoder, tmp_path)
    assert_same_weights(from_hf(tmp_path), decoder)
    with pytest.raises(ImportError, match=r"to_hf needs transformers: pip install .*\[hf\]"):
        to_hf(decoder)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="from_hf needs safetensors"):
        from_hf(tmp_path)
    with pytest.raises(ImportError, match="save_hf needs safetensors"):
        save_hf(decoder, tmp_path)


def test_the_longest_context_is_what_is_asked_or_what_the_scaling_serves(tmp_path: Path) -> None:
    def written(scaling: str | None, **how: int) -> int:
        save_hf(made(config(rope_scaling=scaling)), tmp_path, **how)
        return int(json.loads((tmp_path / "config.json").read_text()).get("max_position_embeddings", 0))

    assert written(None) == 0
    assert written(None, max_length=131072) == 131072
    assert written("YaRNScaling(factor=8, original_length=4096)") == 32768
    with pytest.raises(ValueError, match="rope_scaling"):
        written("DynamicNTKScaling(factor=2.0, original_length=8)", max_length=64)
    with pytest.raises(ValueError, match="max_length=0"):
        written(None, max_length=0)


def test_both_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    save_hf(made(config()), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
