"""Slow, obvious versions of fast code, for tests to compare with."""

from __future__ import annotations

import math
import re

import numpy as np
from PIL import Image

# --- Masks and the mask codec ---------------------------------------------------------------


def pasted_image(field, xyxy, size):
    """big_vision's paste into a whole image: ``int()`` corners, Pillow's bilinear, > 0."""
    width, height = size
    x1, y1, x2, y2 = (int(corner) for corner in xyxy)
    image = np.zeros((height, width), bool)
    if x2 <= x1 or y2 <= y1:
        return image
    resized = Image.fromarray(field).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
    for row, values in enumerate(np.asarray(resized)):
        for column, value in enumerate(values):
            y, x = y1 + row, x1 + column
            if 0 <= y < height and 0 <= x < width:
                image[y, x] = value > 0
    return image


def sampled_image(field, xyxy, size):
    """A field read at each pixel's centre inside the box, bilinearly, in a whole image, > 0."""
    (x1, y1, x2, y2), (width, height) = map(float, xyxy), size
    image = np.zeros((height, width), bool)
    side = len(field)

    def sample(centre, low, high):
        at = min(max((centre - low) / (high - low) * side - 0.5, 0), side - 1)
        first = min(int(at), side - 2)
        return first, at - first

    for y in range(height):
        for x in range(width):
            if x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2:
                (i, u), (j, v) = sample(y + 0.5, y1, y2), sample(x + 0.5, x1, x2)
                upper = field[i, j] * (1 - v) + field[i, j + 1] * v
                lower = field[i + 1, j] * (1 - v) + field[i + 1, j + 1] * v
                image[y, x] = upper * (1 - u) + lower * u > 0
    return image


