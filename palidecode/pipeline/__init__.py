"""PaliDecoder: pictures and prompts in, detections with scores out."""

from palidecode.pipeline.decoder import PaliDecoder, UnreadablePictureWarning
from palidecode.pipeline.reading import Generated

__all__ = ["Generated", "PaliDecoder", "UnreadablePictureWarning"]
