"""The options of a request, and reading them."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar

import msgspec

from palidecode.answers.scoring import DEFAULT_SCORE, Score
from palidecode.errors import InputError
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.pipeline import AskOptions
from palidecode.pipeline.decoder import DEFAULT_TOKENS
from palidecode.serve.refusals import Refused
from palidecode.serve.settings import Settings

T = TypeVar("T")
Segmentation: TypeAlias = Literal["polygons", "rle", "none"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a request; see `PaliDecoder.detect` for most of them.

    Attributes
    ----------
    max_new_tokens : int, optional
        By default 256, or the server's limit if that is lower.
    segmentation : {"polygons", "rle", "none"}
        Form of the masks.
    min_score : float
        Objects below it are left out.
    box_image : int
        Index of the picture that boxes are measured in, of several.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    grammar: bool = True
    score: Score = DEFAULT_SCORE
    sub_bin: bool = False
    divisor: int = DEFAULT_DIVISOR
    clip: bool = False
    segmentation: Segmentation = "polygons"
    min_score: float = 0.0
    box_image: int = 0

    def asking(self, settings: Settings) -> AskOptions:
        """Return the options of asking a model, within the server's limits."""
        tokens, most = self.max_new_tokens, settings.max_new_tokens
        if tokens is None:
            tokens = min(DEFAULT_TOKENS, most)
        if tokens > most:
            raise Refused(400, f"max_new_tokens is {tokens}: this server writes at most {most}")
        if self.divisor not in (1023, 1024):
            raise Refused(400, f"divisor must be 1024 or 1023, got {self.divisor}")
        try:
            return AskOptions(
                self.grammar,
                "allowed" if self.grammar else "vocabulary",
                self.score,
                self.sub_bin,
                self.divisor,
                self.clip,
                tokens,
                self.temperature,
                self.top_p,
                self.seed,
            )
        except InputError as error:
            raise Refused(400, f"options: {error}") from error


def read_json(data: bytes | str, kind: type[T], what: str = "the body") -> T:
    """Read JSON as a type; refuse other JSON, and name the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"{what}: {error}") from error


def converted(value: object, kind: type[T], what: str) -> T:
    """Convert JSON values to a type; refuse others, and name the field."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.MsgspecError as error:
        raise Refused(400, f"{what}: {error}") from error
