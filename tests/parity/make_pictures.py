"""Writes pictures of every kind of header, depth, transparency, frame and orientation, and the pixels that Pillow reads from them.

Usage: make_pictures.py OUT. index.json lists {file, width, height, tolerance}; beside each FILE stand FILE.rgb, Pillow's
exif_transpose(image).convert("RGB"), and FILE.white, the same with its transparency over white. A case is its name, its bytes and,
where it is needed, a tolerance (else 0) or, where Pillow refuses the file, the name of a case with the same pixels.
"""

import io
import json
import pathlib
import struct
import sys
import warnings
import zlib

import numpy as np
from picture_parts import ALPHA, GREY, HEIGHT, IMAGE, RGB, RGBA, WIDTH, encode, exif_block, packed, xmp_block
from PIL import Image, ImageOps
from stored_pictures import bmps, icos, pnms, tgas, tiffs

from make_images import adam7, over_white, png, rows_of  # found by picture_parts


# ---------------------------------------------------------------- JPEG


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpegs():
    base = encode(IMAGE, "JPEG", quality=90, subsampling=0)

    def behind_start(data):
        return base[:2] + data + base[2:]

    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        yield f"sampling_{name}", encode(IMAGE, "JPEG", quality=85, subsampling=sampling)
        yield f"progressive_{name}", encode(IMAGE, "JPEG", quality=85, subsampling=sampling, progressive=True)
    yield "restarts", encode(IMAGE, "JPEG", quality=85, restart_marker_blocks=2)
    yield "grey", encode(IMAGE.convert("L"), "JPEG")
    yield "cmyk", encode(IMAGE.convert("CMYK"), "JPEG")
    yield "rgb", encode(IMAGE, "JPEG", keep_rgb=True)
    exif = segment(0xE1, b"Exif\0\0" + exif_block(6))
    for order in "<>":
        for orientation in range(10):
            block = b"Exif\0\0" + exif_block(orientation, order)
            yield f"exif_{'le' if order == '<' else 'be'}_{orientation}", behind_start(segment(0xE1, block))
    yield "exif_long", behind_start(segment(0xE1, b"Exif\0\0" + exif_block(6, value_type=4)))
    yield "exif_behind_com", behind_start(segment(0xFE, b"made by something") + exif)
    yield "exif_behind_app13", behind_start(segment(0xED, b"Photoshop 3.0\0") + exif)
    scan = base.index(b"\xff\xda")
    yield "exif_before_scan", base[:scan] + exif + base[scan:]
    yield "exif_in_two", behind_start(exif[:2] + struct.pack(">H", 18) + exif[4:20] + segment(0xE1, exif[4:10] + exif[20:]))
    xmp_name = b"http://ns.adobe.com/xap/1.0/\0"
    yield "xmp", behind_start(segment(0xE1, xmp_name + xmp_block(8)))
    yield "xmp_element", behind_start(segment(0xE1, xmp_name + xmp_block(5, element=True)))
    yield "exif_over_xmp", behind_start(segment(0xE1, xmp_name + xmp_block(8)) + exif)
    for revision in (0, 2):
        changed = bytearray(base)
        changed[base.index(b"JFIF\0") + 5] = revision
        yield f"jfif_{revision}", bytes(changed)
    parameters = scan + 5 + 2 * base[scan + 4]
    for start, end in ((0, 0), (1, 0), (1, 63)):
        yield f"sos_{start}_{end}", base[:parameters] + bytes([start, end]) + base[parameters + 2 :]
    bare = base[:2] + base[2 + 2 + struct.unpack(">H", base[4:6])[0] :]
    yield "no_jfif", bare
    for transform in range(4):
        yield f"adobe_{transform}", bare[:2] + segment(0xEE, b"Adobe\0\x64" + bytes(4) + bytes([transform])) + bare[2:]
    progressive = encode(IMAGE, "JPEG", quality=85, progressive=True)
    for name, data in (("baseline", base), ("progressive", progressive)):
        yield f"{name}_junk_behind", data + b"junk" * 9
        yield f"{name}_without_end", data[:-2], f"{name}_junk_behind"
        yield f"{name}_end_padded", data[:-2] + bytes(64), f"{name}_junk_behind"
    yield "fill_bytes", base[:2] + b"\xff" * 5 + base[2:]


