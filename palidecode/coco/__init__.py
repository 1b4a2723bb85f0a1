"""COCO files: read, checked, written."""
