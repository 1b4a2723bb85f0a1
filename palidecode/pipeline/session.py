"""Answers in progress, token by token; other questions join between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palidecode.pipeline.asking import Asker
from palidecode.pipeline.reading import Generated
from palidecode.prompts import asked_names
from palidecode.runtime.generate import GeneratedTokens, Generation
from palidecode.runtime.image import Shrunk
from palidecode.runtime.options import GenerateOptions, GrammarOptions

__all__ = ["Question", "Session", "Shrunk", "Writing"]


@dataclass(frozen=True)
class Question:
    """A prompt about pictures.

    Attributes
    ----------
    pictures : sequence of Shrunk
        From `PaliDecoder.shrink`; their image tokens follow each other.
    prompt : str
    grammar : bool or GrammarOptions
    options : GenerateOptions
    box_image : int
        Index of the picture that boxes are measured in.
    """

    pictures: Sequence[Shrunk]
    prompt: str
    grammar: bool | GrammarOptions
    options: GenerateOptions
    box_image: int = 0


class Writing:
    """An answer that is being written: its question, and the tokens so far."""

    def __init__(self, question: Question, tokens: GeneratedTokens) -> None:
        self.question, self.tokens = question, tokens

    @property
    def count(self) -> int:
        """Number of tokens so far."""
        return len(self.tokens.token_ids)


class Session:
    """Answers of one engine in progress; made by `PaliDecoder.session`.

    Not safe for threads: one thread adds, steps and drops.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._generation = Generation(asker.engine, asker.tokenizer.vocabulary)
        self._writing: list[Writing] = []

    def check(self, question: Question) -> None:
        """Refuse a question that the model can't be asked; any thread may.

        Raises
        ------
        InputError
            For a prompt that is too long, asks for a name that can't be one, or spells a control
            token.
        """
        self._asker.encode(question.prompt, len(question.pictures), question.options.max_new_tokens)
        if question.grammar is not False:
            asked_names(question.prompt)

    def add(self, questions: Sequence[Question]) -> list[Writing]:
        """Read the questions and write the first token of each answer.

        Raises
        ------
        InputError
            As `check`.
        """
        requests = self._asker.requests(
            [question.pictures for question in questions],
            [question.prompt for question in questions],
            [question.grammar for question in questions],
            [question.options for question in questions],
        )
        answers = self._generation.add(requests)
        added = list(map(Writing, questions, answers))
        self._writing += added
        self._forget()
        return added

    def step(self) -> None:
        """Write the next token of every answer, or the next few."""
        self._generation.step()
        self._forget()

    def drop(self, writing: Sequence[Writing]) -> None:
        """Stop writing these answers."""
        self._generation.drop([item.tokens for item in writing])
        self._forget()

    @property
    def writing(self) -> list[Writing]:
        """The answers that have not ended."""
        return list(self._writing)

    def _forget(self) -> None:
        going = set(map(id, self._generation.answers))
        self._writing = [item for item in self._writing if id(item.tokens) in going]

    def answer(self, writing: Writing, count: int | None = None) -> Generated:
        """Return an answer: as much as is written, or its first `count` tokens.

        Any thread may, for tokens that are written.
        """
        question, tokens = writing.question, writing.tokens
        if count is not None:
            tokens = tokens.first(count, self._asker.tokenizer.vocabulary)
        picture = question.pictures[question.box_image]
        return self._asker.generated(question.prompt, tokens, picture, question.options)
