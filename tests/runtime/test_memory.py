import torch

from palidecode.runtime.config import PRESETS
from palidecode.runtime.memory import free_bytes, weight_bytes


def test_memory_that_is_needed_and_free():
    config = PRESETS["paligemma2-28b-896"]
    whole = weight_bytes(config, 2)
    assert whole == 2 * config.parameters()
    assert 54e9 < whole < 58e9
    embedding = config.text.vocabulary * config.text.width
    # The head is int8 beside the embedding in bfloat16.
    assert weight_bytes(config, 2, "int8") == whole // 2 + 2 * embedding
    assert free_bytes(torch.device("meta")) is None
    free = free_bytes(torch.device("cpu"))
    assert free is None or 10**7 < free < 10**15
