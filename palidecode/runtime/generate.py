"""Generate answers: prefill, then token by token, with the probability of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.engine import Batch, Engine, Features, Ids, Logits
from palidecode.runtime.grammar import AnswerState, Grammar
from palidecode.runtime.options import GenerateOptions, OnToken
from palidecode.vocab import LOC_COUNT, Vocabulary

Float = TypeVar("Float", np.float32, np.float64)
TopTokens: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]

POSITIONS = 8192  # Gemma's context: image, prompt and answer


@dataclass
class GeneratedTokens:
    """The tokens of one answer so far, and their probabilities.

    Attributes
    ----------
    token_ids : list of int
        ``<eos>`` included where the model wrote it.
    logprobs : list of float
        Natural log of each token's probability; see `GenerateOptions.over`.
    end_logprobs : list of float
        Natural log of the probability that ``<eos>`` had in each token's place.
    loc_probabilities : list of ndarray of float32, shape (1024,)
        Distribution over the bins of every loc token, in order, if asked for; each sums to 1.
    top : list of (ndarray of int64, ndarray of float32)
        Ids and log probabilities of the likeliest tokens in each token's place, if asked for.
    finished : bool
        True if it ended with ``<eos>``, not at the limit.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end_logprobs: list[float] = field(default_factory=list)
    loc_probabilities: list[npt.NDArray[np.float32]] = field(default_factory=list)
    top: list[TopTokens] = field(default_factory=list)
    finished: bool = False

    def cut(self, start: int, vocabulary: Vocabulary) -> None:
        """Replace the tokens from an index on by ``<eos>``, which was possible there."""
        bins = [t for t in self.token_ids[:start] if vocabulary.is_loc(t)]
        del self.loc_probabilities[len(bins) :], self.top[start + 1 :]
        del self.end_logprobs[start + 1 :], self.logprobs[start:], self.token_ids[start:]
        self.logprobs.append(self.end_logprobs[start])
        self.token_ids.append(vocabulary.eos)
        self.finished = True

    def distributions(self) -> npt.NDArray[np.float32]:
        """Stack `loc_probabilities` to one array, (L, 1024); L may be 0."""
        return np.array(self.loc_probabilities, np.float32).reshape(-1, LOC_COUNT)

    def first(self, count: int, vocabulary: Vocabulary) -> GeneratedTokens:
        """Return a copy of the first `count` tokens, while others are perhaps being written."""
        ids = self.token_ids[:count]
        locs = sum(map(vocabulary.is_loc, ids))
        return GeneratedTokens(
            ids,
            self.logprobs[:count],
            self.end_logprobs[:count],
            self.loc_probabilities[:locs],
            self.top[:count],
            self.finished,
        )


class Judge(Protocol):
    """Judges objects that a model would rather not write: past the end of its answer."""

    def may_pass(self, end_logprob: float) -> bool:
        """Say whether any object may pass before which an end has this log probability."""

    def passes(self, answer: GeneratedTokens, start: int) -> bool:
        """Say whether the object passes whose tokens begin at an index, with a separator."""


def cache_length(image_tokens: int, prompt_tokens: int, max_new_tokens: int) -> int:
    """Number of tokens that the cache must hold for one answer, at most Gemma's context."""
    # The last token is never read.
    length = image_tokens + prompt_tokens + max_new_tokens - 1
    if length > POSITIONS:
        raise InputError(
            f"image ({image_tokens} tokens), prompt ({prompt_tokens}) and answer "
            f"({max_new_tokens}) exceed the model's {POSITIONS}: shorten the prompt or lower "
            "max_new_tokens"
        )
    return length


