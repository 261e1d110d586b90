"""What the pictures of make_pictures.py are made of."""

import pathlib
import struct
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "image"))
from make_images import encode, picture, with_alpha  # noqa: E402

WIDTH, HEIGHT = 37, 22
IMAGE = picture(WIDTH, HEIGHT)
RGB = np.array(IMAGE)
GREY = np.array(IMAGE.convert("L"))
ALPHA = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
RGBA = with_alpha(IMAGE)
XMP = b'<x:xmpmeta><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" %s</x:xmpmeta>'



def exif_block(orientation, order="<", value_type=3):
    """A TIFF block with one tag."""
    value = struct.pack(order + {1: "B3x", 3: "HH", 4: "I"}[value_type], *([orientation, 0] if value_type == 3 else [orientation]))
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IHHHI", 8, 1, 0x0112, value_type, 1) + value + bytes(4)


def xmp_block(orientation, element=False):
    return XMP % (b"><tiff:Orientation>%d</tiff:Orientation></rdf:Description>" % orientation if element
                  else b'tiff:Orientation="%d"/>' % orientation)


def packed(values, bits):
    """Rows of values of less than 8 bits, the first in the highest bits."""
    bit_planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(bit_planes.reshape(values.shape[0], -1), axis=1)