def whole_image(crop, size):
    """A crop put into its image."""
    image = np.zeros(size[::-1], bool)
    h, w = crop.mask.shape
    image[crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    return image


def filled_holes(mask):
    """The mask and every background pixel that can't walk out of the image, edge by edge."""
    outside = np.zeros(np.add(mask.shape, 2), bool)
    free = np.pad(~mask, 1, constant_values=True)
    outside[0, 0] = True
    while True:
        grown = outside.copy()
        grown[1:] |= outside[:-1]
        grown[:-1] |= outside[1:]
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown &= free
        if (grown == outside).all():
            return ~outside[1:-1, 1:-1]
        outside = grown


def _convolve(x, arrays, name, stride=1):
    kernel, bias = arrays[f"{name}.weight"].astype(float), arrays[f"{name}.bias"]
    side = kernel.shape[2]
    padded = np.pad(x, ((0, 0), *[((side - 1) // 2,) * 2] * 2))
    height, width = ((n - side) // stride + 1 for n in padded.shape[1:])
    out = np.zeros((len(bias), height, width)) + bias[:, None, None]
    for dy in range(side):
        for dx in range(side):
            seen = padded[:, dy : dy + stride * height : stride, dx : dx + stride * width : stride]
            out += np.einsum("oi,iyx->oyx", kernel[:, :, dy, dx], seen)
    return out


def _convolve_transposed(x, arrays, name):
    kernel, bias = arrays[f"{name}.weight"].astype(float), arrays[f"{name}.bias"]
    _, height, width = x.shape
    out = np.zeros((len(bias), 2 * height + 2, 2 * width + 2)) + bias[:, None, None]
    for dy in range(4):
        for dx in range(4):
            spread = np.einsum("io,iyx->oyx", kernel[:, :, dy, dx], x)
            out[:, dy : dy + 2 * height : 2, dx : dx + 2 * width : 2] += spread
    return out[:, 1:-1, 1:-1]


def _residual(x, arrays, name):
    y = np.maximum(_convolve(x, arrays, f"{name}.net.0"), 0)
    y = np.maximum(_convolve(y, arrays, f"{name}.net.2"), 0)
    return x + _convolve(y, arrays, f"{name}.net.4")


def decoded_field(codes, arrays):
    """Sixteen codes to a 64×64 field, in float64."""
    x = arrays["_vq_vae._embedding"][codes].astype(float).reshape(4, 4, 512).transpose(2, 0, 1)
    x = np.maximum(_convolve(x, arrays, "decoder.0"), 0)
    x = _residual(_residual(x, arrays, "decoder.2"), arrays, "decoder.3")
    for layer in (4, 6, 8, 10):
        x = np.maximum(_convolve_transposed(x, arrays, f"decoder.{layer}"), 0)
    return _convolve(x, arrays, "decoder.12")[0]


def encoded_mask(mask, arrays):
    """A 64×64 mask in [0, 1] to sixteen codes, in float64."""
    x = 2 * (mask.astype(float)[None] - 0.5)
    for layer in (0, 2, 4, 6):
        x = np.maximum(_convolve(x, arrays, f"encoder.{layer}", stride=2), 0)
    x = _residual(_residual(x, arrays, "encoder.8"), arrays, "encoder.9")
    latents = _convolve(x, arrays, "encoder.10").reshape(512, 16).T
    rows = arrays["_vq_vae._embedding"].astype(float)
    return [int(((latent - rows) ** 2).sum(axis=1).argmin()) for latent in latents]


# --- Answers ---------------------------------------------------------------------------------

_LOC, _SEG = "<loc[0-9]{1,8}>", "<seg[0-9]{1,8}>"
_TOKEN = rf"{_LOC}|{_SEG}|<pad>|<bos>"
# Control tokens of other formats end a label; what follows them belongs to no object.
_FOREIGN = r"</?s>|<unk>|<mask>|<image>|<unused\d{1,2}>|<\|\w{1,20}\|>"
_FOREIGN += "|<(?:start|end)_of_[a-z]{1,8}>"
# Four loc tokens or more (white space only among the first four), or one to three.
_LOCS = rf"(?:{_LOC}\s*){{3}}(?:{_LOC})+|{_LOC}(?:\s*{_LOC}){{0,2}}"
_SEGS = rf"{_SEG}(?:\s*{_SEG})*"
_OBJECT = re.compile(
    rf"(?:(?P<locs>{_LOCS})(?:\s*(?P<segs>{_SEGS}))?|(?P<only_segs>{_SEGS}))"
    rf"\s*(?P<label>(?:(?!{_TOKEN}|{_FOREIGN})[^;\n])*)"
)


def parsed_answer(text):
    """Label, loc and seg of every object, by one regular expression."""
    text, end, _ = text.partition("<eos>")
    if not end:
        text = re.sub(r"<(loc|seg)[0-9]{0,8}\Z", "", text)
    found = []
    for match in _OBJECT.finditer(text):
        label, tokens = match["label"].strip(), re.findall("<[^>]*>", match["locs"] or "")
        if not label and not match["segs"] and len(tokens) > 4 and len(tokens) % 4 == 0:
            # Several boxes without a label between them.
            blocks = ["".join(tokens[at : at + 4]) for at in range(0, len(tokens), 4)]
            boxes = [_numbers(block, 4, 4, 1024) for block in blocks]
            found += [("", box, None) for box in boxes if box]
            continue
        loc = _numbers(match["locs"], 4, 4, 1024)
        seg = _numbers(match["segs"] or match["only_segs"], 3, 16, 128)
        if loc or seg:
            found.append((label, loc, seg))
    return found


def _numbers(tokens, digits, count, limit):
    numbers = re.findall("[0-9]+", tokens or "")[:count]
    right = all(len(number) == digits and int(number) < limit for number in numbers)
    return tuple(map(int, numbers)) if right and len(numbers) == count else None


_WHOLE_OBJECT = re.compile("((?:<loc[0-9]{4}>){4})((?:<seg[0-9]{3}>){16})?(?: ([^;<\\n]+))?")


def is_answer(text, names, masks, *, repeats=False, most=None):
    """True if `text` (without ``<eos>``) is a complete answer to a prompt that lists `names`.

    `names` is None where any label will do, and a list of one ``""`` where there is none.
    Without `repeats` a box has each of its labels once, and one label where any will do.
    """
    objects = text.split(" ; ") if text else []
    seen = []
    for one in objects:
        match = _WHOLE_OBJECT.fullmatch(one)
        if match is None or bool(match[2]) != masks:
            return False
        y1, x1, y2, x2 = (int(number) for number in re.findall("[0-9]+", match[1]))
        label = match[3] or ""
        if y2 <= y1 or x2 <= x1 or (names is None and not label):
            return False
        if names is not None and label not in names:
            return False
        seen.append((y1, x1, y2, x2, None if names is None else label))
    return (repeats or len(set(seen)) == len(seen)) and (most is None or len(seen) <= most)


# --- Referring segmentation -----------------------------------------------------------------


def referring_protocol(samples, divisor=1023):
    """big_vision's RefCOCO loop on whole images: miou, boxacc, invalid, total, each IoU.

    A sample is twenty numbers or None, the field, the true mask, and the true box as y1, x1,
    y2, x2 in fractions of the image.
    """
    ious, shared, unions = [], 0, 0
    box_ious, invalid = [], 0
    for tokens, field, truth, true_box in samples:
        height, width = truth.shape
        right = tokens is not None and tokens[2] > tokens[0] and tokens[3] > tokens[1]
        box = [bin_ / divisor for bin_ in tokens[:4]] if right else [0.0] * 4
        sides = [
            max(min(box[i + 2], true_box[i + 2]) - max(box[i], true_box[i]), 0) for i in (0, 1)
        ]
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, true_box)]
        box_ious.append(sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1]))
        y1, x1, y2, x2 = (
            int(box[0] * height),
            int(box[1] * width),
            int(box[2] * height),
            int(box[3] * width),
        )
        mask = np.zeros_like(truth)
        if x2 > x1 and y2 > y1:
            mask = pasted_image(field, (x1, y1, x2, y2), (width, height))
        else:
            invalid += 1
        both, either = (mask & truth).sum(), (mask | truth).sum()
        ious.append(both / either if x2 > x1 and y2 > y1 else 0.0)
        shared, unions = shared + both, unions + either
    return {
        "miou": sum(ious) / len(ious),
        "ciou": shared / unions,
        "boxacc": {at: sum(iou >= at for iou in box_ious) / len(ious) for at in (0.5, 0.75)},
        "precision": {
            at: sum(iou >= at for iou in ious) / len(ious) for at in (0.5, 0.6, 0.7, 0.8, 0.9)
        },
        "invalid": invalid,
        "total": len(ious),
        "ious": ious,
    }


def gres_numbers(samples, divisor=1023):
    """gIoU, N-acc and T-acc as GRES counts them, on whole images.

    A sample is twenty numbers or None (nothing predicted), the field, and the true mask, which
    has no pixel where the expression means nothing in the picture.
    """
    tp = fn = tn = fp = 0
    ious = []
    for tokens, field, truth in samples:
        height, width = truth.shape
        mask = np.zeros_like(truth)
        if tokens is not None:
            y1, x1, y2, x2 = (bin_ / divisor for bin_ in tokens[:4])
            corners = (int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height))
            mask = pasted_image(field, corners, (width, height))
        if not truth.any():
            tp, fn = (tp + 1, fn) if not mask.any() else (tp, fn + 1)
            ious.append(float(not mask.any()))
        else:
            fp, tn = (fp + 1, tn) if not mask.any() else (fp, tn + 1)
            ious.append((mask & truth).sum() / (mask | truth).sum())
    return {
        "giou": sum(ious) / len(ious),
        "n_acc": tp / (tp + fn) if tp + fn else math.nan,
        "t_acc": tn / (tn + fp) if tn + fp else math.nan,
    }


def box_accuracy(samples, at):
    """Share of boxes x1, y1, x2, y2 (None: no box) that reach an IoU with the true one."""
    right = 0
    for box, truth in samples:
        if box is not None:
            width = max(min(box[2], truth[2]) - max(box[0], truth[0]), 0)
            height = max(min(box[3], truth[3]) - max(box[1], truth[1]), 0)
            both = width * height
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth)]
            right += both / (sum(areas) - both) >= at
    return right / len(samples)


