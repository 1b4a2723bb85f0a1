"""Tokens in, detections out. Needs numpy, OpenCV, shapely and pycocotools; never torch."""
