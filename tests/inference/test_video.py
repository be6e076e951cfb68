"""colorize.py on clips: the same frames and sound, colors that do not flicker, cuts, stops and damaged files."""

import signal
from collections.abc import Callable, Iterable
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import oracles
import pytest
from helpers import ROOT, lines_of, picture
from PIL import Image
from survival import SECONDS_TO_STOP, Process, wait_until

from colorize import colorize, colorize_frames, load
from deepcolor.data.image_io import Photo
from deepcolor.inference.full_resolution import model_input
from deepcolor.inference.smoothing import RADIUS, Frame, is_cut, smooth_colors

pytest_plugins = ["survival"]

Run = Callable[..., object]
needs_av = pytest.mark.skipif(find_spec("av") is None, reason="needs the package av (requirements-extra.txt)")
RATE = 25
SIZE = (160, 96)  # width and height


def pan(seed: int, count: int) -> list[np.ndarray]:
    """A camera that moves over a made photograph."""
    wide = np.asarray(Image.fromarray(picture(seed)).resize((SIZE[0] + 2 * count, 120), Image.Resampling.BICUBIC))
    return [wide[10 : 10 + SIZE[1], 2 * shift : 2 * shift + SIZE[0]] for shift in range(count)]


def noisy(seed: int, count: int) -> list[np.ndarray]:
    """A camera that stands still, with noise."""
    still, random = pan(seed, 1)[0].astype(float), np.random.default_rng(seed)
    return [(still + random.normal(0, 6, still.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)]


def write_clip(
    path: Path, frames: Iterable[np.ndarray], times: list[int] | None = None, sound: bool = True, turn: int = 0
) -> Path:
    """Writes a clip whose frames have these times in 1/RATE s, with a tone of the same length."""
    import av

    with av.open(path, "w") as clip:
        video = clip.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=RATE)
        video.width, video.height = SIZE
        video.pix_fmt, video.bit_rate = "yuv420p", 4_000_000
        if turn:
            video.set_display_rotation(turn)
        codec = "mp2" if path.suffix in (".ts", ".avi") else "aac"
        tone = clip.add_stream(codec, rate=44100, layout="mono") if sound else None
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, RATE)
            clip.mux(video.encode(frame))
        clip.mux(video.encode(None))
        if tone:
            wave = (8000 * np.sin(np.arange(44100 * (number + 1) // RATE) / 10)).astype(np.int16)
            samples = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            samples.sample_rate, samples.pts = 44100, 0
            fifo = av.AudioFifo()
            fifo.write(samples)
            resampler = av.AudioResampler(format=tone.format.name, layout="mono", rate=44100)
            while part := fifo.read(1152, partial=True):
                for frame in resampler.resample(part):
                    clip.mux(tone.encode(frame))
            clip.mux(tone.encode(None))
    return path


def read_clip(path: Path) -> tuple[list[np.ndarray], list[float], list[bytes]]:
    """Returns the frames, their times in seconds, and the packets of the sound."""
    import av

    with av.open(path) as clip:
        frames = list(clip.decode(video=0))
    with av.open(path) as clip:
        sound = [bytes(packet) for packet in clip.demux(audio=0) if packet.size] if clip.streams.audio else []
    times = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames]
    return [frame.to_ndarray(format="rgb24") for frame in frames], times, sound


def seconds(path: Path) -> float:
    import av

    with av.open(path) as clip:
        return clip.duration / 1_000_000


# --- Colors over time --------------------------------------------------------------------------------


def seen(lightness: np.ndarray, ab: np.ndarray) -> Frame:
    return Frame(None, lightness.astype(np.float32), ab.astype(np.float32))


def test_colors_of_a_still_picture_do_not_flicker() -> None:
    """A quarter of what frame by frame gives is allowed."""
    random = np.random.default_rng(0)
    light = random.random((128, 128))
    frames = [seen(light + random.normal(0, 0.02, light.shape), random.normal(10, 5, (2, 128, 128))) for _ in range(40)]
    smoothed = list(smooth_colors(frames))
    assert [frame.lightness is other.lightness for frame, other in zip(frames, smoothed)] == [True] * 40
    before, after = (np.mean([np.abs(b.ab - a.ab).mean() for a, b in pairwise(each)]) for each in (frames, smoothed))
    assert after < before / 4
    assert np.mean([frame.ab for frame in smoothed]) == pytest.approx(10, abs=0.05)


def test_no_color_is_carried_over_a_cut() -> None:
    """Each shot has the colors that it has alone."""
    shots = [
        [
            seen(model_input(Photo(Image.fromarray(rgb), None)).lightness, np.full((2, 128, 128), value + number))
            for number, rgb in enumerate(pan(seed, 12))
        ]
        for seed, value in ((1, -50), (2, 60), (3, 0))
    ]
    together = [frame.ab for frame in smooth_colors(chain(*shots))]
    alone = [frame.ab for shot in shots for frame in smooth_colors(shot)]
    assert np.array_equal(together, alone)


def test_a_moving_object_leaves_no_trail() -> None:
    """A colored square moves over a background of another lightness and color."""
    frames = []
    for step in range(20):
        light, ab = np.full((128, 128), 0.3), np.zeros((2, 128, 128))
        light[40:80, 4 * step : 4 * step + 30], ab[:, 40:80, 4 * step : 4 * step + 30] = 0.8, 60
        frames.append(seen(light, ab))
    assert not any(is_cut(a.lightness, b.lightness) for a, b in pairwise(frames))
    for frame, smoothed in zip(frames, smooth_colors(frames)):
        assert np.abs(smoothed.ab - frame.ab).max() < 0.1


def test_smoothing_does_not_read_the_whole_clip() -> None:
    read = []

    def frames() -> Iterable[Frame]:
        for number in range(100):
            read.append(number)
            yield seen(np.zeros((128, 128)), np.zeros((2, 128, 128)))

    for number, _ in enumerate(smooth_colors(frames())):
        assert len(read) <= number + RADIUS + 1


def test_frames_from_python(sweep: Path) -> None:
    """Where nothing moves and there is no noise, they are those of single photographs."""
    model, still = load(sweep), pan(4, 1)[0]
    colored = list(colorize_frames(model, [still] * 40))
    assert len(colored) == 40
    for frame in colored:
        assert np.abs(frame.astype(int) - colorize(model, still)).max() <= 1
    assert list(colorize_frames(model, [])) == []


# --- Clips -----------------------------------------------------------------------------------------


@needs_av
def test_a_clip_keeps_its_frames_times_and_sound(run_colorize: Run, sweep: Path, tmp_path: Path) -> None:
    """The middle of the clip is a cut. Every frame is close to the photograph in the same colors."""
    frames = pan(1, 20) + pan(2, 20)
    clip = write_clip(tmp_path / "clip.mp4", frames)
    result = run_colorize(clip)
    assert (result.code, result.lines) == (0, [])
    original, colored = read_clip(clip), read_clip(tmp_path / "clip_color.mp4")
    assert len(colored[0]) == 40
    assert colored[1] == original[1]
    assert colored[2] == original[2] and len(colored[2]) > 50
    assert seconds(tmp_path / "clip_color.mp4") == pytest.approx(seconds(clip), abs=0.05)
    expected = list(colorize_frames(load(sweep), original[0]))
    for found, each in zip(colored[0], expected):
        assert np.abs(oracles.lab(found) - oracles.lab(each)).mean() < 2
    (line,) = run_colorize(clip).lines
    assert "is kept" in line
    assert "is a colored picture" in run_colorize(tmp_path / "clip_color.mp4").lines[0]


@needs_av
def test_variable_frame_rate_and_rotation(run_colorize: Run, tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 10, 11, 12, 20, 21]
    clip = write_clip(tmp_path / "phone.mov", pan(3, 10), times, turn=90)
    assert run_colorize(clip, "--output", tmp_path / "out").code == 0
    original, colored = read_clip(clip), read_clip(tmp_path / "out/phone_color.mov")
    assert colored[1] == original[1] == pytest.approx([time / RATE for time in times])
    assert seconds(tmp_path / "out/phone_color.mov") == pytest.approx(seconds(clip), abs=0.05)
    for found, before in zip(colored[0], original[0]):
        upright = np.rot90(before)  # PyAV gives the angle counterclockwise
        assert found.shape == upright.shape
        assert np.abs(oracles.lab(found)[..., 0] - oracles.lab(upright)[..., 0]).mean() < 2


@needs_av
@pytest.mark.parametrize(
    ("name", "target"), [("a.avi", "a_color.mkv"), ("b.ts", "b_color.mkv"), ("c.mkv", "c_color.mkv")]
)
def test_other_containers(run_colorize: Run, tmp_path: Path, name: str, target: str) -> None:
    clip = write_clip(tmp_path / name, pan(1, 10))
    result = run_colorize(clip)
    assert (result.code, result.lines) == (0, [])
    original, colored = read_clip(clip), read_clip(tmp_path / target)
    assert colored[1] == pytest.approx(original[1], abs=0.002)
    assert colored[2] == original[2]


@needs_av
def test_clips_that_cannot_be_read_are_named_and_the_others_are_colored(run_colorize: Run, tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", pan(1, 10)).read_bytes()
    long = write_clip(tmp_path / "long.mkv", noisy(1, 75)).read_bytes()
    (tmp_path / "long.mkv").unlink()
    (tmp_path / "half.mkv").write_bytes(long[: len(long) // 2])
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("not a clip")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "codec.mp4").write_bytes(whole.replace(b"avc1", b"zzzz"))
    with __import__("av").open(tmp_path / "sound.mp4", "w") as clip:
        clip.add_stream("aac", rate=44100, layout="mono")
        clip.start_encoding()
    result = run_colorize(*sorted(tmp_path.glob("*.m*")), tmp_path / "missing.mp4")
    reasons = {
        "half.mkv": "truncated",
        "cut.mp4": "not a clip",
        "text.mp4": "not a clip",
        "empty.mp4": "not a clip",
        "codec.mp4": "codec",
        "sound.mp4": "",
        "missing.mp4": "no photograph",
    }
    assert result.code == 1
    assert len(result.lines) == len(reasons), result.lines
    for name, reason in reasons.items():
        assert sum(name in line and reason in line for line in result.lines) == 1, (name, result.lines)
    assert sorted(path.name for path in tmp_path.glob("*_color*")) == ["half_color.mkv", "whole_color.mp4"]
    assert 10 < len(read_clip(tmp_path / "half_color.mkv")[0]) < 75


def test_without_the_package_one_line_names_it(
    run_colorize: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setattr("deepcolor.inference.video.find_spec", lambda name: None)
    result = run_colorize(tmp_path / "clip.mp4")
    assert result.code == 2
    assert "pip install av" in result.lines[0]


def test_a_clip_has_no_scores(run_colorize: Run, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    result = run_colorize(tmp_path / "clip.mp4", "--score", "--output", tmp_path / "out")
    assert result.code == 2
    assert "cannot score" in result.lines[0]


@pytest.mark.slow
@needs_av
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_a_clip_that_can_be_played(sweep: Path, tmp_path: Path, number: signal.Signals) -> None:
    clip = write_clip(tmp_path / "clip.mp4", pan(1, 1) * 1500)
    program = tmp_path / "colorize.py"
    program.write_text(
        (ROOT / "colorize.py").read_text().replace('"""', f'import sys; sys.path.insert(0, {str(ROOT)!r})\n"""', 1)
    )
    with Process(clip, "--checkpoint", sweep, cwd=tmp_path, program=program) as process:
        assert wait_until(lambda: any(path.stat().st_size > 2000 for path in tmp_path.glob(".*.part.mp4")))
        assert process.stop(number, group=True) < SECONDS_TO_STOP
        assert process.code == 128 + number
        (line,) = lines_of(process.stderr, "colorize.py")
    frames, times, sound = read_clip(tmp_path / "clip_color.mp4")
    assert 0 < len(frames) < 1500
    assert times == [pytest.approx(count / RATE) for count in range(len(frames))]
    assert sound
    assert f"first {len(frames)} frames" in line and "--overwrite" in line
    assert [path.name for path in tmp_path.glob(".*.part*")] == []
