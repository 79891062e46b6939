"""What a Hugging Face config leaves to its model's code, by model type: read off transformers 5.23."""

from __future__ import annotations

INTERLEAVED = frozenset(
    {
        "axk1",
        "axk2",
        "bailing_hybrid",
        "blt",
        "blt_global_transformer",
        "blt_local_decoder",
        "blt_local_encoder",
        "blt_patcher",
        "codegen",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "dots3_note_text",
        "ernie4_5",
        "ernie4_5_moe",
        "glm",
        "glm4",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gptj",
        "helium",
        "llama4_text",
        "longcat_flash",
        "mistral4",
        "mistral_large4_text",
        "moonshine",
        "moonshine_streaming",
        "openai_privacy_filter",
        "pe_audio_encoder",
        "pe_audio_video_encoder",
        "pe_video_encoder",
        "youtu",
    }
)
"""Model types that pair dims (2k, 2k + 1), unless ``rope_interleave`` says otherwise; others pair (k, k + d / 2)."""

LATENT = {
    "axk1": True,
    "axk2": True,
    "bailing_hybrid": True,
    "deepseek_v2": True,
    "deepseek_v3": True,
    "deepseek_v32": True,
    "deepseek_v4": False,
    "dots3_note_text": False,
    "glm4_moe_lite": True,
    "glm_moe_dsa": True,
    "hy_v4": True,
    "longcat_flash": True,
    "minicpm3": True,
    "mistral4": True,
    "mistral_large4_text": True,
    "youtu": True,
}
"""Model types with dims of their own for the rotation, and whether mscale_all_dim of YaRN scales their softmax."""

FRACTIONS = {
    "bamba": 0.5,
    "dots3_note_audio_encoder": 0.5,
    "glm": 0.5,
    "glm4": 0.5,
    "glm4_moe": 0.5,
    "glmasr_encoder": 0.5,
    "gpt_neox": 0.25,
    "moonshine": 0.9,
    "nemotron": 0.5,
    "persimmon": 0.5,
    "phi": 0.5,
    "qwen3_next": 0.25,
    "recurrent_gemma": 0.5,
    "stablelm": 0.25,
}
"""Model types that rotate a part of each head where their config says nothing of it."""

UNHEEDED_ROTARY_DIM = frozenset({"minimax_m3_vl_text"})
"""Model types whose code rotates whole heads, whatever the ``rotary_dim`` of their config."""

FIXED_BASES = {"codegen": 10_000.0, "gptj": 10_000.0}
"""Model types whose configs have no field for the base."""

_SECTIONS = "its positions have several axes (mrope), of sections that may be a default of its code"
_GRID = "its positions are the rows and columns of an image (axial)"
_NONE = "its attention has no rotary embedding, whatever its config says"

UNREAD = {
    "cohere_compass_text": _SECTIONS,
    "cosmos3_edge_text": _SECTIONS,
    "dinov3_vit": _GRID,
    "efficientloftr": _GRID,
    "eomt_dinov3": _GRID,
    "ernie4_5_vl_moe_text": _SECTIONS,
    "glm4v_moe_text": _SECTIONS,
    "glm4v_text": _SECTIONS,
    "glm5_next_text": _NONE,
    "glm_image_text": _SECTIONS,
    "glm_ocr_text": _SECTIONS,
    "hunyuan_vl_text": _SECTIONS,
    "kimi_linear": _NONE,
    "llama4_vision_model": _GRID,
    "musicflamingo": "its positions are audio windows and times in them (axial); its text_config may be read alone",
    "nanochat": "it turns by minus the angle",
    "neomme": _SECTIONS,
    "paddleocr_vl_text": _SECTIONS,
    "qwen2_5_omni_dit": "it rotates the first head alone",
    "qwen2_5_omni_talker": _SECTIONS,
    "qwen2_5_omni_text": _SECTIONS,
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl_text": _SECTIONS,
    "qwen3_5_moe_text": _SECTIONS,
    "qwen3_5_text": _SECTIONS,
    "qwen3_omni_moe_talker_text": _SECTIONS,
    "qwen3_omni_moe_text": _SECTIONS,
    "qwen3_vl_moe_text": _SECTIONS,
    "qwen3_vl_text": _SECTIONS,
    "qwen4_exp_text": _SECTIONS,
    "sapiens2": _GRID,
}
"""Model types that :class:`RotaryEmbedding` does not serve, and why."""
