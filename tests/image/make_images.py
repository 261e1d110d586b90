"""Writes the small pictures of tests/data/images and the pixels that Pillow decodes from them.

Run from the checkout root: python tests/image/make_images.py (with pillow_heif besides tools/requirements-test.txt)
index.json lists {file, expected, max_difference[, note]}, resized.json {from, file, filter}; `expected` is the picture as decode_image should give it:
upright, transparency over white. Equal expectations share one PNG.
"""

import io
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageOps

OUT = pathlib.Path("tests/data/images")
WIDTH, HEIGHT = 41, 30
index = []
expectations = {}


def picture(width=WIDTH, height=HEIGHT):
    """Smooth colours with a few hard edges, no symmetry."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    rgb = np.stack([255 * x / width, 255 * y / height, 127 + 120 * np.sin((x + 2 * y) / 9)], -1)
    image = Image.fromarray(rgb.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle([3, 3, 12, 8], fill=(250, 20, 20))
    draw.ellipse([width - 15, height - 14, width - 4, height - 3], fill=(10, 240, 90))
    return image


def with_alpha(image):
    rgba = np.array(image.convert("RGBA"))
    rgba[..., 3] = np.linspace(0, 255, rgba.shape[1]).astype(np.uint8)[None]
    return Image.fromarray(rgba)


def over_white(image):
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.split()[3])
    return white


def add(name, data, expected=None, max_difference=0, note=None):
    """`expected` (an RGB picture) is what Pillow decodes unless it is given."""
    (OUT / name).write_bytes(data)
    if expected is None:
        image = Image.open(io.BytesIO(data))
        expected = over_white(ImageOps.exif_transpose(image))
    key = (expected.size, expected.tobytes())
    if key not in expectations:
        expectations[key] = name + ".expected.png"
        expected.save(OUT / expectations[key], optimize=True)
    entry = {"file": name, "expected": expectations[key], "max_difference": max_difference}
    index.append(entry | ({"note": note} if note else {}))


def encode(image, format_name, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows, chunks=b"", interlace=0):
    """A PNG of raw filtered `rows`, for what Pillow does not write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows, 9))
            + chunk(b"IEND", b""))


def rows_of(array):
    """Rows of an [H, W, C] or [H, W] array with filter type 0, 16-bit values big-endian."""
    array = array.astype(">u2") if array.dtype == np.uint16 else array
    return b"".join(b"\0" + row.tobytes() for row in array)


def adam7(array):
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(rows_of(array[y::dy, x::dx]) for y, x, dy, dx in passes if array[y::dy, x::dx].size)


def jpegs(image):
    for name, subsampling in (("420", 2), ("422", 1), ("444", 0)):
        add(f"jpeg_{name}.jpg", encode(image, "JPEG", quality=85, subsampling=subsampling))
    add("jpeg_progressive.jpg", encode(image, "JPEG", quality=80, progressive=True))
    add("jpeg_grey.jpg", encode(image.convert("L"), "JPEG", quality=85))
    add("jpeg_rgb.jpg", encode(image, "JPEG", quality=85, keep_rgb=True))
    cmyk = encode(image.convert("CMYK"), "JPEG", quality=85)
    add("jpeg_cmyk.jpg", cmyk)
    adobe = cmyk.index(b"Adobe")
    add("jpeg_ycck.jpg", cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :], note="colours are nonsense, equally so")
    baseline = encode(image, "JPEG", quality=85)
    add("jpeg_extraneous.jpg", baseline[:-2] + b"\0\0\0" + baseline[-2:], note="libjpeg warns")
    add("jpeg_trailing.jpg", baseline + b"junk" * 5)