def generate(
    engine: Engine,
    features: Sequence[Features],
    prompts: Sequence[Sequence[int]],
    vocabulary: Vocabulary,
    grammars: Sequence[Grammar | None],
    options: GenerateOptions,
    on_token: OnToken | None = None,
    numbers: Sequence[int] | None = None,
    judge: Judge | None = None,
) -> list[GeneratedTokens]:
    """Generate the answers to a batch of prompts about pictures.

    Parameters
    ----------
    engine : Engine
    features : sequence of B image tokens
        From `Engine.encode_image` or `Engine.join`, one per prompt.
    prompts : sequence of list of int
        ``<bos>``, prompt, newline.
    vocabulary : Vocabulary
    grammars : sequence of (Grammar or None)
    options : GenerateOptions
    on_token : callable, optional
        Called with (row, token id, log-probability) as soon as each token is known.
    numbers : sequence of int, optional
        A number for each answer, which seeds its random numbers together with the seed, so
        that they don't depend on the batch; by default its row.
    judge : Judge, optional
        Lets answers that have a grammar go on past their end, see `Request`.

    Returns
    -------
    list of GeneratedTokens
        Up to rounding the same as one by one.
    """
    generation = Generation(engine, vocabulary, on_token)
    columns = zip(features, prompts, grammars, numbers or range(len(prompts)), strict=True)
    answers = generation.add(
        [Request(*column[:3], options, column[3], judge) for column in columns]
    )
    while generation.answers:
        generation.step()
    return answers


@dataclass(frozen=True)
class Request:
    """One answer to generate; see `generate`.

    Attributes
    ----------
    features : image tokens
    prompt : sequence of int
    grammar : Grammar or None
    options : GenerateOptions
    number : int
        Seeds the answer's random numbers, together with the seed.
    judge : Judge, optional
        The answer goes on where the model ends it, up to the first object that the model would not
        have written, or not so labelled, and that fails. That object is dropped.
    """

    features: Features
    prompt: Sequence[int]
    grammar: Grammar | None
    options: GenerateOptions
    number: int = 0
    judge: Judge | None = None


class _Row:
    """An answer in progress: a row of the batch."""

    def __init__(self, index: int, request: Request) -> None:
        self.index, self.request, self.options = index, request, request.options
        self.answer = GeneratedTokens()
        self.state: AnswerState | None = None
        self.trial: _Trial | None = None
        self.told = 0  # tokens
        if request.grammar is not None:
            past_end = request.judge is not None
            self.state = request.grammar.start(self.options.max_new_tokens, past_end=past_end)
            if request.judge is not None:
                self.trial = _Trial(request.judge, self.state, self.answer)
        seeds = (self.options.seed, request.number)
        self.random = np.random.default_rng(np.random.SeedSequence(seeds))

    @property
    def left(self) -> int:
        """Number of tokens that it may still have."""
        return self.options.max_new_tokens - len(self.answer.token_ids)

    @property
    def ended(self) -> bool:
        return self.answer.finished or self.left <= 0

    def unread(self) -> list[int]:
        """Return the last token, and those that must come next; ``<eos>`` is never read."""
        forced = [] if self.state is None else self.state.forced()
        eos = None if self.state is None else self.state.grammar.vocabulary.eos
        return [self.answer.token_ids[-1], *(token for token in forced if token != eos)]


class _Trial:
    """The object that is being written, of an answer that goes on past its end."""

    def __init__(self, judge: Judge, state: AnswerState, answer: GeneratedTokens) -> None:
        self._judge, self._state, self._answer = judge, state, answer
        self._start = 0  # of the object, its separator included
        self._reluctant = False  # the model would not have written it

    def cut(self, token: int, end_logprob: float, at_end: bool, dislikes: bool) -> int | None:
        """Return the index from which on the answer is dropped before a token is added, or None.

        `at_end` says if the model would have ended it here, and `dislikes` if it would have taken
        a token that isn't allowed.
        """
        state, here = self._state, len(self._answer.token_ids)
        judges = state.objects >= state.grammar.options.min_objects
        ends = state.ends_object(token)
        if not (ends or here == 0):
            self._reluctant |= judges and dislikes and state.in_label
            return None
        if ends and self._reluctant and not self._judge.passes(self._answer, self._start):
            return self._start
        judges = state.objects + ends >= state.grammar.options.min_objects
        self._start, self._reluctant = here, at_end and judges
        return here if self._reluctant and not self._judge.may_pass(end_logprob) else None

    @property
    def stays(self) -> int:
        """Number of tokens that stay: those before the object that is being written."""
        return len(self._answer.token_ids) if self._answer.finished else self._start


