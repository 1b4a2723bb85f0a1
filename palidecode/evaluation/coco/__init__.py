"""COCO's mAP, with what vision-language models need around it."""
