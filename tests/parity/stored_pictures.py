"""Pictures in formats whose pixels are stored plainly or in runs (BMP, ICO, PPM, TGA, TIFF), for make_pictures.py."""

import struct

import numpy as np
from picture_parts import ALPHA, GREY, HEIGHT, IMAGE, RGB, RGBA, WIDTH, encode, packed, picture, xmp_block


# ---------------------------------------------------------------- BMP and ICO


def bmp(size, bits, rows, palette=b"", compression=0, masks=b"", colours=0, height=HEIGHT, cut=0):
    """A BMP with a header of `size` bytes around rows as stored."""
    if size == 12:
        header = struct.pack("<IHHHH", size, WIDTH, height, 1, bits)
    else:
        header = struct.pack("<IiiHHIIiiII", size, WIDTH, height, 1, bits, compression, len(rows), 0, 0, colours, 0)
    header += masks
    header += bytes(max(0, size - len(header)))
    offset = 14 + len(header) + len(palette)
    return (b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + header + palette + rows)[: -cut or None]


def dib_rows(array):
    """Bottom-up rows, padded to 4 bytes."""
    rows = array.reshape(array.shape[0], -1)[::-1]
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


def run_lengths(indices, bits):
    """RLE8 or RLE4 with runs, literals, a jump and ends of lines."""
    out = bytearray()
    for row in indices[::-1]:
        x = 0
        while x < len(row):
            same = 1
            while x + same < len(row) and row[x + same] == row[x]:
                same += 1
            if same >= 3 or len(row) - x < 4:
                out += bytes([same, row[x] if bits == 8 else row[x] * 17])
                x += same
            else:
                literal = row[x : x + 4 + (x % 2)][: len(row) - x]
                body = bytes(literal) if bits == 8 else packed(np.array([literal]), 4).tobytes()
                out += bytes([0, len(literal)]) + body + bytes(len(body) % 2)
                x += len(literal)
        out += b"\0\0"
    return bytes(out[:-2] + b"\0\1")


def palettes(bits, seed=2):
    table = np.random.default_rng(seed).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    return table.tobytes(), b"".join(row.tobytes() + b"\0" for row in table)


def bmps():
    bgr, bgrx = RGB[..., ::-1], np.dstack([RGB[..., ::-1], 255 - ALPHA])
    greys = bytes(range(256)).hex(" ").split()
    for bits in (1, 4, 8):
        indices = GREY >> (8 - bits)
        rows = dib_rows(packed(indices, bits))
        triples, quads = palettes(bits)
        yield f"core_{bits}", bmp(12, bits, rows, triples)
        for size in (40, 52, 56, 64, 108, 124):
            yield f"header{size}_{bits}", bmp(size, bits, rows, quads)
        yield f"few_colours_{bits}", bmp(40, bits, dib_rows(packed(indices % 2, bits)), palettes(1)[1], colours=2)
        if bits > 1:
            yield f"rle{bits}", bmp(40, bits, run_lengths(indices, bits), quads, compression=1 if bits == 8 else 2)
    yield "core_grey", bmp(12, 8, dib_rows(GREY), bytes.fromhex("".join(v * 3 for v in greys)))
    yield "core_24", bmp(12, 24, dib_rows(bgr))
    five = ((RGB >> 3).astype(np.uint16) << np.array([10, 5, 0], np.uint16)).sum(-1).astype("<u2")
    six = ((RGB >> np.array([3, 2, 3])).astype(np.uint16) << np.array([11, 5, 0], np.uint16)).sum(-1).astype("<u2")
    masks565 = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    for size in (40, 52, 56, 64, 108, 124):
        yield f"header{size}_24", bmp(size, 24, dib_rows(bgr))
        yield f"header{size}_32", bmp(size, 32, dib_rows(bgrx))
        yield f"header{size}_555", bmp(size, 16, dib_rows(five.view(np.uint8)))
        yield f"header{size}_565", bmp(size, 16, dib_rows(six.view(np.uint8)), compression=3, masks=masks565)
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)[: 12 if size < 56 else 16]
        yield f"header{size}_masks32", bmp(size, 32, dib_rows(bgrx), compression=3, masks=masks)
    swapped = struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    yield "rgba_masks", bmp(124, 32, dib_rows(np.dstack([RGB, ALPHA])), compression=3, masks=swapped)
    yield "top_down", bmp(40, 24, dib_rows(bgr[::-1]), height=-HEIGHT)
    yield "last_padding_missing", bmp(40, 24, dib_rows(bgr), cut=-3 * WIDTH % 4)


