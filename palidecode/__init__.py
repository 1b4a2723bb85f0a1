"""PaliGemma's answers to boxes, masks and COCO, and back.

Names are loaded when they are first used: ``import palidecode`` is light, and reading text
needs numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palidecode.categories import CategoryMap
    from palidecode.coco import (
        CocoReport,
        CocoWriter,
        MaskFormat,
        to_coco,
        to_coco_results,
    )
    from palidecode.coco_reading import from_coco, from_coco_results
    from palidecode.codec import load_codec
    from palidecode.decoding.assembler import IssueKind, ParsedObject, ParseIssue
    from palidecode.decoding.batch import parse_batch
    from palidecode.decoding.boxes import box_iou, loc_to_xyxy, xyxy_to_loc
    from palidecode.decoding.parsing import ParseResult, format_objects, parse
    from palidecode.decoding.stream import StreamParser
    from palidecode.detections import CodecMismatchWarning, Detections, decode
    from palidecode.drawing import draw
    from palidecode.encoding import encode_boxes, encode_masks
    from palidecode.errors import InputError, PalidecodeError, ParseError, WeightsError
    from palidecode.evaluation.coco import UnscoredWarning, evaluate_coco
    from palidecode.evaluation.comparison import CocoComparison, compare_coco
    from palidecode.evaluation.referring import ReferringResult, evaluate_referring
    from palidecode.evaluation.result import CocoEvaluation
    from palidecode.finetune import to_finetuning_rows
    from palidecode.generated import Generated
    from palidecode.ground_truth import EncodeReport
    from palidecode.pipeline import PaliDecoder, UnreadablePictureWarning
    from palidecode.runtime.grammar import GrammarOptions
    from palidecode.vocab import Vocabulary

__version__ = "0.1.0"

_HOMES = {
    "categories": ("CategoryMap",),
    "coco": (
        "CocoReport",
        "CocoWriter",
        "MaskFormat",
        "to_coco",
        "to_coco_results",
    ),
    "coco_reading": ("from_coco", "from_coco_results"),
    "codec": ("load_codec",),
    "decoding.assembler": ("IssueKind", "ParseIssue", "ParsedObject"),
    "decoding.batch": ("parse_batch",),
    "decoding.boxes": ("box_iou", "loc_to_xyxy", "xyxy_to_loc"),
    "decoding.parsing": ("ParseResult", "format_objects", "parse"),
    "decoding.stream": ("StreamParser",),
    "detections": ("CodecMismatchWarning", "Detections", "decode"),
    "drawing": ("draw",),
    "encoding": ("encode_boxes", "encode_masks"),
    "errors": ("InputError", "PalidecodeError", "ParseError", "WeightsError"),
    "evaluation.coco": ("UnscoredWarning", "evaluate_coco"),
    "evaluation.comparison": ("CocoComparison", "compare_coco"),
    "evaluation.result": ("CocoEvaluation",),
    "evaluation.referring": ("ReferringResult", "evaluate_referring"),
    "finetune": ("to_finetuning_rows",),
    "generated": ("Generated",),
    "ground_truth": ("EncodeReport",),
    "pipeline": ("PaliDecoder", "UnreadablePictureWarning"),
    "runtime.grammar": ("GrammarOptions",),
    "vocab": ("Vocabulary",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CategoryMap",
    "CocoComparison",
    "CocoEvaluation",
    "CocoReport",
    "CocoWriter",
    "CodecMismatchWarning",
    "Detections",
    "EncodeReport",
    "Generated",
    "GrammarOptions",
    "InputError",
    "IssueKind",
    "MaskFormat",
    "PaliDecoder",
    "PalidecodeError",
    "ParseError",
    "ParseIssue",
    "ParseResult",
    "ParsedObject",
    "ReferringResult",
    "StreamParser",
    "UnreadablePictureWarning",
    "UnscoredWarning",
    "Vocabulary",
    "WeightsError",
    "box_iou",
    "compare_coco",
    "decode",
    "draw",
    "encode_boxes",
    "encode_masks",
    "evaluate_coco",
    "evaluate_referring",
    "format_objects",
    "from_coco",
    "from_coco_results",
    "load_codec",
    "loc_to_xyxy",
    "parse",
    "parse_batch",
    "to_coco",
    "to_coco_results",
    "to_finetuning_rows",
    "xyxy_to_loc",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'palidecode' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"palidecode.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
