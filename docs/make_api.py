"""Write ``api.md`` from the docstrings: ``python docs/make_api.py``. A test keeps it current."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import palidecode
from palidecode import ray_data

GROUPS = {
    "Answers": ("parse", "parse_batch", "StreamParser", "format_objects"),
    "What answers are made of": ("ParseResult", "ParsedObject", "ParseIssue", "IssueKind"),
    "Boxes": ("loc_to_xyxy", "xyxy_to_loc", "box_iou", "encode_boxes"),
    "Detections": ("decode", "Detections", "CodecMismatchWarning"),
    "Run the model": (
        "PaliDecoder",
        "Generated",
        "GrammarOptions",
        "UnreadablePictureWarning",
    ),
    "Masks": ("load_codec", "encode_masks"),
    "COCO": (
        "to_coco",
        "to_coco_results",
        "from_coco",
        "from_coco_results",
        "CocoWriter",
        "MaskFormat",
        "CategoryMap",
        "CocoReport",
    ),
    "Evaluation": (
        "evaluate_coco",
        "CocoEvaluation",
        "compare_coco",
        "CocoComparison",
        "UnscoredWarning",
    ),
    "Fine-tuning": ("to_finetuning_rows", "EncodeReport"),
    "Referring segmentation": ("evaluate_referring", "ReferringResult"),
    "Drawing": ("draw",),
    "Vocabulary and errors": (
        "Vocabulary",
        "PalidecodeError",
        "ParseError",
        "InputError",
        "WeightsError",
    ),
}


MODULES = {"On a Ray cluster: `palidecode.ray_data`": ray_data}
"""Modules whose names are not `palidecode`'s own."""


def entry(name: str, module: ModuleType = palidecode) -> str:
    """A name's signature, docstring and public methods."""
    value = getattr(module, name)
    lines = [f"### `{name}`", ""]
    is_class = inspect.isclass(value)
    if not (is_class and issubclass(value, (Exception, palidecode.IssueKind))):
        lines += ["```text", f"{name}{signature(value)}", "```", ""]
    lines += ["```text", inspect.getdoc(value) or "", "```", ""]
    if name == "IssueKind":
        return "\n".join([*lines, ", ".join(f"`{kind.value}`" for kind in value), ""])
    for method in vars(value) if is_class else ():
        function = getattr(value, method)  # of a class method: without its first argument
        if method.startswith("_") or not (
            inspect.isfunction(function) or inspect.ismethod(function)
        ):
            continue
        lines += [f"#### `{name}.{method}`", "", "```text", f"{method}{signature(function)}"]
        lines += ["", inspect.getdoc(function) or "", "```", ""]
    return "\n".join(lines)


def signature(value: object) -> str:
    """One parameter a line where it would be long."""
    assert callable(value)
    parameters, starred = [], False
    for item in inspect.signature(value).parameters.values():
        if item.name == "self":
            continue
        if item.kind is item.KEYWORD_ONLY and not starred:
            parameters.append("*")
            starred = True
        name = f"**{item.name}" if item.kind is item.VAR_KEYWORD else item.name
        if item.annotation is not item.empty:
            name += f": {item.annotation}"
        parameters.append(name if item.default is item.empty else f"{name} = {item.default!r}")
    short = f"({', '.join(parameters)})"
    if len(short) <= 80:
        return short
    return "(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + ")"


def page() -> str:
    """The whole page."""
    head = "# API reference\n\nMade from the docstrings by `python docs/make_api.py`.\n"
    parts = [head]
    for group, names in GROUPS.items():
        parts += [f"## {group}\n", *(entry(name) for name in names)]
    for group, module in MODULES.items():
        parts += [f"## {group}\n", f"{inspect.getdoc(module)}\n"]
        parts += [entry(name, module) for name in module.__all__]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
