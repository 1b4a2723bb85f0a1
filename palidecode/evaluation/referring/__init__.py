"""Referring segmentation: mIoU and its relatives."""
