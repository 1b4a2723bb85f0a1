"""``POST /v1/decode``: answers of any model to annotations; no model and no torch needed."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Annotated, Literal, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from palidecode.answers.batch import parse_batch
from palidecode.answers.parsing import Answer, Detokenize, parse
from palidecode.coco.writing import to_coco
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import DEMO_ID, GOOGLE_ID
from palidecode.detections import Detections
from palidecode.detections.decoding import place_objects
from palidecode.errors import PalidecodeError
from palidecode.files import MAX_SIDE
from palidecode.pipeline import PaliDecoder
from palidecode.serve.objects import Json, boxed, issues_of, objects_of
from palidecode.serve.options import Segmentation, read_json
from palidecode.serve.refusals import Refused, json_reply
from palidecode.serve.service import Service
from palidecode.serve.settings import Settings
from palidecode.vocab import PALIGEMMA, Vocabulary

MAX_ANSWERS = 1000
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Size: TypeAlias = Annotated[list[Side], msgspec.Meta(min_length=2, max_length=2)]


class DecodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers and the sizes of their pictures.

    Attributes
    ----------
    answers : str, or list of (str or list of int)
        Texts, or token ids: those of the model that is loaded, else PaliGemma's.
    sizes : [width, height], or a list of them
    names : list of str, optional
        File names, for COCO.
    codec : {"google-oid", "palidecode-demo"}, optional
        The mask codec that the seg tokens belong to; Google's by default.
    """

    answers: str | list[str | list[TokenId]]
    sizes: list[Side | Size]
    names: list[str] | None = None
    codec: Literal["google-oid", "palidecode-demo"] | None = None
    divisor: Literal[1024, 1023] = 1024
    clip: bool = False
    segmentation: Segmentation = "polygons"


async def decode(request: Request) -> Response:
    """Answer ``POST /v1/decode``."""
    body: DecodeBody = read_json(await request.body(), DecodeBody)
    service: Service | None = request.app.state.service
    decoder = None if service is None else service.decoder
    coco = wants_coco(request)
    settings: Settings = request.app.state.settings
    return json_reply(await asyncio.to_thread(_decoded, body, decoder, coco, settings.max_pixels))


def wants_coco(request: Request) -> bool:
    """Return True if the query asks for ``format=coco``; refuse other formats."""
    form = request.query_params.get("format", "objects")
    if form not in ("objects", "coco"):
        raise Refused(400, f"format must be objects or coco, got {form!r}")
    return form == "coco"


def _decoded(body: DecodeBody, decoder: PaliDecoder | None, coco: bool, max_pixels: int) -> Json:
    answers: list[Answer] = []
    answers += [body.answers] if isinstance(body.answers, str) else body.answers
    if len(answers) > MAX_ANSWERS:
        raise Refused(413, f"{len(answers)} answers are more than {MAX_ANSWERS}: send fewer")
    vocabulary: Vocabulary = PALIGEMMA
    detokenize: Detokenize | None = None
    if decoder is not None:
        vocabulary, detokenize = decoder.tokenizer.vocabulary, decoder.tokenizer.decode
    try:
        codec, warnings = _codec(body.codec)
        detections = place_objects(
            parse_batch(answers, vocabulary=vocabulary, detokenize=detokenize),
            len(answers),
            body.sizes,
            codec,
            body.divisor,
            names=body.names,
            clip=body.clip,
            codes_id=codec.id,
        )
        if (detections.sizes.prod(axis=1) > max_pixels).any():  # masks are as large as pictures
            raise Refused(413, f"a size is of more than {max_pixels:,} pixels: send a smaller one")
        if not detections.has_mask.any():
            warnings = []
        if coco:
            dataset = to_coco(detections, segmentation=body.segmentation)
            return {**dataset, "warnings": warnings}
        results = [parse(a, vocabulary=vocabulary, detokenize=detokenize) for a in answers]
        spans = [boxed(result.objects) for result in results]
        images = [_image(detections, n, body.segmentation, its) for n, its in enumerate(spans)]
    except PalidecodeError as error:
        raise Refused(400, str(error)) from error
    return {"images": images, "warnings": warnings}


def _image(
    detections: Detections,
    index: int,
    segmentation: Segmentation,
    spans: list[tuple[int, int]],
) -> Json:
    part = detections.select(detections.image_index == index)
    width, height = map(int, detections.sizes[index])
    return {
        "name": detections.names[index],
        "width": width,
        "height": height,
        "objects": objects_of(part, segmentation, spans),
        "issues": issues_of(issue for image, issue in detections.issues if image == index),
    }


@cache
def _codec(name: str | None) -> tuple[MaskCodec, list[str]]:
    """Return the mask codec of a name, and the warning if it isn't the one that was meant."""
    if name == DEMO_ID:
        return load_codec(DEMO_ID), []
    codec = load_codec(name)
    if name is not None or codec.id == GOOGLE_ID:
        return codec, []
    return codec, [
        f"seg tokens of Google's checkpoints are decoded with {codec.id!r}: boxes are right, mask "
        "shapes are NOT; run on the server: palidecode weights fetch"
    ]
