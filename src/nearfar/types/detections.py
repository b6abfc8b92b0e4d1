"""What a detector says of one image. Adapters (JSON, drawing, COCO) live outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Detections:
    """Parallel arrays over n objects, best first.

    boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the image that was sent; scores: float32 [n], 0 to 1;
    class_ids: int32 [n], index into the model's labels; track_ids: int64 [n] or None when nothing tracks.
    """

    __slots__ = ("boxes", "class_ids", "scores", "track_ids")

    def __init__(
        self,
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        class_ids: NDArray[np.int32],
        track_ids: NDArray[np.int64] | None = None,
    ) -> None:
        n = len(boxes)
        if boxes.shape != (n, 4) or scores.shape != (n,) or class_ids.shape != (n,):
            raise ValueError(f"shapes disagree: {boxes.shape}, {scores.shape}, {class_ids.shape}")
        if track_ids is not None and track_ids.shape != (n,):
            raise ValueError(f"shapes disagree: {boxes.shape}, track ids {track_ids.shape}")
        self.boxes = boxes
        self.scores = scores
        self.class_ids = class_ids
        self.track_ids = track_ids

    @classmethod
    def empty(cls) -> Detections:
        import numpy as np

        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: NDArray[Any]) -> Detections:
        """The objects that a boolean mask or an index array picks, in that order."""
        tracks = None if self.track_ids is None else self.track_ids[index]
        return Detections(self.boxes[index], self.scores[index], self.class_ids[index], tracks)

    def __eq__(self, other: object) -> bool:
        import numpy as np

        if not isinstance(other, Detections):
            return NotImplemented
        return (
            np.array_equal(self.boxes, other.boxes)
            and np.array_equal(self.scores, other.scores)
            and np.array_equal(self.class_ids, other.class_ids)
            and (self.track_ids is None) == (other.track_ids is None)
            and (self.track_ids is None or np.array_equal(self.track_ids, other.track_ids))  # type: ignore[arg-type]
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Detections({len(self)})"
