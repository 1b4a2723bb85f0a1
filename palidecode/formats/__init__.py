"""Files of other tools, written and read: YOLO, Pascal VOC, CVAT, Label Studio, tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from palidecode.formats.cvat import read_cvat as read_cvat
from palidecode.formats.cvat import write_cvat
from palidecode.formats.labelstudio import write_labelstudio
from palidecode.formats.objects import BAD_ROWS as BAD_ROWS
from palidecode.formats.objects import CROWDS as CROWDS
from palidecode.formats.objects import ConvertReport as ConvertReport
from palidecode.formats.objects import Dataset as Dataset
from palidecode.formats.objects import Labelled as Labelled
from palidecode.formats.objects import LabelledPicture as LabelledPicture
from palidecode.formats.tables import write_createml, write_csv, write_parquet
from palidecode.formats.voc import read_voc as read_voc
from palidecode.formats.voc import write_voc
from palidecode.formats.yolo import read_yolo as read_yolo
from palidecode.formats.yolo import write_yolo

Format: TypeAlias = Literal[
    "yolo", "yolo-seg", "voc", "cvat", "labelstudio", "createml", "csv", "parquet"
]
FOLDERS: tuple[Format, ...] = ("yolo", "yolo-seg", "voc")
"""Formats that are a folder; the others are one file."""
WRITERS: dict[str, Callable[[Dataset, str | os.PathLike[str], ConvertReport], object]] = {
    "yolo": partial(write_yolo, outlines=False),
    "yolo-seg": partial(write_yolo, outlines=True),
    "voc": write_voc,
    "cvat": write_cvat,
    "labelstudio": write_labelstudio,
    "createml": write_createml,
    "csv": write_csv,
    "parquet": write_parquet,
}
"""Each writes a dataset into a folder or a file, and fills the report."""
