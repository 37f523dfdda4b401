"""Turntables: pictures once around an object, as an MP4 that browsers play."""

import errno
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
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
_OUTPUT = [
    "-vcodec",
    "libx264",
    "-pix_fmt",
    "yuv420p",
    "-crf",
    "18",
    "-preset",
    "medium",
    "-vf",
    "scale=out_color_matrix=bt709:out_range=tv",
    *_COLOURS,
]
_OUTPUT += ["-movflags", "+faststart", "-flush_packets", "1"]  # so that the file grows as long as it works
# Without a frame taken or a byte written; the latter once a stop is asked for while the encoder works.
PATIENCE_SECONDS, PATIENCE_STOPPED_SECONDS = 30.0, 1.5
POLL_SECONDS = 0.02
ANOTHER = "Another ffmpeg may be better: IMAGEIO_FFMPEG_EXE names it."


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


def write(
    frames: Iterable[UInt8[np.ndarray, "h w 3"]], path: Path, fps: int = 24, stop: Callable[[], bool] = lambda: False
) -> None:
    """Write the frames as H.264 (4:2:0, index in front) to `path`; the file is complete or absent.

    The frames share one size; an odd side gets one more row or column, as H.264 asks. An encoder that does nothing is ended
    after `PATIENCE_SECONDS`, and soon if `stop` becomes True meanwhile. Raises `TurntableError` for no frames, frames of
    different sizes, or a missing, failing or idle encoder, and `OSError` for a full disk.
    """
    frames = list(frames)
    if not frames:
        raise TurntableError("A turntable needs at least one picture.")
    if len({frame.shape for frame in frames}) > 1:
        raise TurntableError("The pictures of a turntable must all have the same size.")
    height, width, _ = frames[0].shape
    padding = ((0, height % 2), (0, width % 2), (0, 0))
    even = (np.ascontiguousarray(np.pad(frame, padding, mode="edge")) for frame in frames)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width + width % 2}x{height + height % 2}", "-r", str(fps)]
    with replacing(path) as temporary:
        command = [_ffmpeg(), "-y", "-v", "error", *source, "-i", "-", "-an", *_OUTPUT, str(temporary)]
        _encode(command, even, temporary, stop)
        if _frames_in(temporary) != len(frames):
            raise TurntableError(f"The video encoder, ffmpeg, ended without a whole video. {ANOTHER}")


def _ffmpeg() -> str:
    """The encoder's program: the environment's, imageio-ffmpeg's own or the system's. Raises `TurntableError`."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise TurntableError("The video encoder, ffmpeg, is missing. Install the package imageio-ffmpeg.") from error


def _encode(command: list[str], frames: Iterable[np.ndarray], output: Path, stop: Callable[[], bool]) -> None:
    """Run the encoder on frames. Raises as `write`."""
    sent, was_stopped = 0, stop()

    def feed() -> None:
        nonlocal sent
        with suppress(OSError), process.stdin:  # if it ends early, its messages say why
            for frame in frames:
                process.stdin.write(frame)
                sent += 1

    with tempfile.TemporaryFile() as messages:
        # A group of its own: Ctrl-C stops the run, whose video is then made.
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": messages}
        options |= {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        try:
            process = subprocess.Popen(command, **options)
        except OSError as error:
            said = f"The video encoder, ffmpeg, cannot be started ({command[0]}: {error.strerror})."
            do = "Install the package imageio-ffmpeg"
            if "IMAGEIO_FFMPEG_EXE" in os.environ:
                do = "The variable IMAGEIO_FFMPEG_EXE names it; unset it, or name one that works"
            raise TurntableError(f"{said} {do}.") from error
        feeder = threading.Thread(target=feed, name="redream-ffmpeg", daemon=True)
        try:
            feeder.start()
            done, since = None, time.monotonic()
            while process.poll() is None:
                if done != (now := (sent, output.stat().st_size if output.exists() else 0)):
                    done, since = now, time.monotonic()
                patience = PATIENCE_STOPPED_SECONDS if stop() and not was_stopped else PATIENCE_SECONDS
                if (idle := time.monotonic() - since) > patience:
                    raise TurntableError(
                        f"The video encoder, ffmpeg, did nothing for {idle:.0f} s and was ended. {ANOTHER}"
                    )
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # nothing if it has ended
            process.wait()
            feeder.join()
        if process.returncode:
            messages.seek(0)
            _raise_failure(messages.read().decode(errors="replace"), process.returncode, output)


def _raise_failure(messages: str, status: int, output: Path) -> None:
    """Raise what the encoder's messages say: `OSError` for a full disk, else `TurntableError`."""
    if os.strerror(errno.ENOSPC) in messages:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))
    lines = [line.strip() for line in messages.splitlines() if line.strip() not in ("", "Conversion failed!")]
    said = lines[-1].rstrip(".") if lines else f"exit status {status}"
    raise TurntableError(f"The video encoder, ffmpeg, failed: {said}. {ANOTHER}")


def _frames_in(path: Path) -> int:
    """How many pictures a video has that can be played: 0 for a broken one."""
    try:
        return imageio_ffmpeg.count_frames_and_secs(path)[0]
    except (RuntimeError, OSError):
        return 0
