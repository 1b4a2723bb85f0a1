"""PaliGemma 1 and 2 in PyTorch: the model, its files, its tokens, its answers."""
