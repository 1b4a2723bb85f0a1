"""Prompts: a verb and the names it asks for, as ``detect cat ; dog``.

Everything that writes or reads a prompt does it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from palidecode.errors import InputError

Task: TypeAlias = Literal["detect", "segment"]

SEPARATOR = " ; "
"""Between the names of a prompt, and between the objects of an answer."""

_VERBS: dict[str, Task] = {"detect": "detect", "segment": "segment"}
_FORGING = ("<", ";", "[@BOS@]")


class Asked(NamedTuple):
    """A task, the prompts that ask for it, and the names in them where they are known."""

    task: Task
    prompts: tuple[str, ...]
    names: list[str]


def split_verb(prompt: str) -> tuple[Task | None, str]:
    """Split a prompt into its verb and the rest; no verb for other prompts (``caption en``)."""
    text = prompt.strip()
    verb, _, rest = text.partition(" ")
    task = _VERBS.get(verb)
    return (task, rest.strip()) if task else (None, text)


def write_prompt(task: Task, names: Sequence[str]) -> str:
    """Write the prompt that asks for names: ``detect cat ; dog``."""
    return f"{task} {SEPARATOR.join(names)}"


def with_verb(task: Task, prompt: str) -> str:
    """Add the verb where it is missing: ``cat ; dog`` and ``detect cat ; dog`` ask the same."""
    verb, _ = split_verb(prompt)
    if verb not in (None, task):
        raise InputError(f"the prompt {prompt!r} asks to {verb}, the task is to {task}")
    return prompt if verb else f"{task} {prompt}"


def asked_names(prompt: str) -> tuple[Task, list[str]] | None:
    """Read the task and the names out of a prompt; None for prompts without a verb."""
    verb, rest = split_verb(prompt)
    if verb is None:
        return None
    names = list(dict.fromkeys(name.strip() for name in rest.split(";") if name.strip()))
    if not names:
        raise InputError(f"{prompt!r} asks for nothing: name what to {verb}, as '{verb} cat ; dog'")
    for name in names:
        check_name(name)
    return verb, names


def check_name(name: str) -> None:
    """Refuse a name that would be read as something else."""
    breaks = name.splitlines() != [name] or name != name.strip()
    if breaks or any(mark in name for mark in _FORGING):
        raise InputError(
            f"{name[:60]!r} can't be a label: it holds '<' or a line break (or ';', '[@BOS@]', "
            "white space at its ends, or nothing)"
        )


def asked_for(prompt: str) -> str:
    """Return the one name that a prompt asks for, or ``""``: ``segment cat`` gives ``cat``."""
    name = split_verb(prompt)[1] or prompt.strip()
    return "" if ";" in name else name


def plain_expression(prompt: str) -> str:
    """Return a referring expression in lower case, without ``segment`` and doubled spaces."""
    text = prompt.lower()
    verb, rest = split_verb(text)
    return " ".join((rest if verb == "segment" else text).split())


def prompts_for(names: Sequence[str], classes_per_prompt: int | None = None) -> tuple[str, ...]:
    """Return the names in one prompt, or so many in each, without a verb."""
    if not names:
        raise InputError("nothing to look for: give --prompt 'detect cat ; dog', or --classes FILE")
    for name in names:
        check_name(name)
    size = len(names) if classes_per_prompt is None else classes_per_prompt
    if size < 1:
        raise InputError(f"classes_per_prompt must be at least 1, got {size}")
    return tuple(SEPARATOR.join(names[n : n + size]) for n in range(0, len(names), size))


def in_groups(task: Task, prompt: str, classes_per_prompt: int | None) -> tuple[str, ...]:
    """Split a prompt of more names than `classes_per_prompt`; others stay as they are written."""
    asked = asked_names(with_verb(task, prompt))
    if asked is None or classes_per_prompt is None:
        return (prompt,)
    groups = prompts_for(asked[1], classes_per_prompt)
    return (prompt,) if len(groups) == 1 else groups


def what_to_ask(
    task: Task | None,
    prompt: str | Sequence[str] | None,
    classes: Sequence[str] | None,
    known: Sequence[str],
    classes_per_prompt: int | None = None,
) -> Asked:
    """Work out the task, the prompts, and the names they ask for.

    Without a task it is the verb of the prompts, which are all asked. Names to ask for are those
    of the prompts, else `classes`, else `known`, the classes that the model's folder lists. A
    prompt has all of its names, or at most `classes_per_prompt`. No two prompts may ask for the
    same name.
    """
    prompts = (prompt,) if isinstance(prompt, str) else tuple(dict.fromkeys(prompt or ()))
    if prompts and classes is not None:
        raise InputError("give --prompt or --classes, not both")
    verbs = dict.fromkeys(verb for verb, _ in map(split_verb, prompts) if verb)
    if len(verbs) > 1:
        raise InputError("one prompt asks to detect, another to segment: run each on its own")
    task = task or next(iter(verbs), None)
    if task is None:
        raise InputError(
            "nothing to look for: give --prompt 'detect cat ; dog' or 'segment cat', or --task "
            "with --classes FILE"
        )
    if not prompts:
        names = list(known if classes is None else classes)
        return Asked(task, prompts_for(names, classes_per_prompt), names)
    names = []
    for text in prompts:
        asked = asked_names(with_verb(task, text))
        names += [] if asked is None else asked[1]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two prompts ask for {twice!r}: its objects would come twice")
    groups = [group for text in prompts for group in in_groups(task, text, classes_per_prompt)]
    return Asked(task, tuple(groups), names)
