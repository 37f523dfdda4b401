"""Turntables: what went in comes out again, and no file is half written."""

import errno
import time

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from redream.scene import turntable
from redream.scene.cameras import ring
from redream.scene.turntable import TurntableError, frames_of, write


def moving_picture(count: int, height: int = 64, width: int = 96):
    """A soft gradient whose red part shifts from frame to frame."""
    row, column = np.mgrid[0:height, 0:width]
    for i in range(count):
        red = 128 + 100 * np.sin(2 * np.pi * (column / width + i / count))
        yield np.stack([red, 255 * row / height, np.full_like(red, 60)], axis=-1).round().astype(np.uint8)


def decoded(path) -> tuple[dict, list[np.ndarray]]:
    reader = imageio_ffmpeg.read_frames(path)
    about = next(reader)
    width, height = about["size"]
    return about, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_a_video_has_every_frame_with_its_colours(tmp_path):
    write(moving_picture(120), tmp_path / "a.mp4", fps=24)
    about, frames = decoded(tmp_path / "a.mp4")
    assert len(frames) == 120 and about["size"] == (96, 64) and about["fps"] == 24
    assert about["codec"] == "h264" and about["pix_fmt"].startswith("yuv420p")
    for frames_given, found in list(zip(moving_picture(120), frames, strict=True))[::40]:
        assert np.abs(frames_given.astype(int) - found).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_the_index_stands_in_front_so_that_playing_starts_at_once(tmp_path):
    write(moving_picture(5), tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_become_even(tmp_path):
    write(moving_picture(3, height=33, width=47), tmp_path / "a.mp4")
    assert decoded(tmp_path / "a.mp4")[0]["size"] == (48, 34)


@pytest.mark.parametrize("after", [0, 3])
def test_an_error_while_rendering_leaves_no_file_and_keeps_the_old_one(after, tmp_path):
    path = tmp_path / "a.mp4"

    def failing():
        yield from moving_picture(after)
        raise RuntimeError("the renderer failed")

    for old in (None, b"old"):
        if old:
            path.write_bytes(old)
        with pytest.raises(RuntimeError, match="the renderer failed"):
            write(failing(), path)
        assert [p.name for p in tmp_path.iterdir()] == (["a.mp4"] if old else [])
    assert path.read_bytes() == b"old"


def test_no_frames_and_changing_sizes_are_errors_in_words(tmp_path):
    with pytest.raises(TurntableError, match="at least one picture"):
        write([], tmp_path / "a.mp4")
    with pytest.raises(TurntableError, match="same size"):
        write([*moving_picture(2), *moving_picture(1, height=32)], tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """Takes the place of ffmpeg: a shell script, which gets the real one's path as $REAL."""

    def replace_by(script: str):
        real, file = imageio_ffmpeg.get_ffmpeg_exe(), tmp_path / "bin" / "ffmpeg"
        file.parent.mkdir()
        file.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(file))

    return replace_by


def refused(tmp_path, **options) -> str:
    """Why no video is made; nothing is left behind."""
    (tmp_path / "out").mkdir()
    with pytest.raises(TurntableError) as error:
        write(moving_picture(20), tmp_path / "out/a.mp4", **options)
    assert not list((tmp_path / "out").iterdir())
    return str(error.value)


@pytest.mark.parametrize("kept", [0, 50, 98])
def test_a_video_that_the_encoder_did_not_finish_is_no_video(kept, tmp_path, ffmpeg):
    write(moving_picture(20), tmp_path / "whole.mp4")
    size = (tmp_path / "whole.mp4").stat().st_size * kept // 100
    cut = f'for output; do :; done; cat > /dev/null; head -c {size} "{tmp_path}/whole.mp4" > "$output"'
    ffmpeg(f'case "$*" in *rawvideo*) {cut};; *) exec $REAL "$@";; esac')
    assert "ended without a whole video" in refused(tmp_path)


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "gone"))
    sentence = refused(tmp_path)
    assert f"ffmpeg, cannot be started ({tmp_path}/gone: No such file or directory)." in sentence
    assert sentence.endswith("The variable IMAGEIO_FFMPEG_EXE names it; unset it, or name one that works.")

    def none():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    (tmp_path / "out").rmdir()
    assert refused(tmp_path) == "The video encoder, ffmpeg, is missing. Install the package imageio-ffmpeg."


def test_a_failing_encoder_is_quoted(tmp_path, ffmpeg):
    ffmpeg("echo first >&2; echo 'Unknown encoder libx264' >&2; echo 'Conversion failed!' >&2; exit 1")
    assert "ffmpeg, failed: Unknown encoder libx264. " in refused(tmp_path)


def test_a_full_disk_is_no_fault_of_the_encoder(tmp_path, ffmpeg):
    ffmpeg("cat > /dev/null; echo 'Error writing trailer: No space left on device' >&2; exit 228")
    with pytest.raises(OSError, match="No space left") as error:
        write(moving_picture(5), tmp_path / "a.mp4")
    assert error.value.errno == errno.ENOSPC and error.value.filename.endswith(".mp4")


def test_an_encoder_that_hangs_is_ended_within_two_seconds_of_a_stop(tmp_path, ffmpeg):
    ffmpeg("exec sleep 60")
    begun = time.monotonic()
    sentence = refused(tmp_path, stop=lambda: time.monotonic() > begun + 0.5)
    assert time.monotonic() - begun < 2.5 and "did nothing for" in sentence


def test_an_encoder_that_hangs_is_ended_without_a_stop_too(tmp_path, ffmpeg, monkeypatch):
    monkeypatch.setattr(turntable, "PATIENCE_SECONDS", 0.2)
    ffmpeg("exec sleep 60")
    assert "did nothing for" in refused(tmp_path, stop=lambda: True)  # stopped before: the video is still wanted


def test_frames_are_made_one_by_one_as_bytes():
    rendered = []

    def render(camera):
        rendered.append(camera)
        return torch.linspace(-0.5, 1.5, 3)[None, :, None, None].expand(1, 3, 4, 6)

    frames = frames_of(render, ring(120, 15.0, 1.6, 40.0))
    first = next(frames)
    assert len(rendered) == 1 and first.shape == (4, 6, 3) and first.dtype == np.uint8
    assert first[0, 0].tolist() == [0, 128, 255]
    assert len(list(frames)) == 119
