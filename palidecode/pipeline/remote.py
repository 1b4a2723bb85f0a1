"""Ask a server about pictures: completion requests, and its replies as generated answers."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.answers.logprobs import end_logprob, logprob_of, special_id, starts_in
from palidecode.errors import InputError, ServerError, warn
from palidecode.files import Picture, PictureBytes, as_sent, check_picture, picture_name
from palidecode.pipeline.endpoint import Refusal, Reply, Request, Server
from palidecode.pipeline.lark import lark_grammar
from palidecode.pipeline.protocol import Seen, SentPicture
from palidecode.pipeline.reading import Generated, UnreadablePictureWarning
from palidecode.prompts import split_verb
from palidecode.runtime.generate import Judge
from palidecode.runtime.image import Shrunk
from palidecode.runtime.options import GenerateOptions, GrammarOptions, OnToken
from palidecode.vocab import LOC_BINS, LOC_COUNT, PALIGEMMA, SEG_CODES

_TOP_OF_SUB_BINS = LOC_COUNT
_LISTED = 0.9999  # share of the probability that the listed tokens of a sub-bin box must have
_WORDS = 1_000_000  # the first id of a token that is text
_SPECIAL = re.compile(r"(<loc\d{4}>|<seg\d{3}>|;)")
_LOC = re.compile(r"<loc\d{4}>")


class Spelling:
    """Ids for tokens of which only the text is known.

    Loc, seg and end tokens have PaliGemma's ids, and each other piece of text one of its own.
    """

    vocabulary = PALIGEMMA

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._pieces: dict[int, bytes] = {}
        for spelled, first in ((LOC_BINS, PALIGEMMA.loc_offset), (SEG_CODES, PALIGEMMA.seg_offset)):
            self._pieces |= {first + index: token.encode() for token, index in spelled.items()}

    def id_of(self, piece: bytes) -> int:
        """Return the id of a piece of text."""
        number = self._ids.setdefault(piece, _WORDS + len(self._ids))
        self._pieces[number] = piece
        return number

    def decode(self, ids: Sequence[int]) -> str:
        """Join the pieces of ids; control tokens have none."""
        return b"".join(self._pieces.get(number, b"") for number in ids).decode("utf-8", "replace")

    def is_separator(self, token: int) -> bool:
        """Return True if a token's text contains a ``;``."""
        return b";" in self._pieces.get(token, b"")