def icos():
    sizes = [(16, 16), (32, 32)]
    square = IMAGE.resize((32, 32))
    alpha = RGBA.resize((32, 32))
    for name, image in (("rgb", square), ("rgba", alpha), ("palette", square.quantize(16)), ("bits", square.convert("1"))):
        yield f"{name}_png", encode(image, "ICO", sizes=sizes)
        yield f"{name}_bmp", encode(image, "ICO", sizes=sizes, bitmap_format="bmp")
    for bits, width in ((1, 20), (4, 20), (8, 33), (24, 21), (32, 21)):
        values = np.array(picture(width, 18))
        mask = np.zeros((18, width), np.uint8)
        mask[3:9, 5:12] = 1
        if bits <= 8:
            rows = dib_rows(packed(values[..., 1] >> (8 - bits), bits))
        else:
            rows = dib_rows(values if bits == 24 else np.dstack([values, 255 * (1 - mask) - values[..., 0] // 2]))
        palette = palettes(bits)[1] if bits <= 8 else b""
        dib = struct.pack("<IiiHHIIiiII", 40, width, 36, 1, bits, 0, 0, 0, 0, 0, 0) + palette + rows + dib_rows(packed(mask, 1))
        entry = struct.pack("<BBBBHHII", width, 18, 0, 0, 1, bits, len(dib), 22)
        yield f"mask_{bits}", struct.pack("<HHH", 0, 1, 1) + entry + dib


# ---------------------------------------------------------------- PPM and TGA


def pnms():
    yield "p4", encode(IMAGE.convert("1"), "PPM")
    yield "p5", encode(IMAGE.convert("L"), "PPM")
    yield "p6", encode(IMAGE, "PPM")
    size = b"%d %d\n" % (WIDTH, HEIGHT)

    def plain(values):
        return b" ".join(b"%d" % value for value in values.ravel()) + b"\n"

    yield "p1", b"P1\n# a comment\n" + size + plain(GREY > 100)
    yield "p1_dense", b"P1 " + size + b"".join(b"%d" % value for value in (GREY > 100).ravel())
    yield "p2", b"P2\n" + size + b"255\n" + plain(GREY)
    yield "p2_few", b"P2\n" + size + b"6 # six\n" + plain(GREY // 40)
    yield "p3", b"P3\n" + size + b"255\n" + plain(RGB)
    yield "p3_comments", b"P3 #x\n" + size + b"# y\n255\n#z\n" + plain(RGB).replace(b"\n", b" # end\n")
    yield "p5_few", b"P5 " + size + b"100\n" + (GREY // 3).tobytes()
    yield "p6_few", b"P6 " + size + b"31 " + (RGB >> 3).tobytes()
    yield "p6_16", b"P6\n" + size + b"65535\n" + (RGB.astype(np.uint16) * 257).tobytes()
    yield "p6_10", b"P6\n" + size + b"1023\n" + (RGB.astype(np.uint16) * 4).astype(">u2").tobytes()


def tga(kind, depth, data, flags=0x20, palette=b"", map_depth=0, start=0, note=b""):
    count = len(palette) * 8 // map_depth if map_depth else 0
    return struct.pack("<BBBHHBHHHHBB", len(note), bool(map_depth), kind, start, count, map_depth, 0, 0, WIDTH, HEIGHT,
                       depth, flags) + note + palette + data


def tga_runs(array):
    pixels = array.reshape(WIDTH * HEIGHT, -1)
    out, at = bytearray(), 0
    for row in range(HEIGHT):
        end = (row + 1) * WIDTH
        while at < end:
            same = 1
            while at + same < end and (pixels[at + same] == pixels[at]).all():
                same += 1
            if same > 1:
                out += bytes([127 + same]) + pixels[at].tobytes()
            else:
                same = min(3, end - at)
                out += bytes([same - 1]) + pixels[at : at + same].tobytes()
            at += same
    return bytes(out)


def tgas():
    bgr, bgra = np.ascontiguousarray(RGB[..., ::-1]), np.dstack([RGB[..., ::-1], ALPHA])
    five = ((RGB >> 3).astype(np.uint16) << np.array([10, 5, 0], np.uint16)).sum(-1)
    five = (five | (ALPHA > 128).astype(np.uint16) << 15).astype("<u2").view(np.uint8).reshape(HEIGHT, WIDTH, 2)
    triples, _ = palettes(4)
    quads = np.random.default_rng(4).integers(0, 256, (16, 4), dtype=np.uint8).tobytes()
    indices = GREY >> 4
    kinds = {"grey8": (3, 8, GREY), "grey_alpha": (3, 16, np.dstack([GREY, ALPHA])), "rgb24": (2, 24, bgr),
             "rgba32": (2, 32, bgra), "rgb16": (2, 16, five)}
    for name, (kind, depth, array) in kinds.items():
        yield name, tga(kind, depth, array.tobytes())
        yield f"{name}_rle", tga(kind | 8, depth, tga_runs(array))
        for flags in (0, 0x10, 0x30):
            yield f"{name}_{flags:02x}", tga(kind, depth, array.tobytes(), flags)
    for map_depth, table in ((24, triples), (32, quads), (16, palettes(4)[0][:32])):
        for kind, data in ((1, indices.tobytes()), (9, tga_runs(indices))):
            yield f"palette{map_depth}_{kind}", tga(kind, 8, data, palette=table, map_depth=map_depth, note=b"hello")
    yield "palette_start", tga(1, 8, (indices + 5).tobytes(), palette=triples, map_depth=24, start=5)
    extension = bytearray(495)
    extension[0:2] = struct.pack("<H", 495)
    body = tga(2, 32, bgra.tobytes())
    yield "no_alpha_meant", body + bytes(extension) + struct.pack("<II", len(body), 0) + b"TRUEVISION-XFILE.\0"


# ---------------------------------------------------------------- TIFF


def tiff(samples, photometric, bits=8, extra=None, order="<", planar=1, tags=(), width=WIDTH, height=HEIGHT):
    """One strip (one a sample when planar) of an [H, W, C] array."""
    array = np.atleast_3d(samples)
    count = array.shape[2]
    if bits == 16:
        array = array.astype(order + "u2")
    strips = [array.tobytes()] if planar == 1 else [np.ascontiguousarray(array[..., c]).tobytes() for c in range(count)]
    if bits < 8:
        strips = [packed(array[..., 0], bits).tobytes()]
    entries, blob, at = {}, b"", 8
    offsets = []
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    entries[256], entries[257], entries[258], entries[259] = (3, [width]), (3, [height]), (3, [bits] * count), (3, [1])
    entries[262], entries[273], entries[277], entries[278] = (3, [photometric]), (4, offsets), (3, [count]), (3, [height])
    entries[279], entries[284] = (4, [len(strip) for strip in strips]), (3, [planar])
    if extra is not None:
        entries[338] = (3, extra)
    entries.update(tags)
    directory = at
    behind = directory + 2 + 12 * len(entries) + 4
    listing = struct.pack(order + "H", len(entries))
    for tag, (kind, values) in sorted(entries.items()):
        body = values if kind == 1 else struct.pack(order + {3: "H", 4: "I"}[kind] * len(values), *values)
        number = len(values)
        if len(body) > 4:
            listing += struct.pack(order + "HHII", tag, kind, number, behind + len(blob))
            blob += body + bytes(len(body) % 2)
        else:
            listing += struct.pack(order + "HHI", tag, kind, number) + body.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory)
    return start + b"".join(strips) + listing + bytes(4) + blob


def tiffs():
    def with_samples(*extra):
        return np.dstack([RGB, *extra])

    premultiplied = (RGB.astype(int) * ALPHA[..., None] // 255).astype(np.uint8)
    second = np.flip(ALPHA, 0)
    for order, label in (("<", "le"), (">", "be")):
        for bits in (8, 16):
            def deep(array):
                return array if bits == 8 else (array.astype(np.uint16) << 8) | (array.astype(np.uint16) * 7 & 0xFF)

            name = f"{bits}_{label}"
            for planar in (1, 2):
                place = f"{name}_{'planes' if planar == 2 else 'pixels'}"
                # Pillow reads 16-bit planes wrongly and refuses some of 8 bits.
                def like(case, needed=bits == 16):
                    return [f"{case}_{name}_pixels"] if planar == 2 and needed else []

                yield f"rgb_{place}", tiff(deep(RGB), 2, bits, order=order, planar=planar), *like("rgb")
                for extra in (None, 0, 1, 2):
                    array = deep(np.dstack([premultiplied if extra == 1 else RGB, ALPHA]))
                    data = tiff(array, 2, bits, None if extra is None else [extra], order, planar)
                    yield f"rgb_extra_{extra}_{place}", data, *like(f"rgb_extra_{extra}", bits == 16 or extra in (0, 1))
        yield f"grey_{label}", tiff(GREY, 1, order=order)
        yield f"white_is_zero_{label}", tiff(GREY, 0, order=order)
    for extra in (0, 2):
        yield f"grey_extra_{extra}", tiff(np.dstack([GREY, ALPHA]), 1, extra=[extra])
    for first in (0, 1, 2):
        colours = premultiplied if first == 1 else RGB
        yield f"five_samples_{first}", tiff(np.dstack([colours, ALPHA, second]), 2, extra=[first, 0])
        yield f"six_samples_{first}", tiff(np.dstack([colours, ALPHA, second, ALPHA]), 2, extra=[first, 0, 0])
    yield "rgba_corel", tiff(np.array(RGBA), 2, extra=[999])
    yield "la_pillow", encode(RGBA.convert("LA"), "TIFF")
    yield "cmyk", encode(IMAGE.convert("CMYK"), "TIFF"), 1  # libtiff rounds down
    for bits in (1, 2, 4):
        yield f"grey_{bits}", tiff(GREY >> (8 - bits), 1, bits)
    table = np.random.default_rng(3).integers(0, 256, (3, 256)) * 257
    yield "palette", tiff(GREY, 3, tags={320: (3, table.ravel().tolist())})
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield compression, encode(IMAGE, "TIFF", compression=compression), 4 if compression == "jpeg" else 0
    yield "rgba_lzw", encode(RGBA, "TIFF", compression="tiff_lzw")
    for orientation in range(10):
        yield f"orientation_{orientation}", tiff(RGB, 2, tags={274: (3, [orientation])})
    yield "xmp", tiff(RGB, 2, tags={700: (1, xmp_block(6))})
    yield "orientation_over_xmp", tiff(RGB, 2, tags={274: (3, [3]), 700: (1, xmp_block(6))})
