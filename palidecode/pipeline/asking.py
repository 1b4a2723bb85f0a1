"""Ask an engine about pictures, batch by batch, and remember the last pictures and grammars."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from palidecode.errors import InputError, warn
from palidecode.files import (
    Picture,
    PictureBytes,
    check_picture,
    open_encoded,
    open_picture,
    picture_name,
)
from palidecode.pipeline.protocol import Seen, SentPicture
from palidecode.pipeline.reading import Generated, Tokens, UnreadablePictureWarning
from palidecode.pipeline.text_length import TextLength
from palidecode.runtime.engine import Engine, Features
from palidecode.runtime.generate import GeneratedTokens, Judge, Request, cache_length, generate
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.image import ImageConfig, Shrunk, shrink
from palidecode.runtime.options import GenerateOptions, GrammarOptions, OnToken
from palidecode.runtime.tokenizer import Tokenizer

_KEPT_PICTURES = 8  # at least, whose image tokens are kept for the next prompt
_KEPT_TOKENS = 8192  # image tokens that are kept of more pictures
_KEPT_GRAMMARS = 64


class Asker:
    """An engine that remembers the last pictures and grammars.

    Attributes
    ----------
    engine : Engine
    tokenizer : Tokenizer
    image_config : ImageConfig
    features : dict of bytes to image tokens
        Image tokens of the last pictures, by a hash of their pixels.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        image_config: ImageConfig,
        text_length: TextLength,
    ) -> None:
        self.engine, self.tokenizer, self.image_config = engine, tokenizer, image_config
        self._text_length = text_length
        self.features: dict[bytes, Features] = {}
        self._grammars: dict[tuple[str, GrammarOptions], Grammar | None] = {}

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
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        for several in pictures:
            for picture in several:
                if isinstance(picture, SentPicture):
                    raise InputError("a picture that was read for a server isn't one for a model")
                if not isinstance(picture, Shrunk):
                    check_picture(picture)
        encoded = [
            self.encode(prompt, len(several), options.max_new_tokens)  # before anything is computed
            for prompt, several in zip(prompts, pictures, strict=True)
        ]
        grammars = [self._grammar(prompt, grammar) for prompt in prompts]
        answers = [Generated(prompt) for prompt in prompts]
        asked: Counter[bytes] = Counter()
        unreadable: dict[int, InputError] = {}
        for rows in _batches([len(several) for several in pictures], batch_size):
            opened = self._see_all([pictures[row] for row in rows], unreadable)
            made = self._batch(
                opened,
                [prompts[row] for row in rows],
                [encoded[row] for row in rows],
                [grammars[row] for row in rows],
                options,
                on_token,
                rows,
                asked,
                box_image,
                judge,
            )
            for row, answer in zip(rows, made, strict=True):
                named = pictures[row][box_image]
                name = "" if isinstance(named, Seen) else picture_name(named)
                answers[row] = replace(answer, name=name)
        return answers

    def encode(self, prompt: str, pictures: int, max_new_tokens: int) -> list[int]:
        """Encode a prompt about a number of pictures.

        Raises
        ------
        InputError
            If pictures, prompt and answer together have more tokens than the model can read, or
            the prompt spells a control token.
        """
        ids = self.tokenizer.encode_prompt(prompt)
        cache_length(pictures * self.engine.config.vision.tokens, len(ids), max_new_tokens)
        return ids

    def _grammar(self, prompt: str, wanted: bool | GrammarOptions) -> Grammar | None:
        if wanted is False:
            return None
        options = GrammarOptions() if wanted is True else wanted
        key = (prompt, options)
        if key not in self._grammars:
            if len(self._grammars) > _KEPT_GRAMMARS:
                self._grammars.clear()
            self._grammars[key] = Grammar.of(self.tokenizer, prompt, options)
        return self._grammars[key]

    def _batch(
        self,
        opened: Sequence[Sequence[Shrunk] | InputError],
        prompts: Sequence[str],
        encoded: Sequence[list[int]],
        grammars: Sequence[Grammar | None],
        options: GenerateOptions,
        on_token: OnToken | None,
        answer_numbers: Sequence[int],
        asked: Counter[bytes],
        box_image: int,
        judge: Judge | None,
    ) -> list[Generated]:
        """Answer one batch, without the pictures that can't be read.

        `asked` counts how often each question was asked before; it is updated.
        """
        fine = [(row, item) for row, item in enumerate(opened) if not isinstance(item, InputError)]
        answers = [
            Generated(prompt, error=str(item) if isinstance(item, InputError) else "")
            for prompt, item in zip(prompts, opened, strict=True)
        ]
        if not fine:
            return answers
        rows, seen = [row for row, _ in fine], [several for _, several in fine]
        keys = list(map(_keys_of, seen))
        numbers = [
            _number_of(its, prompts[row], asked) for row, its in zip(rows, keys, strict=True)
        ]
        made = generate(
            self.engine,
            self._encode(seen, keys),
            [encoded[row] for row in rows],
            self.tokenizer.vocabulary,
            [grammars[row] for row in rows],
            options,
            None
            if on_token is None
            else _renumbered(on_token, [answer_numbers[row] for row in rows]),
            numbers,
            judge,
        )
        for (row, several), tokens in zip(fine, made, strict=True):
            self._text_length.check(len(encoded[row]), len(tokens.token_ids))
            answers[row] = self.generated(prompts[row], tokens, several[box_image], options)
        return answers

    def generated(
        self, prompt: str, tokens: GeneratedTokens, picture: Shrunk, options: GenerateOptions
    ) -> Generated:
        """Return an answer, or the beginning of one, with its text."""
        return Generated(
            prompt,
            self.tokenizer.decode(tokens.token_ids),
            tokens.token_ids,
            tokens.logprobs,
            tokens.end_logprobs,
            picture.size,
            tokens.finished,
            tokens.distributions() if options.loc_probabilities else None,
        )

    def requests(
        self,
        pictures: Sequence[Sequence[Shrunk]],
        prompts: Sequence[str],
        grammars: Sequence[bool | GrammarOptions],
        options: Sequence[GenerateOptions],
    ) -> list[Request]:
        """Return the requests of prompts about pictures, which are encoded."""
        encoded = [
            self.encode(prompt, len(several), its.max_new_tokens)
            for prompt, several, its in zip(prompts, pictures, options, strict=True)
        ]
        by_count: dict[int, list[int]] = {}
        for row, several in enumerate(pictures):
            by_count.setdefault(len(several), []).append(row)
        features: dict[int, Features] = {}
        keys = list(map(_keys_of, pictures))
        for rows in by_count.values():
            seen, its = [pictures[row] for row in rows], [keys[row] for row in rows]
            features |= zip(rows, self._encode(seen, its), strict=True)
        return [
            Request(
                features[row],
                encoded[row],
                self._grammar(prompt, grammars[row]),
                options[row],
                _number_of(keys[row], prompt, Counter()),
            )
            for row, prompt in enumerate(prompts)
        ]

    def _encode(
        self, rows: Sequence[Sequence[Shrunk]], keys_of_rows: Sequence[Sequence[bytes]]
    ) -> list[Features]:
        """Encode the pictures of each row, whose keys are known; equal ones are encoded once."""
        pixels = np.stack([picture.pixels for several in rows for picture in several])
        keys = [key for its in keys_of_rows for key in its]
        new = {key: row for row, key in enumerate(keys) if key not in self.features}
        if new:
            encoded = self.engine.encode_image(pixels[list(new.values())])
            self.features.update(zip(new, encoded, strict=True))
        features = [self.features[key] for key in keys]
        for key in dict.fromkeys(keys):  # the last used is the last to go
            self.features[key] = self.features.pop(key)
        while len(self.features) > max(_KEPT_PICTURES, _KEPT_TOKENS // len(features[0])):
            self.features.pop(next(iter(self.features)))
        count = len(rows[0])
        if count == 1:
            return features
        each = range(0, len(features), count)
        return [self.engine.join(features[start : start + count]) for start in each]

    @property
    def name(self) -> str:
        """The engine, for people."""
        return self.engine.name

    @property
    def tokens(self) -> Tokens:
        """The meaning of the token ids of its answers."""
        return self.tokenizer

    @property
    def side(self) -> int:
        """Pixels of a side of the pictures that the model sees."""
        return self.image_config.size

    def shrink(self, picture: Picture) -> Shrunk:
        """Open a picture and convert it to what the model sees of it."""
        return shrink(open_picture(picture), self.image_config)

    def see(self, picture: Picture | PictureBytes) -> Shrunk:
        """Open a picture, or the content of its file, and convert it."""
        if isinstance(picture, PictureBytes):
            return self.shrink(open_encoded(picture.data, picture.name))
        return self.shrink(picture)

    def forget_pictures(self) -> None:
        """Clear the cache of image tokens of the last pictures."""
        self.features.clear()

    def _see_all(
        self, rows: Sequence[Sequence[Picture | Seen]], unreadable: dict[int, InputError]
    ) -> list[list[Shrunk] | InputError]:
        """Open every picture once, one at a time; the error of an unreadable one takes its row.

        `unreadable` holds the errors of earlier batches: each warns once.
        """
        same: dict[int, Shrunk | InputError] = {**unreadable}
        for picture in (picture for several in rows for picture in several):
            if id(picture) in same:
                continue
            if isinstance(picture, Shrunk):
                same[id(picture)] = picture
                continue
            assert not isinstance(picture, SentPicture)
            try:
                same[id(picture)] = self.shrink(picture)
            except InputError as error:
                same[id(picture)] = unreadable[id(picture)] = error
                warn(str(error), UnreadablePictureWarning)
        seen: list[list[Shrunk] | InputError] = []
        for several in rows:
            opened = [same[id(picture)] for picture in several]
            errors = [item for item in opened if isinstance(item, InputError)]
            shrunk = [item for item in opened if isinstance(item, Shrunk)]
            seen.append(errors[0] if errors else shrunk)
        return seen


def _batches(counts: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of rows, in order; the rows of each have as many pictures."""
    by_count: dict[int, list[int]] = {}
    for row, count in enumerate(counts):
        rows = by_count.setdefault(count, [])
        rows.append(row)
        if len(rows) == size:
            yield by_count.pop(count)
    yield from by_count.values()


def _keys_of(pictures: Sequence[Shrunk]) -> list[bytes]:
    """Return a hash of the pixels of each picture."""
    return [hashlib.blake2b(p.pixels.tobytes(), digest_size=16).digest() for p in pictures]


def _number_of(keys: Sequence[bytes], prompt: str, asked: Counter[bytes]) -> int:
    """Return a number for an answer, by its pictures, its prompt and how often these were asked.

    So the random numbers of an answer don't depend on what else is asked.
    """
    question = hashlib.blake2b(b"".join([*keys, prompt.encode("utf-8", "replace")])).digest()
    number = int.from_bytes(question[:8], "little") + asked[question]
    asked[question] += 1
    return number


def _renumbered(on_token: OnToken, rows: Sequence[int]) -> OnToken:
    return lambda row, token, logprob: on_token(rows[row], token, logprob)
