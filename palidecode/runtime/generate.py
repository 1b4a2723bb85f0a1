"""Generate answers: prefill, then token by token, with the probability of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.engine import Engine, Features, Ids, Logits
from palidecode.runtime.grammar import AnswerState, Grammar
from palidecode.runtime.options import GenerateOptions, OnToken
from palidecode.vocab import LOC_COUNT, Vocabulary

Float = TypeVar("Float", np.float32, np.float64)

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
    finished : bool
        True if it ended with ``<eos>``, not at the limit.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end_logprobs: list[float] = field(default_factory=list)
    loc_probabilities: list[npt.NDArray[np.float32]] = field(default_factory=list)
    finished: bool = False

    def distributions(self) -> npt.NDArray[np.float32]:
        """Stack `loc_probabilities` to one array, (L, 1024); L may be 0."""
        return np.array(self.loc_probabilities, np.float32).reshape(-1, LOC_COUNT)


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

    Returns
    -------
    list of GeneratedTokens
        Up to rounding the same as one by one.

    Notes
    -----
    Tokens that a grammar leaves no choice for are read together with the token before them. The
    rows of a batch read as many tokens at a time as each of them has.
    """
    longest = max(len(prompt) for prompt in prompts)
    length = cache_length(len(features[0]), longest, options.max_new_tokens)
    answers = [GeneratedTokens() for _ in prompts]
    states = [g.start(options.max_new_tokens) if g is not None else None for g in grammars]
    rows = list(range(len(prompts)))  # the answers that aren't finished
    sampler = _Sampler(engine.config, vocabulary, grammars, options, numbers or rows, on_token)
    batch = engine.start(features, prompts, length, sampler.head)
    logits = batch.prefill()[:, None]
    while True:
        for column in range(logits.shape[1]):
            sampler.next_tokens(logits[:, column], rows, states, answers)
        unfinished = [i for i, row in enumerate(rows) if not answers[row].finished]
        if len(unfinished) < len(rows):
            rows = [rows[i] for i in unfinished]
            if rows:
                batch.keep_rows(np.array(unfinished))
        if not rows or len(answers[rows[0]].token_ids) == options.max_new_tokens:
            return answers
        unread = [[answers[row].token_ids[-1], *_forced(states[row])] for row in rows]
        count = min(map(len, unread))
        logits = batch.step(np.array([tokens[:count] for tokens in unread]))


def _forced(state: AnswerState | None) -> list[int]:
    """Return the tokens that must come next and are read; ``<eos>`` is never read."""
    if state is None:
        return []
    return [token for token in state.forced() if token != state.grammar.vocabulary.eos]


class _Sampler:
    """Chooses the next token of every row and records its probability.

    Attributes
    ----------
    head : ndarray of int64, optional
        Ids of the tokens in use, ascending: the columns of the logits; None for all.
    """

    def __init__(
        self,
        config: PaliGemmaConfig,
        vocabulary: Vocabulary,
        grammars: Sequence[Grammar | None],
        options: GenerateOptions,
        numbers: Sequence[int],
        on_token: OnToken | None,
    ) -> None:
        self._options, self._vocabulary, self._on_token = options, vocabulary, on_token
        self._random = [
            np.random.default_rng(np.random.SeedSequence((options.seed, number)))
            for number in numbers
        ]
        self._ends = {vocabulary.eos, *config.eos}
        self.head: Ids | None = None
        known = [grammar.tokens for grammar in grammars if grammar is not None]
        if options.over == "allowed" and len(known) == len(grammars):
            ids = np.unique(np.concatenate(known))
            # Free labels allow nearly all tokens: a copy of their rows would save nothing.
            if 2 * len(ids) < config.text.vocabulary:
                self.head = ids

    def next_tokens(
        self,
        logits: Logits,
        rows: list[int],
        states: list[AnswerState | None],
        answers: list[GeneratedTokens],
    ) -> None:
        """Choose the next token of each of the rows; update their answers and states."""
        allowed = self._mask(logits, [states[row] for row in rows])
        over = allowed if self._options.over == "allowed" else logits
        normal = _log_sum_exp(over)
        if not np.isfinite(normal).all():
            raise InputError(
                "the model computes NaN or infinite logits: float16 is too small for it, or its "
                "weights are damaged; try dtype='bfloat16' or 'float32' (--dtype)"
            )
        columns = self._sample(allowed, rows)
        logprobs = (logits[np.arange(len(rows)), columns] - normal).tolist()
        end_logprobs = (over[:, self._column(self._vocabulary.eos)] - normal).tolist()
        tokens = columns if self.head is None else self.head[columns]
        for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            answer, state = answers[row], states[row]
            self._add(row, token, logprobs[i], end_logprobs[i], answer, state)
            bin_ = token - self._vocabulary.loc_offset
            if self._options.loc_probabilities and 0 <= bin_ < LOC_COUNT:
                first = self._column(self._vocabulary.loc_offset)
                answer.loc_probabilities.append(_softmax(allowed[i, first : first + LOC_COUNT]))
            rest = state.forced() if state is not None and self._options.over == "allowed" else []
            if rest and rest[-1] == self._vocabulary.eos:
                # Each of these tokens has probability 1: the model needn't be asked.
                for forced in rest:
                    end = 0.0 if forced == rest[-1] else -np.inf
                    self._add(row, forced, 0.0, end, answer, state)

    def _add(
        self,
        row: int,
        token: int,
        logprob: float,
        end_logprob: float,
        answer: GeneratedTokens,
        state: AnswerState | None,
    ) -> None:
        """Add a token to an answer, and advance its state."""
        answer.token_ids.append(token)
        answer.logprobs.append(logprob)
        answer.end_logprobs.append(end_logprob)
        answer.finished = token in self._ends
        if state is not None:
            state.advance(token)
        if self._on_token is not None:
            self._on_token(row, token, logprob)

    def _column(self, token: int) -> int:
        """Column of a token's logit."""
        return token if self.head is None else int(np.searchsorted(self.head, token))

    def _mask(self, logits: Logits, states: list[AnswerState | None]) -> Logits:
        """Set the logits of tokens that a row's grammar doesn't allow to minus infinity."""
        if not any(state is not None for state in states):
            return logits
        allowed = np.full_like(logits, -np.inf)
        for row, state in enumerate(states):
            if state is None:
                allowed[row] = logits[row]
                continue
            tokens = state.grammar.tokens[state.allowed()]
            columns = tokens if self.head is None else np.searchsorted(self.head, tokens)
            allowed[row, columns] = logits[row, columns]
        return allowed

    def _sample(self, allowed: Logits, rows: list[int]) -> Ids:
        if self._options.temperature == 0:
            best: Ids = allowed.argmax(1)
            return best
        chosen = []
        for logits, row in zip(allowed, rows, strict=True):
            weights = _softmax(logits.astype(np.float64) / self._options.temperature)
            order = np.argsort(-weights, kind="stable")
            # Keep tokens until the share is reached, the likeliest in any case.
            sums = np.cumsum(weights[order])
            kept = int(np.searchsorted(sums, self._options.top_p * sums[-1])) + 1
            point = self._random[row].random() * sums[:kept][-1]
            chosen.append(order[int(np.searchsorted(sums[:kept], point, side="right"))])
        return np.array(chosen, np.int64)


def _log_sum_exp(logits: Logits) -> Logits:
    """Logarithm of each row's sum of exponentials, (B,)."""
    top = logits.max(1)
    total: Logits = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return total


def _softmax(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    weights: npt.NDArray[Float] = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights
