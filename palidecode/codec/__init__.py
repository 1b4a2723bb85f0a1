"""Seg codes to 64x64 mask fields and back, in onnxruntime or torch."""
