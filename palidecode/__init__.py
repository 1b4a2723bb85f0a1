"""PaliGemma's answers to boxes, masks and COCO, and back."""

__version__ = "0.1.0"
