"""Which kind of media bytes are, by their content; names and extensions are not looked at."""

import re
from typing import Literal

MediaKind = Literal["image", "video", "audio", "document"]
Family = Literal["image", "tiff", "pdf", "audio", "container"]

# (family, shown name, offset, signature)
SIGNATURES: tuple[tuple[Family, str, int, bytes], ...] = (
    ("image", "JPEG", 0, b"\xff\xd8\xff"),
    ("image", "PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("image", "GIF", 0, b"GIF87a"),
    ("image", "GIF", 0, b"GIF89a"),
    ("image", "BMP", 0, b"BM"),
    ("image", "AVIF", 4, b"ftypavif"),
    ("image", "AVIF", 4, b"ftypavis"),
    ("image", "JPEG 2000", 0, b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    ("image", "JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("tiff", "TIFF", 0, b"II*\x00"),
    ("tiff", "TIFF", 0, b"MM\x00*"),
    ("tiff", "TIFF", 0, b"II+\x00"),
    ("tiff", "TIFF", 0, b"MM\x00+"),
    ("audio", "FLAC", 0, b"fLaC"),
    ("audio", "MP3", 0, b"ID3"),
    ("audio", "AU", 0, b".snd"),
    ("audio", "CAF", 0, b"caff"),
    ("audio", "AMR", 0, b"#!AMR"),
    ("container", "MP4", 4, b"ftyp"),
    ("container", "QuickTime", 4, b"moov"),
    ("container", "QuickTime", 4, b"mdat"),
    ("container", "QuickTime", 4, b"wide"),
    ("container", "QuickTime", 4, b"free"),
    ("container", "Matroska/WebM", 0, b"\x1aE\xdf\xa3"),
    ("container", "Ogg", 0, b"OggS"),
    ("container", "FLV", 0, b"FLV\x01"),
    ("container", "ASF/WMV", 0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    ("container", "MPEG-PS", 0, b"\x00\x00\x01\xba"),
    ("container", "MPEG video", 0, b"\x00\x00\x01\xb3"),
    ("container", "H.264/H.265", 0, b"\x00\x00\x00\x01"),
    ("container", "IVF", 0, b"DKIF"),
)

# Containers named by bytes 8 to 12, behind one of these signatures.
RIFF_SIGNATURES = (b"RIFF", b"RF64", b"FORM")
RIFF_CONTENTS: dict[bytes, tuple[Family, str]] = {
    b"WEBP": ("image", "WebP"),
    b"WAVE": ("audio", "WAV"),
    b"AIFF": ("audio", "AIFF"),
    b"AIFC": ("audio", "AIFF"),
    b"AVI ": ("container", "AVI"),
}

# Common files which are not media, each with what to do instead.
NOT_MEDIA: tuple[tuple[bytes, str], ...] = (
    (
        b"PK\x03\x04",
        "a ZIP archive or an Office document; unpack it, or export the document as PDF",
    ),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Office document; export it as PDF"),
    (b"%!PS", "a PostScript file; convert it to PDF"),
    (b"\x7fELF", "a program"),
    (b"{\\rtf", "an RTF document; export it as PDF"),
)
HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")
PDF_SEARCH_BYTES = 1_024  # readers allow some bytes before "%PDF-"
TS_PACKET_BYTES = 188
TEXT_BYTES = frozenset(range(32, 127)) | {9, 10, 12, 13} | frozenset(range(128, 256))


def detect_family(head: bytes) -> tuple[Family, str] | None:
    """Name the family of formats and the format; None if the signature is unknown."""
    if head[4:12] in HEIF_BRANDS:  # an MP4 to FFmpeg, but no decoder of ours reads it
        return None
    if head.startswith(RIFF_SIGNATURES):
        return RIFF_CONTENTS.get(head[8:12])
    for family, name, offset, signature in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return family, name
    if b"%PDF-" in head[:PDF_SEARCH_BYTES]:
        return "pdf", "PDF"
    if len(head) > 2 * TS_PACKET_BYTES and head[0] == head[188] == head[376] == 0x47:
        return "container", "MPEG-TS"
    if re.match(rb"\xff[\xf0\xf1\xf8\xf9]", head):
        return "container", "AAC"
    if re.match(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]", head):
        return "audio", "MP3"
    if re.match(rb"P[1-6]\s", head):
        return "image", "PNM"
    return None


def describe_unknown(head: bytes) -> str:
    """Say what bytes without a known signature look like, and what to do with them."""
    for signature, description in NOT_MEDIA:
        if head.startswith(signature):
            return description
    if head[4:12] in HEIF_BRANDS:
        return "a HEIF picture; save it as JPEG or PNG"
    start = head[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps an error page saved in place of the file; download it again"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in head):
        return "an SVG drawing; export it as PNG or PDF"
    if set(head) <= TEXT_BYTES:
        return "text; put it into the question, or export it as PDF"
    return f"bytes without a known signature (first bytes: {head[:8].hex(' ')})"
