"""Clips as files: reads frames, writes colored frames with the same times, and copies the sound. Uses PyAV."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from deepcolor.data.image_io import Photo, Unreadable

_ENCODER = {"crf": "18", "preset": "veryfast"}  # of libx264: visually lossless, and fast
_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_HD_LINES = 720  # from this height on, players expect the color matrix of BT.709, and below that of BT.601
_BT709, _BT601, _UNSPECIFIED = 1, 6, 2  # numbers of ITU-T H.273; 6 is BT.601 with the primaries of NTSC
_MATRICES = {_BT709: "itu709", _BT601: "smpte170m"}  # names in PyAV
_MISSING_SECONDS = 1.0  # a clip that ends so much earlier than it says is truncated


def to_photo(frame: av.VideoFrame) -> Photo:
    """Returns a frame upright and in sRGB."""
    matrix = _matrix(frame.height) if frame.colorspace == _UNSPECIFIED else frame.colorspace
    rgb = frame.to_ndarray(format="rgb24", src_colorspace=matrix)
    return Photo(Image.fromarray(np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))), None)


def _matrix(height: int) -> int:
    return _BT709 if height >= _HD_LINES else _BT601


class Reader:
    """Decodes a clip.

    Raises:
        Unreadable: the file is not a clip, or its codec is unknown.
    """

    def __init__(self, path: Path) -> None:
        self.remark = ""  # what is wrong with the clip, after the last frame
        if not path.is_file():  # opening a pipe would block
            raise Unreadable("not a regular file")
        with self._reasons():
            self.container = av.open(path, options={"protocol_whitelist": "file"})
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.container)
            self.video = self.container.streams.best("video")
            if self.video is None:
                raise Unreadable("it has no video stream")
            if self.video.codec_context is None:
                raise Unreadable("its codec is unknown")
            self.video.thread_type = "AUTO"
            self.sound = list(self.container.streams.audio)
            self.start = self.container.start_time or 0  # in microseconds
            stack.pop_all()

    @contextlib.contextmanager
    def _reasons(self) -> Iterator[None]:
        """Turns PyAV's errors into Unreadable."""
        try:
            yield
        except av.error.InvalidDataError as error:
            raise Unreadable("it is not a clip, or damaged") from error
        except av.error.FFmpegError as error:
            raise Unreadable(error.strerror or str(error)) from error

    @property
    def total(self) -> int | None:
        """The number of frames, if the clip says it or its duration."""
        rate, duration = self.video.average_rate, self.container.duration
        return self.video.frames or (int(rate * duration / 1_000_000) if rate and duration else None)

    def close(self) -> None:
        self.container.close()

    def ticks(self, stream: av.stream.Stream) -> int:
        """Returns the start of the clip in units of the time base of a stream."""
        return round(Fraction(self.start, 1_000_000) / stream.time_base)

    def frames(self, copy_sound: Callable[[av.Packet], object]) -> Iterator[av.VideoFrame]:
        """Yields the frames in order of time, which starts near 0 and increases strictly.

        Calls `copy_sound` for the packets of the sound between them. After the last frame, `remark` is complete.
        """
        damaged, last, shift = 0, -1, self.ticks(self.video)
        for packet in self._packets():
            if packet.stream is not self.video:
                copy_sound(packet)
                continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                frame.pts = last = max(last + 1, frame.pts - shift if frame.pts is not None else 0)
                yield frame
        if damaged and not self.remark:
            self.remark = f"{damaged} damaged packets are left out"

    def _packets(self) -> Iterator[av.Packet]:
        """Yields the packets of all streams as far as they can be read."""
        end = 0.0
        packets = self.container.demux(self.video, *self.sound)
        with contextlib.suppress(av.error.FFmpegError):
            for packet in packets:
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is self.video or packet.dts is not None:
                    yield packet
        duration, end = (self.container.duration or 0) / 1_000_000, end - self.start / 1_000_000
        if duration - end > _MISSING_SECONDS:
            self.remark = f"it is truncated: {end:.1f} of {duration:.1f} s can be read"


class Writer:
    """Encodes a clip of the size and timing of another, and copies its sound."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self.reader = reader
        self.container = av.open(path, "w", format=_CONTAINERS[path.suffix.lower()])
        self.sound = {stream: self.container.add_stream_from_template(stream) for stream in reader.sound}
        self.packets: deque[av.Packet] = deque()  # of the sound, not yet written
        self.video = None
        self.frames = 0

    def _start(self, size: tuple[int, int], turned: bool) -> None:
        video = self.reader.video
        self.video = self.container.add_stream("libx264", rate=video.average_rate or 25, options=_ENCODER)
        self.video.width, self.video.height = size
        self.video.pix_fmt = "yuv420p"
        context = self.video.codec_context
        context.time_base = video.time_base
        aspect = video.sample_aspect_ratio or Fraction(1)
        context.sample_aspect_ratio = 1 / aspect if turned else aspect
        context.colorspace = context.color_primaries = context.color_trc = _matrix(size[1])
        context.color_range = 1

    def copy_sound(self, packet: av.Packet) -> None:
        """Takes a packet of the sound, to be written with the next frame. Can be called from another thread."""
        self.packets.append(packet)

    def _write_sound(self) -> None:
        while self.packets:
            packet = self.packets.popleft()
            shift = self.reader.ticks(packet.stream)
            if packet.pts is not None:
                packet.pts -= shift
            packet.dts -= shift
            packet.stream = self.sound[packet.stream]
            self.container.mux(packet)

    def write(self, frame: av.VideoFrame, colored: Image.Image) -> None:
        """Encodes a colored frame with the time of the original one."""
        size = colored.width // 2 * 2, colored.height // 2 * 2  # the planes of color have half the size
        if self.video is None:
            self._start(size, turned=frame.rotation % 180 != 0)
        self._write_sound()
        encoded = av.VideoFrame.from_image(colored.crop((0, 0, *size)))
        encoded = encoded.reformat(
            width=self.video.width, height=self.video.height, format="yuv420p", dst_colorspace=_matrix(size[1])
        )
        encoded.pts, encoded.time_base, encoded.duration = frame.pts, frame.time_base, frame.duration
        self.container.mux(self.video.encode(encoded))
        self.frames += 1

    def finish(self) -> int:
        """Writes what the encoder still holds, and returns the number of frames. Raises Unreadable if there is none."""
        if self.video is None:
            raise Unreadable("no frame of it can be decoded")
        self._write_sound()
        self.container.mux(self.video.encode(None))
        self.container.close()
        return self.frames

    def close(self) -> None:
        """Closes the file."""
        self.container.close()
