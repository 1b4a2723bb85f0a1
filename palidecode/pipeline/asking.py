"""Ask an engine about pictures, batch by batch, and remember the last pictures and grammars."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError, warn
from palidecode.files import Picture, check_picture, open_picture, picture_name
from palidecode.pipeline.reading import Generated, UnreadablePictureWarning
from palidecode.runtime.engine import Engine, Features
from palidecode.runtime.generate import cache_length, generate
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.image import ImageConfig, Shrunk, shrink
from palidecode.runtime.options import GenerateOptions, GrammarOptions, OnToken
from palidecode.runtime.tokenizer import Tokenizer

_KEPT_FEATURES = 8  # pictures whose image tokens are kept for the next prompt
_KEPT_GRAMMARS = 64


class Asker:
    """An engine that remembers the last pictures and grammars.

    Attributes
    ----------
    features : dict of bytes to image tokens
        Image tokens of the last pictures, by a hash of their pixels.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, image_config: ImageConfig) -> None:
        self._engine, self._tokenizer, self._image_config = engine, tokenizer, image_config
        self.features: dict[bytes, Features] = {}
        self._grammars: dict[tuple[str, GrammarOptions], Grammar | None] = {}

    def generate(
        self,
        pictures: Sequence[Picture | Shrunk],
        prompts: Sequence[str],
        grammar: bool | GrammarOptions,
        options: GenerateOptions,
        batch_size: int,
        on_token: OnToken | None,
    ) -> list[Generated]:
        """Answer each prompt about its picture; see `PaliDecoder.generate`."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        full = [picture for picture in pictures if not isinstance(picture, Shrunk)]
        for picture in full:
            check_picture(picture)
        encoded = [self._tokenizer.encode_prompt(prompt) for prompt in prompts]
        # Before anything is computed.
        cache_length(self._engine.config, max(map(len, encoded), default=0), options.max_new_tokens)
        grammars = [self._grammar(prompt, grammar) for prompt in prompts]
        answers: list[Generated] = []
        unreadable: dict[int, InputError] = {}
        names = ["" if isinstance(item, Shrunk) else picture_name(item) for item in pictures]
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            opened = self._see_all(pictures[part], unreadable)
            answers += self._batch(
                opened, prompts[part], encoded[part], grammars[part], options, on_token, start
            )
        return [replace(answer, name=name) for answer, name in zip(answers, names, strict=True)]

    def _grammar(self, prompt: str, wanted: bool | GrammarOptions) -> Grammar | None:
        if wanted is False:
            return None
        options = GrammarOptions() if wanted is True else wanted
        key = (prompt, options)
        if key not in self._grammars:
            if len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.clear()
            self._grammars[key] = Grammar.of(self._tokenizer, prompt, options)
        return self._grammars[key]

    def _batch(
        self,
        opened: Sequence[Shrunk | InputError],
        prompts: Sequence[str],
        encoded: Sequence[list[int]],
        grammars: Sequence[Grammar | None],
        options: GenerateOptions,
        on_token: OnToken | None,
        start: int,
    ) -> list[Generated]:
        """Answer one batch, from answer `start` on, without the pictures that can't be read."""
        fine = [(row, item) for row, item in enumerate(opened) if isinstance(item, Shrunk)]
        answers = [
            Generated(prompt, error="" if isinstance(item, Shrunk) else str(item))
            for prompt, item in zip(prompts, opened, strict=True)
        ]
        if not fine:
            return answers
        numbers = [start + row for row, _ in fine]
        made = generate(
            self._engine,
            self._encode(np.stack([picture.pixels for _, picture in fine])),
            [encoded[row] for row, _ in fine],
            self._tokenizer.vocabulary,
            [grammars[row] for row, _ in fine],
            options,
            None if on_token is None else _renumbered(on_token, numbers),
            numbers,
        )
        for (row, picture), tokens in zip(fine, made, strict=True):
            answers[row] = Generated(
                prompts[row],
                self._tokenizer.decode(tokens.token_ids),
                tokens.token_ids,
                tokens.logprobs,
                tokens.end_logprobs,
                picture.size,
                tokens.finished,
                tokens.distributions() if options.loc_probabilities else None,
            )
        return answers

    def _encode(self, pixels: npt.NDArray[np.float32]) -> list[Features]:
        """Encode each picture; equal pictures are encoded once."""
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in pixels]
        new = {key: row for row, key in enumerate(keys) if key not in self.features}
        if new:
            encoded = self._engine.encode_image(pixels[list(new.values())])
            self.features.update(zip(new, encoded, strict=True))
        features = [self.features[key] for key in keys]
        while len(self.features) > _KEPT_FEATURES:
            self.features.pop(next(iter(self.features)))
        return features

    def shrink(self, picture: Picture) -> Shrunk:
        """Open a picture and convert it to what the model sees of it."""
        return shrink(open_picture(picture), self._image_config)

    def _see_all(
        self, pictures: Sequence[Picture | Shrunk], unreadable: dict[int, InputError]
    ) -> list[Shrunk | InputError]:
        """Open every picture once, one at a time; the error of an unreadable one takes its place.

        `unreadable` holds the errors of earlier batches: each warns once.
        """
        seen: list[Shrunk | InputError] = []
        same: dict[int, Shrunk | InputError] = {**unreadable}
        for picture in pictures:
            if isinstance(picture, Shrunk):
                seen.append(picture)
                continue
            if id(picture) not in same:
                try:
                    same[id(picture)] = self.shrink(picture)
                except InputError as error:
                    same[id(picture)] = unreadable[id(picture)] = error
                    warn(str(error), UnreadablePictureWarning)
            seen.append(same[id(picture)])
        return seen


def _renumbered(on_token: OnToken, rows: Sequence[int]) -> OnToken:
    return lambda row, token, logprob: on_token(rows[row], token, logprob)
