"""Detections of many images in columns; `decode` makes them, `draw` draws them."""

from palidecode.detections.columns import ImageId as ImageId
from palidecode.detections.decoding import decode as decode
from palidecode.detections.decoding import place_objects as place_objects
from palidecode.detections.objects import CodecMismatchWarning as CodecMismatchWarning
from palidecode.detections.objects import ColorBy as ColorBy
from palidecode.detections.objects import Detections as Detections
from palidecode.detections.objects import draw as draw
