"""PaliGemma 1 and 2 in torch and ONNX Runtime: models, their files, tokens and answers."""
