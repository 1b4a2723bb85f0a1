"""PaliDecoder: pictures and prompts in, detections with scores out."""

from palidecode.pipeline.checkpoint import ModelOptions
from palidecode.pipeline.decoder import AskOptions, PaliDecoder
from palidecode.pipeline.endpoint import EndpointOptions
from palidecode.pipeline.reading import Found, Generated, UnreadablePictureWarning
from palidecode.pipeline.session import Question, Session
from palidecode.pipeline.text_length import LongTextWarning
from palidecode.runtime.image import Shrunk
from palidecode.runtime.options import GrammarOptions

__all__ = [
    "AskOptions",
    "EndpointOptions",
    "Found",
    "Generated",
    "GrammarOptions",
    "LongTextWarning",
    "ModelOptions",
    "PaliDecoder",
    "Question",
    "Session",
    "Shrunk",
    "UnreadablePictureWarning",
]