# ---------------------------------------------------------------- PNG


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def pngs():
    wide = (RGB.astype(np.uint16) << 8) | (255 - RGB)
    wide_alpha = (ALPHA.astype(np.uint16) << 8) | 90
    grey_alpha = np.dstack([GREY, ALPHA])
    kinds = {"rgb8": (8, 2, RGB), "rgb16": (16, 2, wide), "grey8": (8, 0, GREY), "grey_alpha8": (8, 4, grey_alpha),
             "grey_alpha16": (16, 4, (grey_alpha.astype(np.uint16) << 8) | 3), "rgba8": (8, 6, np.array(RGBA)),
             "rgba16": (16, 6, np.dstack([wide, wide_alpha]))}
    for name, (depth, colour, array) in kinds.items():
        yield name, png(WIDTH, HEIGHT, depth, colour, rows_of(array))
        yield f"{name}_interlaced", png(WIDTH, HEIGHT, depth, colour, adam7(array), interlace=1)
    palette = np.random.default_rng(1).integers(0, 256, (16, 3), dtype=np.uint8)
    for bits in (1, 2, 4, 8):
        indices = GREY.astype(int) * 16 // 256 % 2**min(bits, 4)
        colours = chunk(b"PLTE", palette[: 2 ** min(bits, 4)].tobytes())
        rows = rows_of(packed(indices, bits))
        yield f"palette{bits}", png(WIDTH, HEIGHT, bits, 3, rows, colours)
        yield f"palette{bits}_transparent", png(WIDTH, HEIGHT, bits, 3, rows, colours + chunk(b"tRNS", b"\x10\xc0"))
        if bits < 8:
            yield f"grey{bits}", png(WIDTH, HEIGHT, bits, 0, rows_of(packed(GREY >> (8 - bits), bits)))
    yield "rgb_one_transparent", encode(IMAGE, "PNG", transparency=tuple(int(v) for v in RGB[5, 5]))
    yield "grey_one_transparent", encode(IMAGE.convert("L"), "PNG", transparency=int(GREY[5, 5]))

    plain = png(WIDTH, HEIGHT, 8, 2, rows_of(RGB))

    def with_chunk(*body, behind=False):
        at = len(plain) - 12 if behind else 33
        return plain[:at] + chunk(*body) + plain[at:]

    for behind in (False, True):
        place = "behind" if behind else "before"
        for orientation in (0, 3, 6, 9):
            yield f"exif_{place}_{orientation}", with_chunk(b"eXIf", exif_block(orientation, ">"), behind=behind)
        named = b"Exif\0\0" + exif_block(6)
        yield f"exif_named_{place}", with_chunk(b"eXIf", named, behind=behind)
        text = "\nexif\n%8d\n%s\n" % (len(named), "\n".join(named.hex()[i : i + 72] for i in range(0, 999, 72)))
        yield f"raw_profile_{place}", with_chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode()), behind=behind)
        yield f"raw_profile_text_{place}", with_chunk(b"tEXt", b"Raw profile type exif\0" + text.encode(), behind=behind)
        yield f"xmp_{place}", with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_block(6), behind=behind)
        yield f"xmp_compressed_{place}", with_chunk(
            b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp_block(7)), behind=behind)
    yield "end_missing", plain[:-12]
    yield "end_cut", plain[:-5]
    yield "end_bad_sum", plain[:-4] + bytes(4)
    data = zlib.compress(rows_of(RGB))
    for cut in (1, 4):
        yield f"no_adler_{cut}", plain[:33] + chunk(b"IDAT", data[:-cut]) + chunk(b"IEND", b"")
    interlaced = plain[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1))
    yield "interlaced_no_adler", interlaced + chunk(b"IDAT", zlib.compress(adam7(RGB))[:-4]) + chunk(b"IEND", b"")
    for width, height in ((1, 1), (1, 5), (3, 3), (5, 1), (4, 2)):
        array = RGB[:height, :width]
        yield f"interlaced_{width}x{height}_end_missing", png(width, height, 8, 2, adam7(array), interlace=1)[:-12]


# ---------------------------------------------------------------- WebP


def webp_frame(file):
    """The chunks of a still picture behind the RIFF header, VP8X left out."""
    at, kept = 12, b""
    while at < len(file):
        size = struct.unpack("<I", file[at + 4 : at + 8])[0]
        size += 8 + size % 2
        if file[at : at + 4] in (b"VP8 ", b"VP8L", b"ALPH"):
            kept += file[at : at + size]
        at += size
    return kept


def webps():
    exact = {"lossless": True, "exact": True}
    yield "lossy", encode(IMAGE, "WEBP", quality=80)
    yield "lossy_alpha", encode(RGBA, "WEBP", quality=80)
    yield "lossless", encode(IMAGE, "WEBP", **exact)
    yield "lossless_alpha", encode(RGBA, "WEBP", **exact)
    yield "exif", encode(IMAGE, "WEBP", **exact, exif=exif_block(6))
    yield "exif_named", encode(IMAGE, "WEBP", **exact, exif=b"Exif\0\0" + exif_block(6))
    yield "xmp", encode(IMAGE, "WEBP", **exact, xmp=xmp_block(3))
    yield "animation", encode(RGBA, "WEBP", **exact, save_all=True, append_images=[ImageOps.mirror(RGBA)])
    for name, frame in (("rgb", encode(IMAGE, "WEBP", **exact)), ("rgba", encode(RGBA, "WEBP", **exact)),
                        ("lossy", encode(IMAGE, "WEBP")), ("lossy_alpha", encode(RGBA, "WEBP"))):
        for flagged in (False, True):
            # The canvas is 10 wider and 7 higher than the frame, which stands at (6, 4).
            def u24(value):
                return struct.pack("<I", value)[:3]

            head = bytes([2 + 16 * flagged, 0, 0, 0]) + u24(WIDTH + 9) + u24(HEIGHT + 6)
            anmf = u24(3) + u24(2) + u24(WIDTH - 1) + u24(HEIGHT - 1) + u24(100) + b"\0" + webp_frame(frame)
            body = b"WEBPVP8X" + struct.pack("<I", 10) + head + b"ANIM" + struct.pack("<IIH", 6, 0xFF336699, 0)
            body += (b"ANMF" + struct.pack("<I", len(anmf)) + anmf) * 2
            yield f"frame_{name}_{'flagged' if flagged else 'plain'}", b"RIFF" + struct.pack("<I", len(body)) + body