class RemoteAsker:
    """A server that is asked about pictures, as `Asker` asks an engine.

    Attributes
    ----------
    server : Server
    tokens : Spelling
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.tokens = Spelling()

    @property
    def name(self) -> str:
        """The server and how it is asked, for people."""
        options = self.server.options
        return f"{options.endpoint}, {options.concurrency} requests at a time"

    @property
    def side(self) -> None:
        """Not known: a server doesn't tell its model's picture size."""

    def see(self, picture: Picture | PictureBytes) -> SentPicture:
        """Read a picture as it is sent."""
        if not isinstance(picture, PictureBytes):
            check_picture(picture)
        name = picture.name if isinstance(picture, PictureBytes) else picture_name(picture)
        return SentPicture(*as_sent(picture), name)

    def forget_pictures(self) -> None:
        """Do nothing: no picture is kept."""

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
        """Answer each prompt about its pictures; see `PaliDecoder.generate`.

        The grammar, unless it is sent, and the tokens that probabilities are over are the server's.
        """
        sends = self.server.options.vllm_grammar
        if isinstance(grammar, GrammarOptions) and grammar != GrammarOptions() and not sends:
            raise InputError("a server has its own grammar: GrammarOptions can't be sent to it")
        if judge is not None:
            raise InputError("past_end: a server ends its answers itself")
        larks = {prompt: _lark(prompt, grammar) if sends else None for prompt in {*prompts}}
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        opened = self._see_all(pictures)
        errors = [next((p for p in row if isinstance(p, InputError)), None) for row in opened]
        rows = [row for row, error in enumerate(errors) if error is None]
        seen = {row: [p for p in opened[row] if isinstance(p, SentPicture)] for row in rows}
        seeds = _seeds(prompts, pictures, options.seed)
        requests = [
            self._request(
                prompts[row], seen[row], replace(options, seed=seeds[row]), larks[prompts[row]]
            )
            for row in rows
        ]
        replies = dict(zip(rows, self.server.answers(requests), strict=True)) if rows else {}
        answers = []
        for row, (prompt, error) in enumerate(zip(prompts, errors, strict=True)):
            name = _name_of(pictures[row][box_image])
            if error is not None:
                answers.append(Generated(prompt, error=str(error), name=name))
                continue
            reply, size = replies[row], seen[row][box_image].size
            if isinstance(reply, Refusal):
                reason = f"{name or f'picture {row + 1}'}: {reply.reason}"
                if not isinstance(pictures[row][box_image], SentPicture):  # its reader is told
                    warn(reason, UnreadablePictureWarning)
                answers.append(Generated(prompt, error=reason, name=name))
                continue
            answer = self._read(prompt, reply, options.loc_probabilities)
            answers.append(replace(answer, size=size, name=name))
            if on_token is not None:
                for token, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
                    on_token(row, token, logprob)
        self._warn(answers)
        return answers

    def _see_all(
        self, rows: Sequence[Sequence[Picture | Seen]]
    ) -> list[list[SentPicture | InputError]]:
        """Read every picture once; the error of an unreadable one takes its place, and warns."""
        same: dict[int, SentPicture | InputError] = {}
        for picture in (picture for several in rows for picture in several):
            if id(picture) in same:
                continue
            if isinstance(picture, SentPicture):
                same[id(picture)] = picture
                continue
            if isinstance(picture, Shrunk):
                raise InputError("a picture that was shrunk for a model can't be sent to a server")
            check_picture(picture)
            try:
                same[id(picture)] = self.see(picture)
            except InputError as error:
                same[id(picture)] = error
                warn(str(error), UnreadablePictureWarning)
        return [[same[id(picture)] for picture in several] for several in rows]

    def _request(
        self,
        prompt: str,
        pictures: Sequence[SentPicture],
        options: GenerateOptions,
        lark: str | None,
    ) -> Request:
        harmless = [_grey()] * len(pictures)
        return Request(
            partial(self._body, prompt, pictures, options, lark),
            partial(self._body, prompt, harmless, replace(options, max_new_tokens=1), lark),
        )

    def _body(
        self,
        prompt: str,
        pictures: Sequence[SentPicture],
        options: GenerateOptions,
        lark: str | None,
    ) -> bytes:
        """Return the JSON of a request; vLLM's `skip_special_tokens` keeps loc and seg tokens."""
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.url()}} for picture in pictures
        ]
        given = self.server.options
        top = max(given.top_logprobs, _TOP_OF_SUB_BINS if options.loc_probabilities else 0)
        body: dict[str, Any] = {
            "model": given.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}],
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "logprobs": True,
            "top_logprobs": top,
            "skip_special_tokens": False,
        }
        if options.temperature > 0:
            body |= {"top_p": options.top_p, "seed": options.seed}
        if lark is not None:
            body["structured_outputs"] = {"grammar": lark}
        return json.dumps(body).encode()

    # --- Replies --------------------------------------------------------------------------------

    def _read(self, prompt: str, reply: Reply, distributions: bool) -> Generated:
        """Return the answer in a reply."""
        text, entries, finished = self._parts_of(reply)
        ids, logprobs, ends, listed = self._tokens_of(text, entries)
        kept = None
        if distributions:
            rows = [
                self._distribution(listed[n])
                for n, token in enumerate(ids)
                if PALIGEMMA.is_loc(token)
            ]
            kept = np.array(rows, np.float32).reshape(-1, LOC_COUNT)
        return Generated(prompt, text, ids, logprobs, ends, (0, 0), finished, kept)

    def _parts_of(self, reply: Reply) -> tuple[str, list[Mapping[str, object]] | None, bool]:
        """Return the text of a reply, what it lists about its tokens, and whether it ended."""
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"]
            listed = choice.get("logprobs")
            finished = choice.get("finish_reason") != "length"
        except (LookupError, TypeError, AttributeError) as error:
            raise self._error("its answer is no chat completion; is the address right?") from error
        text = "" if text is None else text
        entries = listed.get("content") if isinstance(listed, dict) else None
        if not isinstance(text, str):
            raise self._error("the content of its answer is no text")
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            return text, None, finished
        return text, entries, finished

    def _tokens_of(
        self, text: str, entries: Sequence[Mapping[str, object]] | None
    ) -> tuple[list[int], list[float], list[float], list[object]]:
        """Return ids, log probabilities, those of an end, and the likeliest tokens in each place.

        Without entries that fit the text they are those of the text's pieces, and unknown.
        """
        data = _utf8(text)
        starts = starts_in(data, entries) if entries is not None else None
        if entries is None or starts is None:
            return self._unknown(text)
        pieces = [data[a:b] for a, b in pairwise([*starts, len(data)])]
        ids = []
        for entry, piece in zip(entries, pieces, strict=True):
            special = special_id(entry)
            ids.append(self.tokens.id_of(piece) if special is None else special)
        whole = sum(map(PALIGEMMA.is_loc, ids))
        if whole != len(_LOC.findall(text)):  # some loc tokens come in several pieces
            return self._unknown(text)
        tops = [entry.get("top_logprobs") for entry in entries]
        return ids, [logprob_of(entry) for entry in entries], [end_logprob(t) for t in tops], tops

    def _unknown(self, text: str) -> tuple[list[int], list[float], list[float], list[object]]:
        pieces = [piece for piece in _SPECIAL.split(text) if piece]
        ids = []
        for piece in pieces:
            special = special_id({"token": piece})
            ids.append(self.tokens.id_of(_utf8(piece)) if special is None else special)
        unknown = [math.nan] * len(ids)
        return ids, unknown, unknown, [None] * len(ids)

    def _distribution(self, top: object) -> npt.NDArray[np.float32]:
        """Return the probabilities of the bins, of which a server lists the likeliest tokens.

        Raises
        ------
        ServerError
            If it lists too few.
        """
        listed = [item for item in top if isinstance(item, dict)] if isinstance(top, list) else []
        weights = np.zeros(LOC_COUNT, np.float32)
        mass = 0.0
        for item in listed:
            probability = math.exp(logprob_of(item))
            mass += probability
            token = special_id(item)
            if token is not None and PALIGEMMA.is_loc(token):
                weights[token - PALIGEMMA.loc_offset] = probability
        if not mass >= _LISTED and len(listed) < _TOP_OF_SUB_BINS:
            raise self._error(
                f"lists {len(listed)} top_logprobs of a loc token; sub-bin boxes (--sub-bin) need "
                f"{_TOP_OF_SUB_BINS} of them (vLLM: --max-logprobs {_TOP_OF_SUB_BINS})"
            )
        total = float(weights.sum())
        return weights / np.float32(total) if total > 0 else weights

    def _error(self, reason: str) -> ServerError:
        return ServerError(f"{self.server.options.endpoint}: {reason}")

    def _warn(self, answers: Sequence[Generated]) -> None:
        """Warn of answers without loc tokens, and without probabilities."""
        source = self.server.options.source
        stripped = (a for a in answers if split_verb(a.prompt)[0] and not _LOC.search(a.text))
        answer = next((a for a in stripped if a.text.strip()), None)
        if answer is not None:
            prompt, text = answer.prompt[:60], " ".join(answer.text.split())[:60]
            warn(
                f"{source}: an answer to {prompt!r} has no <loc…> token ({text!r}): the server "
                "removes special tokens, or the model is no PaliGemma"
            )
        if any(answer.token_ids and math.isnan(answer.logprobs[0]) for answer in answers):
            warn(
                f"{source}: sends no log probabilities of its tokens: objects have no scores of "
                "their own"
            )


def _seeds(
    prompts: Sequence[str], pictures: Sequence[Sequence[Picture | Seen]], seed: int
) -> list[int]:
    """Return a seed for each request: the next one where a question is asked again."""
    asked: Counter[tuple[object, ...]] = Counter()
    seeds = []
    for prompt, several in zip(prompts, pictures, strict=True):
        question = (prompt, *map(id, several))
        seeds.append(seed + asked[question])
        asked[question] += 1
    return seeds


@cache
def _grey() -> SentPicture:
    return SentPicture(*as_sent(Image.new("RGB", (32, 32), (128, 128, 128))))


def _lark(prompt: str, grammar: bool | GrammarOptions) -> str | None:
    """Return the grammar to send with a prompt; None for prompts without one."""
    if grammar is False or split_verb(prompt)[0] is None:
        return None
    return lark_grammar(prompt, GrammarOptions() if grammar is True else grammar)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _name_of(picture: Picture | Seen) -> str:
    if isinstance(picture, Shrunk):
        return ""
    return picture.name if isinstance(picture, SentPicture) else picture_name(picture)
