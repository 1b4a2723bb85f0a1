"""Prompts and answers about a scene, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import LOC_COUNT
from training.scenes.draw import (
    MOST,
    Prompt,
    Scene,
    Task,
    all_classes_prompt,
    one_phrase_prompt,
    prompt_for,
)

TASKS: tuple[Task, ...] = ("segment", "detect")
EVERYTHING, SOME = 2, 4  # questions of a task and scene: about all classes, and other ones
PER_TASK = EVERYTHING + SOME
ONE_PHRASE = 0.4  # share of the other questions that have one phrase
# Most ids of a prompt with its answer: enough to ask for every class. With the image's tokens
# before them they are multiples of 8, which attention on a GPU needs.
IDS: dict[Task, int] = {"segment": 148, "detect": 68}


class Words:
    """Token ids of the pieces of prompts and answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.vocabulary = tokenizer, tokenizer.vocabulary
        self._phrases: dict[str, list[int]] = {}
        self.separator = tokenizer.encode("<loc0000> cat ; <loc0000>")[2:-1]

    def phrase(self, text: str) -> list[int]:
        """Ids of a phrase with a space before it, `` red star``."""
        if text not in self._phrases:
            self._phrases[text] = self.tokenizer.encode(f"<loc0000> {text}")[1:]
        return self._phrases[text]

    def answer(self, objects: list[tuple[str, list[int], list[int] | None]]) -> list[int]:
        """Ids of the suffix, ``<eos>`` included."""
        ids: list[int] = []
        for label, loc, codes in objects:
            ids += self.separator if ids else []
            ids += [self.vocabulary.loc_offset + bin_ for bin_ in loc]
            ids += [self.vocabulary.seg_offset + code for code in codes or ()]
            ids += self.phrase(label)
        return [*ids, self.vocabulary.eos]


def mirror(loc: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Loc bins (N, 4), y1 x1 y2 x2, in the mirrored picture."""
    x1, x2 = LOC_COUNT - loc[:, 3], LOC_COUNT - loc[:, 1]
    return np.clip(np.stack((loc[:, 0], x1, loc[:, 2], x2), 1), 0, LOC_COUNT - 1)


def questions(
    truth: Scene,
    loc: npt.NDArray[np.int64],
    codes: Sequence[npt.NDArray[np.uint8]],
    rng: np.random.Generator,
    words: Words,
) -> dict[str, npt.NDArray[np.generic]]:
    """Ask about a scene: `PER_TASK` questions of each task, every second about its mirror image.

    `codes` are the objects' mask codes (N, 16), and those of the mirrored masks. Answers list
    objects from left to right.

    Returns
    -------
    dict
        ``ids`` (Q, 148) int16, padded with 0; ``prefix`` and ``lengths`` (Q,) int16, of the prompt
        and of all; ``asked`` (Q, 5) bool, which objects the prompt asks for.
    """
    total = len(TASKS) * PER_TASK
    ids = np.full((total, max(IDS.values())), words.vocabulary.pad, np.int16)
    prefix, lengths = np.zeros(total, np.int16), np.zeros(total, np.int16)
    asked = np.zeros((total, MOST), np.bool_)
    bins = (loc, mirror(loc))
    for row in range(total):
        task, side = TASKS[row // PER_TASK], row % 2
        start: list[int] = []
        whole: list[int] = []
        while not 0 < len(whole) <= IDS[task]:
            prompt = _prompt(truth, rng, task, row % PER_TASK < EVERYTHING)
            start = words.tokenizer.encode_prompt(prompt.text)
            whole = start + words.answer(_answer(prompt, bins[side], codes[side]))
        ids[row, : len(whole)] = whole
        prefix[row], lengths[row] = len(start), len(whole)
        asked[row, [number for number, _ in prompt.objects()]] = True
    return {"ids": ids, "prefix": prefix, "lengths": lengths, "asked": asked}


def _answer(
    prompt: Prompt, loc: npt.NDArray[np.int64], codes: npt.NDArray[np.uint8]
) -> list[tuple[str, list[int], list[int] | None]]:
    """List the objects asked for, from left to right."""
    masks = prompt.text.startswith("segment")
    order = sorted(prompt.objects(), key=lambda o: (loc[o[0], 1] + loc[o[0], 3], loc[o[0], 0]))
    return [(name, loc[n].tolist(), codes[n].tolist() if masks else None) for n, name in order]


def _prompt(truth: Scene, rng: np.random.Generator, task: Task, everything: bool) -> Prompt:
    if everything:
        return all_classes_prompt(truth, task)
    if rng.random() < ONE_PHRASE:
        return one_phrase_prompt(truth, rng, task)
    return prompt_for(truth, rng, task)
