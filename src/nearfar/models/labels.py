"""Names of classes: the built-in lists, a manifest's own, and files with one name a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.errors import InputError

if TYPE_CHECKING:
    from nearfar.models.manifest import Manifest

ABSENT = "n/a"
"""Stands in `coco90` for the ten category ids that COCO numbers but never labels."""

# COCO's category ids 1 to 90 with their official names (cocodataset.org, "things"); `-` marks an id without a category.
_COCO = """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,-,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,-,backpack,umbrella,-,-,handbag,tie,
suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,
-,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,
couch,potted plant,bed,-,dining table,-,-,toilet,-,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,
sink,refrigerator,-,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"""

COCO90 = tuple(ABSENT if name == "-" else name for name in _COCO.replace("\n", "").split(","))
"""Index = COCO category id - 1; what SSD models of the TensorFlow zoo give."""
COCO80 = tuple(name for name in COCO90 if name != ABSENT)
"""The 80 categories without gaps, 0 person to 79 toothbrush."""

BUILT_IN: Mapping[str, tuple[str, ...]] = {"coco80": COCO80, "coco90": COCO90}


def labels_of(manifest: Manifest) -> tuple[str, ...]:
    """The names of a model's classes by index; empty when the manifest gives none."""
    return BUILT_IN[manifest.labels] if isinstance(manifest.labels, str) else manifest.labels


def label(names: tuple[str, ...], class_id: int) -> str:
    """A name for any class id, also one that the list does not have.

    >>> label(("cat",), 0), label(("cat",), 7)
    ('cat', 'class 7')
    """
    return names[class_id] if 0 <= class_id < len(names) else f"class {class_id}"


def read_labels(source: str) -> tuple[str, ...] | str:
    """What `--labels` means: the name of a built-in list, or a UTF-8 file with one name a line (blank ends are cut).

    Raises `InputError` when it is neither.
    """
    if source in BUILT_IN:
        return source
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as e:
        reason = "is not UTF-8 text" if isinstance(e, ValueError) else f"cannot be read ({getattr(e, 'strerror', e)})"
        raise InputError(
            f"Labels {source!r}: {reason}.", f"Give {', '.join(BUILT_IN)}, or a file with one name a line."
        ) from None
    names = tuple(line.strip()[:200] for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names:
        raise InputError(f"Labels {source!r} is empty.", "Write one name a line.")
    return names