def pngs(image):
    rgb = np.array(image)
    grey = np.array(image.convert("L"))
    alpha = with_alpha(image)
    wide = (rgb.astype(np.uint16) << 8) | (255 - rgb)
    add("png_rgb.png", encode(image, "PNG"))
    add("png_grey.png", encode(image.convert("L"), "PNG"))
    add("png_grey1.png", encode(image.convert("1"), "PNG"))
    add("png_grey4.png", png(8, 2, 4, 0, b"\0\x01\x23\x45\x67" + b"\0\x89\xab\xcd\xef"))
    add("png_grey_alpha.png", encode(alpha.convert("LA"), "PNG"))
    add("png_rgba.png", encode(alpha, "PNG"))
    palette = image.quantize(16)
    add("png_palette.png", encode(palette, "PNG"))
    add("png_palette_trns.png", encode(palette, "PNG", transparency=bytes(range(0, 256, 16))))
    add("png_rgb_trns.png", encode(image, "PNG", transparency=(250, 20, 20)))
    add("png_interlaced.png", png(WIDTH, HEIGHT, 8, 2, adam7(rgb), interlace=1))
    add("png_rgb16.png", png(WIDTH, HEIGHT, 16, 2, rows_of(wide)))
    add("png_rgba16.png", png(WIDTH, HEIGHT, 16, 6, rows_of(np.dstack([wide, np.full_like(wide[..., :1], 0x80FF)]))))
    add("png_grey16.png", png(WIDTH, HEIGHT, 16, 0, rows_of((grey.astype(np.uint16) << 8) | 7)),
        Image.fromarray(grey).convert("RGB"), note="the high byte; Pillow clips at 255")


def webps(image):
    add("webp_lossy.webp", encode(image, "WEBP", quality=80))
    add("webp_lossless.webp", encode(image, "WEBP", lossless=True))
    add("webp_lossy_alpha.webp", encode(with_alpha(image), "WEBP", quality=80))
    add("webp_lossless_alpha.webp", encode(with_alpha(image), "WEBP", lossless=True, exact=True))
    add("webp_animated.webp", encode(with_alpha(image), "WEBP", lossless=True, exact=True, save_all=True,
                                     append_images=[ImageOps.mirror(with_alpha(image))]))


def gifs(image):
    add("gif_plain.gif", encode(image.quantize(64), "GIF", interlace=0))
    add("gif_interlaced.gif", encode(image.quantize(64), "GIF", interlace=1))
    add("gif_transparent.gif", encode(image.quantize(16), "GIF", transparency=3))
    add("gif_animated.gif", encode(image.quantize(32), "GIF", save_all=True,
                                   append_images=[ImageOps.mirror(image).quantize(32)]))
    small = bytearray(encode(image.quantize(16), "GIF", interlace=0))
    small[6:10] = struct.pack("<HH", WIDTH + 6, HEIGHT + 4)
    descriptor = small.index(struct.pack("<BHHHH", 0x2C, 0, 0, WIDTH, HEIGHT))
    small[descriptor + 1 : descriptor + 5] = struct.pack("<HH", 2, 3)
    add("gif_partial.gif", bytes(small), note="a frame inside the canvas")


