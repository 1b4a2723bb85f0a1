"""PaliGemma's answers to boxes, masks and COCO, and back.

Names are loaded when they are first used: ``import palidecode`` is light, and reading text
needs numpy alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from palidecode.version import __version__ as __version__

try:
    with open(__file__, encoding="utf-8") as _file:
        _SOURCE = _file.read()
except OSError:  # an application that was packed without sources imports everything
    _SOURCE = ""

# Every public name is written here and nowhere else: type checkers and the documentation read
# these lines as imports, `_HOME_OF` reads them as text.
if TYPE_CHECKING or not _SOURCE:
    from palidecode.answers.assembler import IssueKind as IssueKind
    from palidecode.answers.assembler import ParsedObject as ParsedObject
    from palidecode.answers.assembler import ParseIssue as ParseIssue
    from palidecode.answers.batch import parse_batch as parse_batch
    from palidecode.answers.parsing import ParseResult as ParseResult
    from palidecode.answers.parsing import format_objects as format_objects
    from palidecode.answers.parsing import parse as parse
    from palidecode.answers.stream import StreamParser as StreamParser
    from palidecode.coco.categories import CategoryMap as CategoryMap
    from palidecode.coco.detections import from_coco as from_coco
    from palidecode.coco.detections import from_coco_results as from_coco_results
    from palidecode.coco.skips import SkippedRowsWarning as SkippedRowsWarning
    from palidecode.coco.writing import CocoReport as CocoReport
    from palidecode.coco.writing import CocoWriter as CocoWriter
    from palidecode.coco.writing import MaskFormat as MaskFormat
    from palidecode.coco.writing import to_coco as to_coco
    from palidecode.coco.writing import to_coco_results as to_coco_results
    from palidecode.codec import load_codec as load_codec
    from palidecode.detections import CodecMismatchWarning as CodecMismatchWarning
    from palidecode.detections import Detections as Detections
    from palidecode.detections import decode as decode
    from palidecode.detections import draw as draw
    from palidecode.errors import InputError as InputError
    from palidecode.errors import PalidecodeError as PalidecodeError
    from palidecode.errors import ParseError as ParseError
    from palidecode.errors import ServerError as ServerError
    from palidecode.errors import WeightsError as WeightsError
    from palidecode.evaluation.coco.comparison import CocoComparison as CocoComparison
    from palidecode.evaluation.coco.comparison import compare_coco as compare_coco
    from palidecode.evaluation.coco.evaluate import UnscoredWarning as UnscoredWarning
    from palidecode.evaluation.coco.evaluate import evaluate_coco as evaluate_coco
    from palidecode.evaluation.coco.evaluator import CocoEvaluator as CocoEvaluator
    from palidecode.evaluation.coco.result import CocoEvaluation as CocoEvaluation
    from palidecode.evaluation.referring.evaluate import ReferringResult as ReferringResult
    from palidecode.evaluation.referring.evaluate import evaluate_referring as evaluate_referring
    from palidecode.finetune.encoding import encode_boxes as encode_boxes
    from palidecode.finetune.encoding import encode_masks as encode_masks
    from palidecode.finetune.objects import EncodeReport as EncodeReport
    from palidecode.finetune.rows import to_finetuning_rows as to_finetuning_rows
    from palidecode.geometry.boxes import box_iou as box_iou
    from palidecode.geometry.boxes import loc_to_xyxy as loc_to_xyxy
    from palidecode.geometry.boxes import xyxy_to_loc as xyxy_to_loc
    from palidecode.pipeline.decoder import PaliDecoder as PaliDecoder
    from palidecode.pipeline.endpoint import EndpointOptions as EndpointOptions
    from palidecode.pipeline.lark import lark_grammar as lark_grammar
    from palidecode.pipeline.reading import Answers as Answers
    from palidecode.pipeline.reading import Generated as Generated
    from palidecode.pipeline.reading import UnreadablePictureWarning as UnreadablePictureWarning
    from palidecode.pipeline.text_length import LongTextWarning as LongTextWarning
    from palidecode.runtime.options import GrammarOptions as GrammarOptions
    from palidecode.vocab import Vocabulary as Vocabulary

_HOME_OF = {
    line.split()[-1]: line.split()[1]
    for line in _SOURCE.splitlines()
    if line.startswith("    from palidecode.")
}

if not TYPE_CHECKING:  # which would take any name for one of the package
    globals()["__all__"] = sorted(_HOME_OF)

    def __getattr__(name: str) -> object:
        if name in _HOME_OF:
            value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
            return value
        if name.startswith("_") or importlib.util.find_spec(f"palidecode.{name}") is None:
            raise AttributeError(f"module 'palidecode' has no attribute {name!r}")
        return importlib.import_module(f"palidecode.{name}")  # palidecode.report

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOME_OF})
