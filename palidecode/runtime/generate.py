"""Generate answers: prefill, then token by token, with the probability of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from palidecode.errors import InputError
from palidecode.runtime.grammar import AnswerState, Grammar
from palidecode.runtime.kv_cache import KVCache
from palidecode.runtime.options import GenerateOptions, OnToken
from palidecode.runtime.paligemma import PaliGemma
from palidecode.vocab import LOC_COUNT, Vocabulary

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


def cache_length(model: PaliGemma, prompt_tokens: int, max_new_tokens: int) -> int:
    """Number of tokens that the cache must hold for one answer, at most Gemma's context."""
    # The last token is never read.
    length = model.config.vision.tokens + prompt_tokens + max_new_tokens - 1
    if length > POSITIONS:
        raise InputError(
            f"image ({model.config.vision.tokens} tokens), prompt ({prompt_tokens}) and answer "
            f"({max_new_tokens}) exceed the model's {POSITIONS}: shorten the prompt or lower "
            "max_new_tokens"
        )
    return length


@torch.inference_mode()
def encode_pictures(model: PaliGemma, pixels: npt.NDArray[np.float32]) -> list[Tensor]:
    """Encode pixels (B, 3, S, S), see `to_pixels`, as the image tokens of each picture."""
    batch = torch.from_numpy(pixels).to(model.vision.position.device)
    return list(model.encode_image(batch))


@torch.inference_mode()
def generate(
    model: PaliGemma,
    features: Sequence[Tensor] | Tensor,
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
    model : PaliGemma
    features : sequence of B Tensor, shape (tokens, width)
        From `encode_pictures`, one per prompt.
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
    """
    images = torch.stack(tuple(features))
    device = images.device
    longest = max(len(prompt) for prompt in prompts)
    length = cache_length(model, longest, options.max_new_tokens)
    padded = torch.full((len(prompts), longest), vocabulary.pad, device=device)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    prefix = model.embed_prefix(images, padded, lengths)
    dtype = prefix.embeddings.dtype
    cache = KVCache(model.config.text, len(prompts), length, dtype, device)
    hidden = model.prefill(prefix, cache)

    answers = [GeneratedTokens() for _ in prompts]
    states = [g.start(options.max_new_tokens) if g is not None else None for g in grammars]
    rows = list(range(len(prompts)))  # the answers that aren't finished
    sampler = _Sampler(model, vocabulary, grammars, options, numbers or rows)
    prefix_length = prefix.length
    for step in range(options.max_new_tokens):
        tokens = sampler.next_tokens(hidden, rows, states, answers)
        if on_token is not None:
            for row in rows:
                on_token(row, answers[row].token_ids[-1], answers[row].logprobs[-1])
        unfinished = [i for i, row in enumerate(rows) if not answers[row].finished]
        if not unfinished or step == options.max_new_tokens - 1:
            break
        if len(unfinished) < len(rows):
            keep = torch.tensor(unfinished, device=device)
            cache.keep_rows(keep)
            prefix_length, tokens = prefix_length[keep], tokens[keep]
            rows = [rows[i] for i in unfinished]
        hidden = model.step(tokens, prefix_length + step, prefix_length, cache)
    return answers


class _Sampler:
    """Chooses the next token of every row and records its probability."""

    def __init__(
        self,
        model: PaliGemma,
        vocabulary: Vocabulary,
        grammars: Sequence[Grammar | None],
        options: GenerateOptions,
        numbers: Sequence[int],
    ) -> None:
        self._model, self._options, self._vocabulary = model, options, vocabulary
        self._random = [_generator(options.seed, number) for number in numbers]
        self._ends = {vocabulary.eos, *model.config.eos}
        # The rows of the output head in use and their token ids; None for the whole head.
        self._ids: npt.NDArray[np.int64] | None = None
        self._head: Tensor | None = None
        known = [grammar.tokens for grammar in grammars if grammar is not None]
        if options.over == "allowed" and len(known) == len(grammars):
            ids = np.unique(np.concatenate(known))
            weight = model.language.head_weight
            # Free labels allow nearly all tokens: a copy of their rows would save nothing.
            if 2 * len(ids) < len(weight):
                self._ids = ids
                self._head = weight[torch.from_numpy(ids).to(weight.device)]

    def next_tokens(
        self,
        hidden: Tensor,
        rows: list[int],
        states: list[AnswerState | None],
        answers: list[GeneratedTokens],
    ) -> Tensor:
        """Choose the next token of each of the rows, (B,); update their answers and states."""
        logits = self._model.language.logits(hidden, self._head).cpu()
        masks = self._masks([states[row] for row in rows], logits.shape[1])
        allowed = logits if masks is None else logits.masked_fill(~masks, -torch.inf)
        over = allowed if self._options.over == "allowed" else logits
        normal = over.logsumexp(1)
        if not normal.isfinite().all():
            raise InputError(
                "the model computes NaN or infinite logits: float16 is too small for it, or its "
                "weights are damaged; try dtype='bfloat16' or 'float32' (--dtype)"
            )
        columns = self._sample(allowed, rows)
        logprobs = (logits.gather(1, columns[:, None])[:, 0] - normal).tolist()
        end_logprobs = (over[:, self._column(self._vocabulary.eos)] - normal).tolist()
        tokens = columns if self._ids is None else torch.from_numpy(self._ids)[columns]
        for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            answer, state = answers[row], states[row]
            answer.token_ids.append(token)
            answer.logprobs.append(logprobs[i])
            answer.end_logprobs.append(end_logprobs[i])
            answer.finished = token in self._ends
            if state is not None:
                state.advance(token)
            bin_ = token - self._vocabulary.loc_offset
            if self._options.loc_probabilities and 0 <= bin_ < LOC_COUNT:
                first = self._column(self._vocabulary.loc_offset)
                bins = allowed[i, first : first + LOC_COUNT].softmax(0)
                answer.loc_probabilities.append(bins.numpy())
        return tokens.to(hidden.device)

    def _column(self, token: int) -> int:
        """Column of a token's logit."""
        return token if self._ids is None else int(np.searchsorted(self._ids, token))

    def _masks(self, states: list[AnswerState | None], width: int) -> Tensor | None:
        """Mask of the columns that each row allows, (B, width); None if all are allowed."""
        if not any(state is not None for state in states):
            return None
        masks = np.ones((len(states), width), np.bool_)
        for row, state in enumerate(states):
            if state is None:
                continue
            tokens = state.grammar.tokens
            columns = tokens if self._ids is None else np.searchsorted(self._ids, tokens)
            masks[row] = False
            masks[row, columns] = state.allowed()
        return torch.from_numpy(masks)

    def _sample(self, allowed: Tensor, rows: list[int]) -> Tensor:
        if self._options.temperature == 0:
            return allowed.argmax(1)
        weights = (allowed / self._options.temperature).softmax(1)
        if self._options.top_p < 1:
            ordered, order = weights.sort(1, descending=True)
            # Keep tokens until the share is reached, the likeliest in any case.
            kept = ordered * (ordered.cumsum(1) - ordered < self._options.top_p)
            weights = torch.zeros_like(weights).scatter(1, order, kept)
        samples = [
            torch.multinomial(weight, 1, generator=self._random[row])
            for weight, row in zip(weights, rows, strict=True)
        ]
        return torch.cat(samples)


def _generator(seed: int, number: int) -> torch.Generator:
    """Create a generator that is independent for each seed and number."""
    mixed = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)
