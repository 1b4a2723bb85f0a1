"""The options of ``palidecode completion``."""

from __future__ import annotations

import argparse

EXAMPLES = """\
palidecode completion bash \\
    > ~/.local/share/bash-completion/completions/palidecode
palidecode completion zsh > ~/.zfunc/_palidecode
palidecode completion fish > ~/.config/fish/completions/palidecode.fish
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode completion``."""
    parser.add_argument(
        "shell",
        choices=("bash", "zsh", "fish"),
        help="the shell; zsh reads the script from a directory of $fpath",
    )
    parser.set_defaults(quiet=False, verbose=False)
