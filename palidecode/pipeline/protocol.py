"""The protocol of what answers prompts about pictures: an engine in this process, or a server."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from palidecode.files import Picture, PictureBytes
from palidecode.pipeline.reading import Generated, Tokens
from palidecode.runtime.generate import Judge
from palidecode.runtime.image import Shrunk
from palidecode.runtime.options import GenerateOptions, GrammarOptions, OnToken


@dataclass(frozen=True, eq=False)
class SentPicture:
    """A picture as a server is sent it.

    Attributes
    ----------
    data : bytes
    mime : str
    size : tuple of 2 int
        Width and height of the picture, EXIF rotation applied.
    name : str
    """

    data: bytes
    mime: str
    size: tuple[int, int]
    name: str = ""

    def url(self) -> str:
        """Return it as a ``data:`` address."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


Seen: TypeAlias = Shrunk | SentPicture
"""A picture as it is given to what answers."""


class Answerer(Protocol):
    """An engine or a server that answers; see `Asker` and `RemoteAsker`."""

    @property
    def name(self) -> str:
        """The engine or the server, for people."""

    @property
    def tokens(self) -> Tokens:
        """The meaning of the token ids of its answers."""

    @property
    def side(self) -> int | None:
        """Pixels of a side of the pictures that the model sees; None where they aren't known."""

    def see(self, picture: Picture | PictureBytes) -> Seen:
        """Open a picture and keep what is asked about."""

    def forget_pictures(self) -> None:
        """Forget what is kept of the last pictures."""

    def generate(
        self,
        pictures: Sequence[Sequence[Picture | Seen]],
        prompts: Sequence[str],
        grammar: bool | GrammarOptions,
        options: GenerateOptions,
        batch_size: int,
        on_token: OnToken | None,
        box_image: int = 0,
        judge: Judge | None = None,
    ) -> list[Generated]:
        """Answer each prompt about its pictures; see `PaliDecoder.generate`."""