def bmps(image):
    add("bmp_rgb.bmp", encode(image, "BMP"))
    add("bmp_palette.bmp", encode(image.quantize(16), "BMP"))
    add("bmp_1bit.bmp", encode(image.convert("1"), "BMP"))
    add("bmp_rgba.bmp", encode(with_alpha(image), "BMP"))
    rgb = np.array(image)[..., ::-1]
    top_down = np.pad(rgb, ((0, 0), (0, 0), (0, 1))).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, -HEIGHT, 1, 32, 0, len(top_down), 0, 0, 0, 0)
    add("bmp_topdown32.bmp", b"BM" + struct.pack("<IHHI", 54 + len(top_down), 0, 0, 54) + header + top_down)
    core = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 8)
    grey = np.pad(np.array(image.convert("L"))[::-1], ((0, 0), (0, -WIDTH % 4))).tobytes()
    ramp = bytes(value for level in range(256) for value in [level] * 3)
    add("bmp_core.bmp", b"BM" + struct.pack("<IHHI", 794 + len(grey), 0, 0, 794) + core + ramp + grey)
    runs = b"".join(bytes([WIDTH - 7, row * 8 % 256, 0, 7]) + bytes(range(row, row + 7)) + b"\0\0\0" for row in range(HEIGHT))
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(runs), 0, 0, 256, 0)
    quads = b"".join(bytes([255 - level, level, level // 2, 0]) for level in range(256))
    add("bmp_rle8.bmp", b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + quads + runs)


def tiffs(image):
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        add(f"tiff_{compression or 'plain'}.tif", encode(image, "TIFF", compression=compression))
    add("tiff_grey.tif", encode(image.convert("L"), "TIFF"))
    add("tiff_palette.tif", encode(image.quantize(16), "TIFF"))
    add("tiff_bilevel_g4.tif", encode(image.convert("1"), "TIFF", compression="group4"))
    add("tiff_rgba.tif", encode(with_alpha(image), "TIFF"))
    add("tiff_grey_alpha.tif", encode(with_alpha(image).convert("LA"), "TIFF"))
    add("tiff_bigtiff.tif", encode(image, "TIFF", big_tiff=True))
    add("tiff_pages.tif", encode(image, "TIFF", save_all=True, append_images=[ImageOps.mirror(image)]))


def icons(image):
    square = with_alpha(image).resize((32, 32))
    add("ico_png.ico", encode(square, "ICO", sizes=[(16, 16), (32, 32)]))
    add("ico_bmp.ico", encode(square.convert("RGB"), "ICO", sizes=[(32, 32)], bitmap_format="bmp"))


def plain_formats(image):
    add("ppm.ppm", encode(image, "PPM"))
    add("pbm.pbm", encode(image.convert("1"), "PPM"))
    text = " ".join(str(value) for value in np.array(image.convert("L")).ravel())
    add("pgm_text.pgm", b"P2 # grey\n%d %d 255\n%s\n" % (WIDTH, HEIGHT, text.encode()))
    add("tga.tga", encode(with_alpha(image), "TGA"))
    add("tga_runs.tga", encode(image.quantize(8), "TGA", compression="tga_rle"))


def heifs(image):
    import pillow_heif  # only this script needs it

    pillow_heif.register_heif_opener()
    near = {"max_difference": 4, "note": "another conversion of colours"}
    add("avif.avif", encode(image, "AVIF", quality=90, subsampling="4:4:4"), **near)
    add("heic.heic", encode(image, "HEIF", quality=90, chroma=444), **near)
    add("heic_alpha.heic", encode(with_alpha(image), "HEIF", quality=90, chroma=444), **near)
    exif = Image.Exif()
    exif[0x0112] = 6
    add("heic_exif_6.heic", encode(image, "HEIF", quality=90, chroma=444, exif=exif), **near)


def orientations():
    image = picture(26, 18)
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        add(f"exif_{value}.jpg", encode(image, "JPEG", quality=85, subsampling=0, exif=exif))
        add(f"tiff_orientation_{value}.tif", encode(image, "TIFF", compression="tiff_lzw", tiffinfo={0x0112: value}))
    exif = Image.Exif()
    exif[0x0112] = 6
    add("exif_6.png", encode(image, "PNG", exif=exif))
    add("exif_6.webp", encode(image, "WEBP", lossless=True, exif=exif))


def resizes(source="png_rgb.png"):
    """Pillow's own resizing, down, up, along one side only, to one pixel."""
    rows = []
    for name, filter_value in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        for width, height in ((17, 11), (73, 64), (WIDTH, 9), (20, HEIGHT), (1, 1), (60, 5), (3, 90), (36, 20), (36, 19)):
            file = f"resized_{name}_{width}x{height}.png"
            Image.open(OUT / source).resize((width, height), filter_value).save(OUT / file, optimize=True)
            rows.append({"from": source, "file": file, "filter": name})
    return rows


def write_rows(file, rows):
    lines = ",\n".join(" " + json.dumps(row) for row in rows)
    (OUT / file).write_text(f"[\n{lines}\n]\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    for write in (jpegs, pngs, webps, gifs, bmps, tiffs, icons, plain_formats, heifs):
        write(picture())
    orientations()
    write_rows("index.json", index)
    write_rows("resized.json", resizes())


if __name__ == "__main__":
    main()
