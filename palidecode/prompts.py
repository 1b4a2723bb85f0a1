"""What a prompt asks for."""

from __future__ import annotations

_VERBS = ("detect ", "segment ")


def asked_for(prompt: str) -> str:
    """What a prompt asks for, if it is one thing: ``segment cat`` gives ``cat``."""
    text = prompt.strip()
    for verb in _VERBS:
        text = text.removeprefix(verb)
    return "" if ";" in text else text.strip()
