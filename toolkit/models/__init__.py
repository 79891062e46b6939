"""The decoder assembled from a config, made sparse from a dense one, and to and from Hugging Face."""

from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.decoder import Decoder, DecoderOutput
from toolkit.models.hugging_face import from_hf, save_hf, to_hf
from toolkit.models.upcycle import upcycle

__all__ = [
    "AttentionConfig",
    "BlockConfig",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "FeedForwardConfig",
    "MoEConfig",
    "from_hf",
    "save_hf",
    "to_hf",
    "upcycle",
]
