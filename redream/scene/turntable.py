"""Turntables: pictures once around an object, as an MP4 that browsers play."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from redream.errors import RedreamError
from redream.files import replacing
from redream.scene.cameras import Camera

# Colours are converted and labelled as BT.709, which is what players assume; the index goes to the front of the file.
_COLOURS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
_OUTPUT = ["-crf", "18", "-preset", "medium", "-vf", "scale=out_color_matrix=bt709:out_range=tv", *_COLOURS]
_OUTPUT += ["-movflags", "+faststart"]


class TurntableError(RedreamError):
    """A video that cannot be made; the message says why."""


def as_bytes(image: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture in [0, 1] as a screen's bytes."""
    return (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def frames_of(
    render_fn: Callable[[Camera], Float[Tensor, "1 3 h w"]], cameras: Iterable[Camera]
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """What `render_fn` (RGB in [0, 1]) sees from each camera, one after the other, as a screen's bytes."""
    for camera in cameras:
        yield as_bytes(render_fn(camera)[0])


def write(frames: Iterable[UInt8[np.ndarray, "h w 3"]], path: Path, fps: int = 24) -> None:
    """Write the frames as H.264 (4:2:0, index in front) to `path`; the file is complete or absent.

    The frames are consumed one by one and share one size; an odd side gets one more row or column, as H.264 asks.
    Raises `TurntableError` for no frames, frames of different sizes, or a failing encoder.
    """
    frames, count = iter(frames), 1
    first = next(frames, None)
    if first is None:
        raise TurntableError("A turntable needs at least one picture.")
    height, width = (side + side % 2 for side in first.shape[:2])
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            temporary,
            (width, height),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=_OUTPUT,
        )
        try:
            writer.send(None)  # starts the encoder
            for count, frame in enumerate(chain([first], frames), 1):
                if frame.shape != first.shape:
                    raise TurntableError("The pictures of a turntable must all have the same size.")
                padding = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
                _send(writer, np.ascontiguousarray(np.pad(frame, padding, mode="edge")))
        finally:
            writer.close()
        if _frames_in(temporary) != count:
            raise TurntableError("The video encoder stopped without a whole video. Check that the disk has room.")


def _frames_in(path: Path) -> int:
    """How many pictures a video has that can be played: 0 for a broken one."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(path)[0]
    except (RuntimeError, OSError):
        return 0


def _send(writer, frame: np.ndarray) -> None:
    try:
        writer.send(frame)
    except OSError as error:
        raise TurntableError("The video encoder stopped in the middle. Check that the disk has room.") from error
