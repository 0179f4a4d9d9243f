"""Files that end before their own header says they do, found without decoding.

Decoders often read such a file up to the cut and report success; we refuse instead.
"""

import io

from omni.errors import CorruptMediaError
from omni.media.source import Source

MAX_BOXES = 1_000_000
UNKNOWN_SIZE = 0xFFFF_FFFF
STREAMED_WAV_BYTES = 0x7FFFF000  # writers to a pipe put this or more where the size is unknown
PDF_TAIL_BYTES = 65_536
MP3_HEADER_BYTES = 256  # the header lies behind at most 36 bytes of the first frame
OGG_TAIL_BYTES = 2 * 65_307  # the largest page, twice


def check_complete(source: Source) -> None:
    """Compare the sizes that a container announces with the bytes that are there.

    Raises:
        CorruptMediaError: if the file ends early; names both numbers.
    """
    with source.open() as file:
        end = _announced_end(file, source.num_bytes)
    if end > source.num_bytes:
        raise CorruptMediaError(
            f"{source.name}: found {source.num_bytes:,} bytes, expected at least {end:,}: the "
            "file ends early; copy or download it again"
        )


def _announced_end(file: io.BufferedIOBase, num_bytes: int) -> int:
    """Position where the file should end at the earliest; 0 if it does not say."""
    head = file.read(12)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return _mp4_end(file, num_bytes)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska_end(file)
    if head[:4] == b"RIFF":
        if head[8:12] == b"WAVE":
            return _wav_end(file, num_bytes)
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if 0 < size < UNKNOWN_SIZE else 0
    if head[:4] == b"FORM":
        return 8 + int.from_bytes(head[4:8], "big")
    if head[:4] == b".snd":
        size = int.from_bytes(head[8:12], "big")
        return int.from_bytes(head[4:8], "big") + size if size < UNKNOWN_SIZE else 0
    if head[:4] == b"OggS":
        return _ogg_end(file, num_bytes)
    if head[:4] == b"%PDF":
        return _pdf_end(file, num_bytes)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1] & 0xE0 == 0xE0):
        return _mp3_end(file, head)
    return 0


def _pdf_end(file: io.BufferedIOBase, num_bytes: int) -> int:
    """PDFium repairs a cut file to fewer pages without a word; every whole file has these marks."""
    file.seek(max(num_bytes - PDF_TAIL_BYTES, 0))
    tail = file.read()
    return 0 if b"%%EOF" in tail or b"startxref" in tail else num_bytes + 1


def _mp4_end(file: io.BufferedIOBase, num_bytes: int) -> int:
    """End of the last top-level box (ISO 14496-12, 4.2)."""
    offset = 0
    for _ in range(MAX_BOXES):
        file.seek(offset)
        header = file.read(16)
        if len(header) < 8 or not header[4:8].isascii():
            break
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # 0: up to the end of the file; else not a box
            break
        offset += size
        if offset > num_bytes:
            break
    return offset


def _matroska_end(file: io.BufferedIOBase) -> int:
    """End of the segment (RFC 8794); 0 if it has no known size."""
    file.seek(4)
    header = _ebml_size(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = _ebml_size(file)
    return 0 if size is None else file.tell() + size


def _ebml_size(file: io.BufferedIOBase) -> int | None:
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(first + rest, "big") & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else value  # all ones: not known


def _wav_end(file: io.BufferedIOBase, num_bytes: int) -> int:
    """End of the samples; 0 if the writer did not know it."""
    offset = 12
    while offset + 8 <= num_bytes:
        file.seek(offset)
        header = file.read(8)
        size = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            return 0 if size >= STREAMED_WAV_BYTES else offset + 8 + size
        offset += 8 + size + size % 2
    return offset if offset > num_bytes else 0


def _ogg_end(file: io.BufferedIOBase, num_bytes: int) -> int:
    """End of the last page (RFC 3533, 6)."""
    start = max(num_bytes - OGG_TAIL_BYTES, 0)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 27 > len(tail):
        return num_bytes + 1 if page >= 0 else 0
    lacing = tail[page + 27 : page + 27 + tail[page + 26]]
    return start + page + 27 + tail[page + 26] + sum(lacing)


def _mp3_end(file: io.BufferedIOBase, head: bytes) -> int:
    """End of the stream by the Xing or Info header of its first frame; 0 without one."""
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum(
            (byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
        )
    file.seek(start)
    frame = file.read(MP3_HEADER_BYTES)
    header = max(frame.find(b"Xing"), frame.find(b"Info"))
    if header < 0 or len(frame) < header + 16 or not frame[header + 7] & 0b10:
        return 0
    has_frame_count = frame[header + 7] & 0b01
    offset = header + 8 + (4 if has_frame_count else 0)
    return start + int.from_bytes(frame[offset : offset + 4], "big")
