"""The decoder assembled from a config, and made sparse from a dense one."""

from toolkit.models.config import AttentionConfig, BlockConfig, DecoderConfig, FeedForwardConfig, MoEConfig
from toolkit.models.decoder import Decoder, DecoderOutput
from toolkit.models.upcycle import upcycle

__all__ = [
    "AttentionConfig",
    "BlockConfig",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "FeedForwardConfig",
    "MoEConfig",
    "upcycle",
]