def suppressed(boxes, scores, groups, limit):
    """Greedy NMS, pair by pair: True for boxes that a better one of their group suppresses."""
    order = sorted(
        range(len(boxes)), key=lambda n: (np.isnan(scores[n]), -np.nan_to_num(scores[n]), n)
    )
    kept, dropped = [], np.zeros(len(boxes), bool)
    for n in order:
        a = [float(side) for side in boxes[n]]
        solid = a[2] > a[0] and a[3] > a[1] and np.isfinite(a).all()
        for m in kept if solid else ():
            b = [float(side) for side in boxes[m]]
            across, down = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
            both = across * down
            areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
            if groups[m] == groups[n] and both / (areas - both) > limit:
                dropped[n] = True
        if solid and not dropped[n]:
            kept.append(n)
    return dropped


def score_free(truth, results, thresholds):
    """F1 of precision and recall averaged over the classes of boxes, threshold by threshold.

    `truth` and `results` are COCO rows; the predictions are in the order in which they match.
    """
    classes = sorted({row["category_id"] for row in truth if not row["iscrowd"]})
    f1 = []
    for threshold in thresholds:
        precision, recall = [], []
        for name in classes:
            right = wrong = objects = 0
            for image in {row["image_id"] for row in (*truth, *results)}:
                of = {"image_id": image, "category_id": name}
                gt = [row for row in truth if of.items() <= row.items()]
                objects += sum(not row["iscrowd"] for row in gt)
                taken = set()
                for row in [row for row in results if of.items() <= row.items()][:100]:
                    best, chosen, crowd = threshold - 1e-12, None, False
                    for n, other in enumerate(gt):
                        if n in taken or other["iscrowd"]:
                            continue
                        iou = _coco_iou(row["bbox"], other["bbox"])
                        if iou >= best:
                            best, chosen = iou, n
                    if chosen is None:
                        crowd = any(
                            _coco_iou(row["bbox"], other["bbox"], True) >= threshold
                            for other in gt
                            if other["iscrowd"]
                        )
                    taken.add(chosen)
                    right += chosen is not None
                    wrong += chosen is None and not crowd
            precision.append(right / (right + wrong) if right + wrong else 0.0)
            recall.append(right / objects)
        p, r = sum(precision) / len(classes), sum(recall) / len(classes)
        f1.append(2 * p * r / (p + r) if p + r else 0.0)
    return f1


def without_repeats(results, limit):
    """NMS of each image and class: rows that overlap a better kept one by at least `limit`."""
    kept = []
    for row in sorted(results, key=lambda row: -row["score"]):
        same = {name: row[name] for name in ("image_id", "category_id")}
        rivals = [other for other in kept if same.items() <= other.items()]
        if all(_coco_iou(row["bbox"], other["bbox"]) < limit for other in rivals):
            kept.append(row)
    return kept


def best_on_each_object(truth, results, limit):
    """OVDEval's NMS: of the results over an object, regardless of class, the best stays."""
    kept, removed = [], []
    for true in truth:
        if not true["iscrowd"]:
            over = [row for row in results if row["image_id"] == true["image_id"]]
            over = [row for row in over if _coco_iou(row["bbox"], true["bbox"]) > limit]
            over.sort(key=lambda row: -row["score"])
            kept += over[:1]
            removed += over[1:]
    return [row for row in results if row in kept or row not in removed]


def _coco_iou(a, b, crowd=False):
    across, down = (max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    both, areas = across * down, [c[2] * c[3] for c in (a, b)]
    return both / (areas[0] if crowd else sum(areas) - both)
