"""Write the samples in `examples/media/` again, byte for byte on the same library versions.

    python examples/make_samples.py                # the clip and the documents, drawn here
    python examples/make_samples.py --data DIR     # also the digit and the recordings

DIR holds `mnist5k/` and `speech_commands/`. The dataset samples were chosen from what the
embedded checkpoint was not trained on. Sources and licences: `examples/media/README.md`.
"""

import argparse
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

MEDIA = Path(__file__).parent / "media"

MNIST_INDEX = 1509  # a three, row of mnist_train.npz
RECORDING = "audio/seven_bfd26d6b_1.flac"
WORDS = [
    f"audio/{name}.flac"
    for name in ("left_bfd26d6b_0", "seven_bfd26d6b_1", "stop_bfd26d6b_0", "go_bfd26d6b_0")
]

CLIP_FPS = 8
CLIP_SECONDS = 2
CLIP_SIDE = 128  # pixels, width and height

TICKET_TEXT = "TOTAL 42.50"
TICKET_SIZE = (288, 72)  # points, width and height
TICKET_FONT_SIZE = 40  # points
BLUE = "0.1 0.25 0.85"  # of the drawing in the document of three pages; parts of red, green, blue


def write_clip(path: Path) -> None:
    """Draw a red square that moves to the right, and encode it as H.264."""
    num_frames = CLIP_FPS * CLIP_SECONDS
    square = 36  # pixels
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"crf": "18"})
        stream.width = stream.height = CLIP_SIDE
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            pixels = np.full((CLIP_SIDE, CLIP_SIDE, 3), 225, dtype=np.uint8)
            left = 6 + round(index * (CLIP_SIDE - square - 12) / (num_frames - 1))
            top = (CLIP_SIDE - square) // 2
            pixels[top : top + square, left : left + square] = (215, 35, 35)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_ticket(path: Path) -> None:
    """Write a one-page PDF with one printed line."""
    write_pdf(path, [line_page(TICKET_TEXT)])


def write_pages(path: Path) -> None:
    """Write a PDF of three pages: a printed line, a drawing, another printed line."""
    width, height = 144, 144  # points
    x, y, radius = width / 2, height / 2, 36
    bend = 0.5523 * radius  # of the four curves that make a circle
    curves = [
        (x + radius, y + bend, x + bend, y + radius, x, y + radius),
        (x - bend, y + radius, x - radius, y + bend, x - radius, y),
        (x - radius, y - bend, x - bend, y - radius, x, y - radius),
        (x + bend, y - radius, x + radius, y - bend, x + radius, y),
    ]
    drawn = " ".join(" ".join(f"{value:.1f}" for value in curve) + " c" for curve in curves)
    circle = f"{BLUE} rg {x + radius:.1f} {y:.1f} m {drawn} f"
    write_pdf(path, [line_page("MENU"), ((width, height), circle), line_page(TICKET_TEXT)])


def line_page(text: str) -> tuple[tuple[int, int], str]:
    """Size and content of a page with one line."""
    return TICKET_SIZE, f"BT /F1 {TICKET_FONT_SIZE} Tf 16 22 Td ({text}) Tj ET"


def write_pdf(path: Path, pages: list[tuple[tuple[int, int], str]]) -> None:
    """Write a PDF.

    Args:
        path: Where to.
        pages: Size in points and content stream of each page; its font is ``/F1``.
    """
    kids = " ".join(f"{3 + 2 * index} 0 R" for index in range(len(pages)))
    font = 3 + 2 * len(pages)
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
    ]
    for index, ((width, height), content) in enumerate(pages):
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] "
            f"/Contents {4 + 2 * index} 0 R /Resources << /Font << /F1 {font} 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    pdf, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(pdf))
        pdf += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    pdf += (
        f"xref\n0 {size}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(pdf)}\n%%EOF\n"
    )
    path.write_bytes(pdf.encode("ascii"))


def write_digit(path: Path, data: Path) -> None:
    """Enlarge one handwritten digit so that people can see it too."""
    with np.load(data / "mnist5k" / "mnist_train.npz") as arrays:
        picture = Image.fromarray(arrays["images"][MNIST_INDEX])
    picture.resize((140, 140), Image.Resampling.BICUBIC).save(path, optimize=True)


def write_recording(path: Path, data: Path) -> None:
    """Store one spoken digit as 16-bit WAV, 16 kHz."""
    samples, rate = soundfile.read(data / "speech_commands" / RECORDING, dtype="int16")
    soundfile.write(path, samples, rate, subtype="PCM_16")


def write_words(path: Path, data: Path) -> None:
    """Store words that were spoken one by one, a second each, as one recording."""
    words = [soundfile.read(data / "speech_commands" / name, dtype="int16") for name in WORDS]
    soundfile.write(path, np.concatenate([samples for samples, _ in words]), words[0][1])


def main() -> None:
    """Write all samples whose sources are at hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with mnist5k/ and speech_commands/")
    data = parser.parse_args().data
    MEDIA.mkdir(exist_ok=True)
    write_clip(MEDIA / "clip.mp4")
    write_ticket(MEDIA / "ticket.pdf")
    write_pages(MEDIA / "pages.pdf")
    if data is not None:
        write_digit(MEDIA / "digit.png", data)
        write_recording(MEDIA / "recording.wav", data)
        write_words(MEDIA / "words.flac", data)


if __name__ == "__main__":
    main()