class Generation:
    """Answers in progress; others join between two steps, and those that end leave.

    Parameters
    ----------
    engine : Engine
    vocabulary : Vocabulary
    on_token : callable, optional
        Called with (number of the answer in the order of `add`, token id, log-probability).

    Notes
    -----
    Tokens that a grammar leaves no choice for are read together with the token before them. The
    rows of a batch read as many tokens at a time as each of them has.
    """

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, on_token: OnToken | None = None
    ) -> None:
        self._engine = engine
        self._sampler = _Sampler(engine.config, vocabulary, on_token)
        self._rows: list[_Row] = []
        self._batch: Batch | None = None
        self._head: Ids | None = None
        self._count = 0

    @property
    def answers(self) -> list[GeneratedTokens]:
        """The answers that have not ended."""
        return [row.answer for row in self._rows]

    def add(self, requests: Sequence[Request]) -> list[GeneratedTokens]:
        """Read pictures and prompts, and choose the first token of each answer.

        The answers that are returned grow with every `step`.
        """
        rows = [_Row(self._count + n, request) for n, request in enumerate(requests)]
        self._count += len(rows)
        by_length: dict[int, list[_Row]] = {}
        for row in rows:
            by_length.setdefault(len(row.request.features), []).append(row)
        for alike in by_length.values():
            self._begin(alike)
        return [row.answer for row in rows]

    def _begin(self, rows: list[_Row]) -> None:
        """Start rows with as many image tokens each, and let them join the batch.

        What several rows ask of one picture is read once.
        """
        asked: dict[tuple[int, tuple[int, ...]], int] = {}
        source = [
            asked.setdefault((id(row.request.features), tuple(row.request.prompt)), len(asked))
            for row in rows
        ]
        requests = [rows[source.index(n)].request for n in range(len(asked))]
        longest = max(len(request.prompt) for request in requests)
        most = max(row.options.max_new_tokens for row in rows)
        length = cache_length(len(requests[0].features), longest, most)
        head = _head(self._engine.config, rows)
        batch = self._engine.start(
            [request.features for request in requests],
            [request.prompt for request in requests],
            length,
            head,
        )
        self._sampler.next_tokens(batch.prefill()[source], rows, head)
        rows = _without_ended(batch, rows, source)
        if not rows:
            return
        if self._batch is None:
            self._batch, self._rows, self._head = batch, rows, head
            return
        self._rows = self._rows + rows
        self._batch.join(batch, max(row.left for row in self._rows))
        self._head = _head(self._engine.config, self._rows)
        self._batch.use_head(self._head)

    def step(self) -> None:
        """Choose the next token of every answer, or the next few."""
        if self._batch is None:
            return
        unread = [row.unread() for row in self._rows]
        count = min(map(len, unread))
        logits = self._batch.step(np.array([tokens[:count] for tokens in unread]))
        for column in range(count):
            self._sampler.next_tokens(logits[:, column], self._rows, self._head)
        self._keep(_without_ended(self._batch, self._rows, list(range(len(self._rows)))))

    def drop(self, answers: Sequence[GeneratedTokens]) -> None:
        """Stop these answers, of those that have not ended."""
        dropped = {id(answer) for answer in answers}
        kept = [n for n, row in enumerate(self._rows) if id(row.answer) not in dropped]
        if self._batch is not None and 0 < len(kept) < len(self._rows):
            self._batch.keep_rows(np.array(kept))
        self._keep([self._rows[n] for n in kept])

    def _keep(self, rows: list[_Row]) -> None:
        self._rows = rows
        if not rows:
            self._batch = None


def _without_ended(batch: Batch, rows: list[_Row], source: list[int]) -> list[_Row]:
    """Return the rows that have not ended, and keep only those of the batch.

    `source` has the row of the batch that each row is in.
    """
    kept = [n for n, row in enumerate(rows) if not row.ended]
    wanted = [source[n] for n in kept]
    if kept and wanted != list(range(max(source) + 1)):
        batch.keep_rows(np.array(wanted))
    return [rows[n] for n in kept]


