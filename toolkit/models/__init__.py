"""The decoder assembled from a config."""

from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.decoder import Decoder, DecoderOutput

__all__ = [
    "AttentionConfig",
    "BlockConfig",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "FeedForwardConfig",
    "MoEConfig",
]
