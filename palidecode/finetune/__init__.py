"""COCO datasets to fine-tuning rows."""