def _head(config: PaliGemmaConfig, rows: Sequence[_Row]) -> Ids | None:
    """Ids of the tokens whose logits are needed, ascending; None for the whole vocabulary."""
    known = {id(row.request.grammar): row.request.grammar for row in rows}
    used = [grammar.tokens for grammar in known.values() if grammar is not None]
    if len(used) < len(known) or any(row.options.over != "allowed" for row in rows):
        return None
    ids = np.unique(np.concatenate(used))
    # Free labels allow nearly all tokens: a copy of their rows would save nothing.
    return ids if 2 * len(ids) < config.text.vocabulary else None


class _Sampler:
    """Chooses the next token of every row and records its probability."""

    def __init__(
        self, config: PaliGemmaConfig, vocabulary: Vocabulary, on_token: OnToken | None
    ) -> None:
        self._vocabulary, self._on_token = vocabulary, on_token
        self._ends = {vocabulary.eos, *config.eos}

    def next_tokens(self, logits: Logits, rows: Sequence[_Row], head: Ids | None) -> None:
        """Choose the next token of each row; update their answers and states.

        `head` holds the ids of the columns of `logits` (B, R), None for all.
        """
        onward = [[] if row.state is None else row.state.going_on() for row in rows]
        end = _column(head, self._vocabulary.eos)
        allowed = _mask(logits, rows, head)
        held = [i for i, tokens in enumerate(onward) if tokens]
        allowed[held, end] = logits[held, end]  # not to be written, but its probability counts
        over = _normalised(logits, allowed, rows)
        normal = _log_sum_exp(over)
        if not np.isfinite(normal).all():
            raise InputError(
                "the model computes NaN or infinite logits: float16 is too small for it, or its "
                "weights are damaged; try dtype='bfloat16' or 'float32' (--dtype)"
            )
        columns = _sample(allowed, rows)
        at_end = [i in held and bool(columns[i] == end) for i in range(len(rows))]
        for i in np.flatnonzero(at_end).tolist():
            going = np.array([_column(head, token) for token in onward[i]])
            columns[i] = going[_sample(allowed[i : i + 1, going], rows[i : i + 1])[0]]
        logprobs = (logits[np.arange(len(rows)), columns] - normal).tolist()
        end_logprobs = (over[:, end] - normal).tolist()
        tokens = columns if head is None else head[columns]
        for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if row.options.top_logprobs:
                row.answer.top.append(self._top(over[i] - normal[i], row, head))
            if row.trial is not None:
                dislikes = bool(np.isneginf(allowed[i, over[i].argmax()]))
                if self._cut(row, token, end_logprobs[i], at_end[i], dislikes):
                    continue
            if row.options.loc_probabilities and self._vocabulary.is_loc(token):
                first = _column(head, self._vocabulary.loc_offset)
                bins = _softmax(allowed[i, first : first + LOC_COUNT])
                row.answer.loc_probabilities.append(bins)
            self._add(row, token, logprobs[i], end_logprobs[i])
            self._add_forced(row)

    def _add_forced(self, row: _Row) -> None:
        """Add the rest of an answer that leaves no choice: the model needn't be asked."""
        allowed = row.state is not None and row.options.over == "allowed"
        rest = row.state.forced() if row.state is not None and allowed else []
        if not rest or rest[-1] != self._vocabulary.eos:
            return
        for token in rest:  # each has probability 1
            if row.options.top_logprobs:
                row.answer.top.append((np.array([token]), np.zeros(1, np.float32)))
            if row.trial is not None and self._cut(row, token, 0.0, False, False):
                return
            if row.options.loc_probabilities and self._vocabulary.is_loc(token):
                bins = np.zeros(LOC_COUNT, np.float32)
                bins[token - self._vocabulary.loc_offset] = 1
                row.answer.loc_probabilities.append(bins)
            self._add(row, token, 0.0, 0.0 if token == rest[-1] else -np.inf)

    def _add(self, row: _Row, token: int, logprob: float, end_logprob: float) -> None:
        """Add a token to an answer, and advance its state."""
        answer = row.answer
        answer.token_ids.append(token)
        answer.logprobs.append(logprob)
        answer.end_logprobs.append(end_logprob)
        answer.finished = token in self._ends
        if row.state is not None:
            row.state.advance(token)
        self._tell(row)

    def _cut(self, row: _Row, token: int, end_logprob: float, at_end: bool, dislikes: bool) -> bool:
        """End an answer that went on past its end, if the token ends an object that fails."""
        assert row.trial is not None
        start = row.trial.cut(token, end_logprob, at_end, dislikes)
        if start is None:
            return False
        row.answer.end_logprobs.append(end_logprob)
        row.answer.cut(start, self._vocabulary)
        self._tell(row)
        return True

    def _tell(self, row: _Row) -> None:
        """Tell the tokens that are new and stay."""
        if self._on_token is None:
            return
        answer = row.answer
        stays = len(answer.token_ids) if row.trial is None else row.trial.stays
        for n in range(row.told, stays):
            self._on_token(row.index, answer.token_ids[n], answer.logprobs[n])
        row.told = max(row.told, stays)

    def _top(self, logprobs: Logits, row: _Row, head: Ids | None) -> TopTokens:
        """Return the likeliest tokens, and ``<eos>`` if it isn't one of them but possible."""
        count = min(row.options.top_logprobs, len(logprobs))
        best = np.argpartition(-logprobs, count - 1)[:count]
        best = best[np.argsort(-logprobs[best], kind="stable")]
        end = _column(head, self._vocabulary.eos)
        columns = best if end in best else np.append(best, end)
        columns = columns[np.isfinite(logprobs[columns])]
        return (columns if head is None else head[columns]), logprobs[columns]


