"""PaliGemma's answers to boxes, masks and COCO, and back.

Names are loaded when they are first used: ``import palidecode`` is light, and reading text
needs numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from palidecode.version import __version__ as __version__

if TYPE_CHECKING:
    from palidecode.answers.assembler import IssueKind, ParsedObject, ParseIssue
    from palidecode.answers.batch import parse_batch
    from palidecode.answers.parsing import ParseResult, format_objects, parse
    from palidecode.answers.stream import StreamParser
    from palidecode.coco.categories import CategoryMap
    from palidecode.coco.loading import from_coco, from_coco_results
    from palidecode.coco.writing import CocoReport, CocoWriter, MaskFormat, to_coco, to_coco_results
    from palidecode.codec import load_codec
    from palidecode.detections import CodecMismatchWarning, Detections, decode, draw
    from palidecode.errors import InputError, PalidecodeError, ParseError, WeightsError
    from palidecode.evaluation.coco.comparison import CocoComparison, compare_coco
    from palidecode.evaluation.coco.evaluate import UnscoredWarning, evaluate_coco
    from palidecode.evaluation.coco.result import CocoEvaluation
    from palidecode.evaluation.referring.evaluate import ReferringResult, evaluate_referring
    from palidecode.finetune.encoding import encode_boxes, encode_masks
    from palidecode.finetune.objects import EncodeReport
    from palidecode.finetune.rows import to_finetuning_rows
    from palidecode.geometry.boxes import box_iou, loc_to_xyxy, xyxy_to_loc
    from palidecode.pipeline.decoder import PaliDecoder, UnreadablePictureWarning
    from palidecode.pipeline.reading import Generated
    from palidecode.runtime.grammar import GrammarOptions
    from palidecode.vocab import Vocabulary


_HOMES = {
    "coco.categories": ("CategoryMap",),
    "coco.writing": (
        "CocoReport",
        "CocoWriter",
        "MaskFormat",
        "to_coco",
        "to_coco_results",
    ),
    "coco.loading": ("from_coco", "from_coco_results"),
    "codec": ("load_codec",),
    "answers.assembler": ("IssueKind", "ParseIssue", "ParsedObject"),
    "answers.batch": ("parse_batch",),
    "geometry.boxes": ("box_iou", "loc_to_xyxy", "xyxy_to_loc"),
    "answers.parsing": ("ParseResult", "format_objects", "parse"),
    "answers.stream": ("StreamParser",),
    "detections": ("CodecMismatchWarning", "Detections", "decode", "draw"),
    "finetune.encoding": ("encode_boxes", "encode_masks"),
    "errors": ("InputError", "PalidecodeError", "ParseError", "WeightsError"),
    "evaluation.coco.evaluate": ("UnscoredWarning", "evaluate_coco"),
    "evaluation.coco.comparison": ("CocoComparison", "compare_coco"),
    "evaluation.coco.result": ("CocoEvaluation",),
    "evaluation.referring.evaluate": ("ReferringResult", "evaluate_referring"),
    "finetune.rows": ("to_finetuning_rows",),
    "pipeline.reading": ("Generated",),
    "finetune.objects": ("EncodeReport",),
    "pipeline.decoder": ("PaliDecoder", "UnreadablePictureWarning"),
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
