"""The judge of objects past the end of an answer: their scores."""

from __future__ import annotations

from dataclasses import dataclass

from palidecode.answers.parsing import parse
from palidecode.answers.scoring import RECIPES, Evidence, Score, evidence_of
from palidecode.pipeline.reading import Tokens
from palidecode.runtime.generate import GeneratedTokens


@dataclass(frozen=True)
class PastEnd:
    """Passes objects that score at least `least`; see `PaliDecoder.detect`."""

    least: float
    score: Score
    tokens: Tokens

    def may_pass(self, end_logprob: float) -> bool:
        """Return False where even an object of sure tokens would score less."""
        return RECIPES[self.score](Evidence([0.0], [], [], end_logprob)) >= self.least

    def passes(self, answer: GeneratedTokens, start: int) -> bool:
        """Return True if the answer's last object, whose tokens begin at `start`, stays."""
        ids, v = answer.token_ids[start:], self.tokens.vocabulary
        (item,) = evidence_of(
            parse(ids, vocabulary=v, detokenize=self.tokens.decode).objects,
            ids,
            answer.logprobs[start:],
            answer.end_logprobs[start:],
            self.tokens.is_separator,
            v,
        )
        return RECIPES[self.score](item) >= self.least
