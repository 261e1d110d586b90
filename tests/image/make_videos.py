"""Writes the small clips of tests/data/videos and what PyAV decodes from them.

Run from the checkout root: python tests/image/make_videos.py (tools/requirements-test.txt has PyAV; the ffmpeg program makes what PyAV cannot)
A clip's frames carry their numbers: eight blocks, dark for 0 and light for 1, the lowest bit first, row by row. index.json lists {file, frames,
fps, width, height, samples: {frame: mean colours of the eight blocks}[, note]}, turned upright; `fps` is FFmpeg's average rate, `samples` are
from PyAV's own conversion to RGB.
"""

import json
import pathlib
import struct
import subprocess
from fractions import Fraction

import av
import numpy as np

OUT = pathlib.Path("tests/data/videos")
WIDTH, HEIGHT, FRAMES, RATE = 64, 48, 60, 24
COLOURS = [(235, 30, 30), (30, 220, 40), (40, 50, 230), (230, 225, 40), (30, 200, 210), (200, 40, 190), (120, 120, 120), (250, 140, 20)]
index = []


def blocks(array):
    height, width = array.shape[0] // 2, array.shape[1] // 4
    return [array[b // 4 * height : (b // 4 + 1) * height, b % 4 * width : (b % 4 + 1) * width] for b in range(8)]


def picture(number, width=WIDTH, height=HEIGHT):
    image = np.full((height, width, 3), 128, np.uint8)
    for bit, block in enumerate(blocks(image)):
        block[...] = (225, 235, 215) if number >> bit & 1 else (30, 20, 40)
    return image


def coloured(number):
    """The numbers, and below them colours that a wrong matrix or range would change."""
    image = picture(number)
    for colour, block in zip(COLOURS, blocks(image)):
        block[block.shape[0] // 2 :] = colour
    return image


def number_of(array):
    return sum(1 << bit for bit, block in enumerate(blocks(array)) if block[4 : block.shape[0] // 2 - 2, 4:-4, 1].mean() > 128)


def write(name, codec, *, frames=FRAMES, size=(WIDTH, HEIGHT), times=None, sound=False, container=None, make=picture, options=None,
          pixels="yuv420p", colours=None, rate=RATE, time_base=None):
    """A clip; `times` are when its frames are shown, in units of `time_base`."""
    with av.open(str(OUT / name), "w", options={"fflags": "+bitexact", **(container or {})}) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.options = options or {}
        context = stream.codec_context
        context.flags |= 1 << 23  # no version of the encoder in it
        context.thread_count = 1
        if time_base:
            context.time_base = stream.time_base = time_base
        if colours:
            context.colorspace, context.color_range = colours
        silence = file.add_stream("aac", rate=16000) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(make(number) if make is coloured else make(number, *size), format="rgb24")
            if colours:
                frame = frame.reformat(format=pixels, dst_colorspace=colours[0], dst_color_range=colours[1])
                frame.colorspace, frame.color_range = colours
            if times:
                frame.pts, frame.time_base = times[number], time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if silence:
            for start in range(0, int(16000 * frames / rate), 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                file.mux(silence.encode(frame))
            file.mux(silence.encode())


def add(name, *, turns=0, numbers=None, fps=None, note=None):
    """Lists a clip by what PyAV finds in it; quarter turns clockwise are made here, as PyAV leaves them to others."""
    with av.open(str(OUT / name)) as file:
        stream = file.streams.video[0]
        said = stream.average_rate
        pictures = [np.rot90(frame.to_ndarray(format="rgb24"), -turns) for frame in file.decode(stream)]
    upright = [np.rot90(array, turns) for array in pictures]
    assert [number_of(array) for array in upright] == (numbers or list(range(len(pictures)))), [number_of(array) for array in upright]
    samples = {}
    for at in (0, len(pictures) // 2, len(pictures) - 1):
        samples[at] = [[round(float(mean), 1) for mean in block.mean((0, 1))] for block in blocks(pictures[at])]
    entry = {"file": name, "frames": len(pictures), "fps": float(fps or said), "width": pictures[0].shape[1], "height": pictures[0].shape[0],
             "turns": turns, "samples": samples}
    index.append(entry | ({"note": note} if note else {}))


def codecs():
    write("h264.mp4", "libx264", options={"bf": "3", "g": "20"})
    add("h264.mp4", note="B-frames, so an edit list")
    write("h264_sound.mp4", "libx264", frames=40, sound=True, container={"movflags": "faststart"}, options={"g": "12"})
    add("h264_sound.mp4", note="the index first")
    write("h264_fragments.mp4", "libx264", frames=40, container={"movflags": "frag_keyframe+empty_moov"}, options={"g": "12"})
    add("h264_fragments.mp4")
    write("h264_open.mkv", "libx264", options={"g": "12", "bf": "3", "x264-params": "open-gop=1"})
    add("h264_open.mkv", note="leading frames before key frames' times")
    write("h264.ts", "libx264", frames=40, options={"g": "12"})
    add("h264.ts")
    write("hevc.mkv", "libx265", options={"g": "15", "x265-params": "log-level=none:keyint=15"})
    add("hevc.mkv")
    write("vp9.webm", "libvpx-vp9", options={"g": "20", "crf": "40", "b": "0"})
    add("vp9.webm")
    write("vp9_odd.webm", "libvpx-vp9", frames=12, size=(63, 47), options={"crf": "40", "b": "0"})
    add("vp9_odd.webm")
    write("av1.mp4", "libsvtav1", options={"preset": "8", "crf": "50", "g": "20"})
    add("av1.mp4")
    write("mpeg4.avi", "mpeg4", options={"bf": "2", "g": "12", "q": "6"})
    add("mpeg4.avi", note="no times of showing")
    write("mjpeg.avi", "mjpeg", frames=12, pixels="yuvj420p")
    add("mjpeg.avi")


def times():
    """Of a variable rate: 20 frames of 1/30 s, then 20 of 1/4 s."""
    unit = Fraction(1, 1200)
    shown = [i * 40 for i in range(20)] + [800 + i * 300 for i in range(20)]
    for name in ("variable.mp4", "variable.mkv"):
        write(name, "libx264", frames=40, times=shown, time_base=unit, options={"g": "15"})
        # What FFmpeg has of the container, or finds in the first frames, can be anything; ours is that of all frames.
        add(name, fps=Fraction(40 * 1200, 800 + 20 * 300), note="a variable rate")


def turned():
    """As telephones write them: a matrix in the track's header (ISO 14496-12, 8.3.2)."""
    one = 1 << 16
    matrices = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}
    write("turned.mov", "libx264", frames=8, options={"bf": "0"})
    straight = (OUT / "turned.mov").read_bytes()
    (OUT / "turned.mov").unlink()
    for turns, (a, b, c, d) in matrices.items():
        at = straight.index(b"tkhd") + 4 + 40
        data = bytearray(straight)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        name = f"turned_{turns}.mov"
        (OUT / name).write_bytes(data)
        add(name, turns=turns)


def colours():
    for space, matrix in (("bt601", 6), ("bt709", 1)):
        for span, value in (("limited", 1), ("full", 2)):
            name = f"{space}_{span}.mp4"
            write(name, "libx264", frames=2, make=coloured, colours=(matrix, value), options={"qp": "4"})
            add(name, note="colours")


def altref():
    """VP8 with references that are not shown, in packets of their own."""
    source = OUT / "source.mkv"
    write(source.name, "ffv1", pixels="yuv420p")
    for step in (1, 2):
        subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-i", source, "-c:v", "libvpx", "-pass", str(step), "-passlogfile", OUT / "passes", "-auto-alt-ref",
                        "1", "-lag-in-frames", "16", "-b:v", "60k", "-g", "40", "-bitexact", OUT / "vp8.webm"], check=True)
    for rest in [source, *OUT.glob("passes*")]:
        rest.unlink()
    add("vp8.webm", note="hidden frames")


def sound_alone():
    with av.open(str(OUT / "sound.m4a"), "w", format="mp4", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    for make in (codecs, times, turned, colours, altref, sound_alone):
        make()
    lines = ",\n".join(" " + json.dumps(row) for row in index)
    (OUT / "index.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