# ---------------------------------------------------------------- GIF


def gifs():
    def edited(data, canvas=None, at=None, palette=None, flags=None):
        data = bytearray(data)
        frame = data.index(struct.pack("<BHHHH", 0x2C, 0, 0, WIDTH, HEIGHT))
        data[6:10] = struct.pack("<HH", *(canvas or (WIDTH, HEIGHT)))
        data[frame + 1 : frame + 5] = struct.pack("<HH", *(at or (0, 0)))
        return bytes(data)

    def without_palette(data, keep=0):
        bits = (data[10] & 7) + 1
        size = {0: 0, 2: 1, 4: 2}[keep]
        flags = (data[10] & 0x78) | (0x80 | (size - 1) if keep else 0)
        return data[:10] + bytes([flags]) + data[11 : 13 + 3 * keep] + data[13 + (3 << bits) :]

    for interlace in (0, 1):
        for colours in (2, 16, 200):
            quantized = IMAGE.quantize(colours)
            for name, extra in (("plain", {}), ("transparent", {"transparency": 1})):
                data = encode(quantized, "GIF", interlace=interlace, **extra)
                label = f"{name}_{colours}_{'interlaced' if interlace else 'rows'}"
                yield label, data
                yield f"{label}_inside", edited(data, canvas=(WIDTH + 9, HEIGHT + 5), at=(4, 2))
                yield f"{label}_outside", edited(data, at=(5, 3))
                yield f"{label}_wider", edited(data, canvas=(WIDTH + 3, HEIGHT - 4))
    plain = encode(IMAGE.quantize(16), "GIF", interlace=0)
    yield "no_palette", without_palette(plain)
    yield "short_palette", without_palette(plain, keep=4)
    yield "grey", encode(IMAGE.convert("L"), "GIF")
    for disposal in range(4):
        yield f"disposal_{disposal}", encode(IMAGE.quantize(32), "GIF", save_all=True, disposal=disposal,
                                             append_images=[ImageOps.mirror(IMAGE).quantize(8)])


# ---------------------------------------------------------------- AVIF


def avifs():
    soft = IMAGE.resize((64, 48), Image.Resampling.BICUBIC)
    soft_alpha = soft.copy()
    soft_alpha.putalpha(Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, 0)))
    # Another conversion of colours, which rounds otherwise and does not interpolate halved chroma (at hard edges).
    for sampling, tolerance in (("4:4:4", 3), ("4:2:2", 80), ("4:2:0", 80), ("4:0:0", 3)):
        yield f"sampling_{sampling.replace(':', '')}", encode(soft, "AVIF", quality=95, subsampling=sampling), tolerance
    yield "alpha", encode(soft_alpha, "AVIF", quality=95, subsampling="4:4:4"), 4
    yield "grey", encode(soft.convert("L"), "AVIF", quality=95), 3
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"orientation_{orientation}", encode(soft, "AVIF", quality=95, subsampling="4:4:4", exif=exif), 3
    yield "animation", encode(soft, "AVIF", quality=95, subsampling="4:4:4", save_all=True,
                              append_images=[ImageOps.mirror(soft)]), 3


FORMATS = {"jpg": jpegs, "png": pngs, "webp": webps, "gif": gifs, "bmp": bmps, "ico": icos, "pnm": pnms, "tga": tgas,
           "tif": tiffs, "avif": avifs}


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", "Palette images with Transparency")
    index, seen = [], {}
    for extension, cases in FORMATS.items():
        for name, data, *more in cases():
            file = f"{name}.{extension}"
            assert file not in seen, file
            like = more and isinstance(more[0], str)
            image = seen[f"{more[0]}.{extension}"] if like else ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            seen[file] = image
            (out / file).write_bytes(data)
            (out / f"{file}.rgb").write_bytes(image.convert("RGB").tobytes())
            (out / f"{file}.white").write_bytes(over_white(image).tobytes())
            index.append({"file": file, "width": image.width, "height": image.height,
                          "tolerance": more[0] if more and not like else 0})
    (out / "index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
