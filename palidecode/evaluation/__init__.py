"""Detections and masks held against ground truth."""
