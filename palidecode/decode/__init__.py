"""Tokens in, detections out. Needs numpy, OpenCV, shapely and pycocotools; never torch."""

# TEMPORARY until the folder is renamed to `decoding`
import sys as _s, types as _t  # noqa


class _M(_t.ModuleType):
    def __call__(self, *a, **k):  # type: ignore
        from palidecode.detections import decode

        return decode(*a, **k)


_s.modules[__name__].__class__ = _M
