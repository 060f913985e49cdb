"""What a file is, by its first bytes."""

from __future__ import annotations

import re

_HEAD = 1024  # bytes looked at
_BOM = rb"(\xef\xbb\xbf)?\s*"
_COMMENTS = rb"(?:(?><!--.*?-->)\s*)*+"  # atomic: a page of comments can be cut in a great many ways
PICTURES = {  # Pillow's name → how such a file begins
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6f]\s",
    "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1).{4,64}?avi[fs])",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
}
_OTHERS = {  # what people hand in by mistake, first match wins
    "a HEIC picture": rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "a JPEG XL picture": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "an SVG drawing": _BOM + rb"(<\?xml.*?\?>\s*)?" + _COMMENTS + rb"(<!doctype svg|<svg)",
    "an HTML page": _BOM + _COMMENTS + rb"<(!doctype html|html|head|body)",
    "an XML document": _BOM + rb"<\?xml",
    "JSON text": _BOM + rb"[{\[]",
    "a PDF document": rb"%PDF-",
    "a PostScript file": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a Photoshop picture": rb"8BPS",
    "a Windows icon": rb"\0\0[\1\2]\0",
    "a ZIP archive or office document": rb"PK\x03\x04",
    "a gzip archive": rb"\x1f\x8b",
    "a GGUF model": rb"GGUF",
    "audio (M4A)": rb"....ftypM4A",
    "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "audio (WAV)": rb"RIFF....WAVE",
    "audio (MP3)": rb"ID3",
    "audio (Ogg)": rb"OggS",
    "audio (FLAC)": rb"fLaC",
}


def picture(data: bytes) -> str | None:
    """Pillow's name of a picture's format; None for what is none that is read here."""
    return next((kind for kind, begins in PICTURES.items() if re.match(begins, data[:_HEAD], re.DOTALL)), None)


def recognise(data: bytes) -> str | None:
    """What a file is, in words; None where that is not known."""
    if kind := picture(data):
        return f"a {kind} picture"
    head = data[:_HEAD]
    return next((what for what, begins in _OTHERS.items() if re.match(begins, head, re.DOTALL | re.IGNORECASE)), None)