def _column(head: Ids | None, token: int) -> int:
    """Column of a token's logit."""
    return token if head is None else int(np.searchsorted(head, token))


def _mask(logits: Logits, rows: Sequence[_Row], head: Ids | None) -> Logits:
    """Set the logits of tokens that a row's grammar doesn't allow to minus infinity."""
    if not any(row.state is not None for row in rows):
        return logits
    allowed = np.full_like(logits, -np.inf)
    for i, row in enumerate(rows):
        if row.state is None:
            allowed[i] = logits[i]
            continue
        tokens = row.state.grammar.tokens[row.state.allowed()]
        columns = tokens if head is None else np.searchsorted(head, tokens)
        allowed[i, columns] = logits[i, columns]
    return allowed


def _normalised(logits: Logits, allowed: Logits, rows: Sequence[_Row]) -> Logits:
    """Return the logits of each row whose probabilities sum to 1; see `GenerateOptions.over`."""
    every = [row.options.over == "vocabulary" for row in rows]
    if all(every):
        return logits
    return np.where(np.array(every)[:, None], logits, allowed) if any(every) else allowed


def _sample(allowed: Logits, rows: Sequence[_Row]) -> Ids:
    """Return the column of each row's next token."""
    chosen: Ids = allowed.argmax(1)
    for i, row in enumerate(rows):
        if row.options.temperature == 0:
            continue
        weights = _softmax(allowed[i].astype(np.float64) / row.options.temperature)
        order = np.argsort(-weights, kind="stable")
        # Keep tokens until the share is reached, the likeliest in any case.
        sums = np.cumsum(weights[order])
        kept = int(np.searchsorted(sums, row.options.top_p * sums[-1])) + 1
        point = row.random.random() * sums[:kept][-1]
        chosen[i] = order[int(np.searchsorted(sums[:kept], point, side="right"))]
    return chosen


def _log_sum_exp(logits: Logits) -> Logits:
    """Logarithm of each row's sum of exponentials, (B,)."""
    top = logits.max(1)
    total: Logits = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return total


def _softmax(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    weights: npt.NDArray[Float] = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights
