"""PaliDecoder: pictures and prompts in, detections with scores out."""

from palidecode.pipeline.checkpoint import ModelOptions
from palidecode.pipeline.decoder import AskOptions, PaliDecoder, UnreadablePictureWarning
from palidecode.pipeline.reading import Generated
from palidecode.runtime.grammar import GrammarOptions

__all__ = [
    "AskOptions",
    "Generated",
    "GrammarOptions",
    "ModelOptions",
    "PaliDecoder",
    "UnreadablePictureWarning",
]
