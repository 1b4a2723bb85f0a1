"""Boxes, masks, run lengths and polygons."""
