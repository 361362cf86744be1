"""Make the binary files in ``assets`` that corpus cases read; they are committed.

Run it from anywhere: ``python tests/corpus/make_assets.py``. It needs Pillow. Text files in ``assets`` are written by
hand. A new picture or document needs new expected files: ``python -m tests.corpus.cases``.
"""

from __future__ import annotations

import io
import math
import struct
import wave
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw

ASSETS = Path(__file__).parent / "assets"
_STAMP = (2024, 1, 1, 0, 0, 0)  # so that the same content is the same zip file


def picture(width: int = 12, height: int = 8) -> Image.Image:
    """A red rectangle on white, with one blue corner, so that a turn or a mirror would show."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((2, 2, width - 3, height - 3), fill="red")
    draw.point((0, 0), fill="blue")
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the file that Pillow writes for the image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tone() -> bytes:
    """A WAV file of 10 ms of 440 Hz, mono, 8 kHz, 16 bit."""
    samples = [int(12000 * math.sin(2 * math.pi * 440 * i / 8000)) for i in range(80)]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return buffer.getvalue()


def mp3() -> bytes:
    """An ID3 tag and one silent MPEG-1 layer III frame: 128 kbit/s at 44.1 kHz are 417 bytes."""
    return b"ID3\x03\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x64" + bytes(413)


def pdf(pages: list[list[str]]) -> bytes:
    """A PDF with one page for each list of lines, in Helvetica, which each reader has."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        content = f"BT /F1 12 Tf 16 TL 40 160 Td {shown} ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


def archive(files: dict[str, str | bytes]) -> bytes:
    """A zip file with fixed times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _STAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, content)
    return buffer.getvalue()


_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def relations(*targets: tuple[str, str]) -> str:
    """A package's relations file; targets are pairs of kind and path."""
    lines = (
        f'<Relationship Id="rId{i}" Type="{_OFFICE}/{kind}" Target="{path}"/>'
        for i, (kind, path) in enumerate(targets, 1)
    )
    return f'{_XML}<Relationships xmlns="{_PACKAGE}/relationships">{"".join(lines)}</Relationships>'


def contents(*overrides: tuple[str, str]) -> str:
    """A package's content types; overrides are pairs of path and type."""
    lines = "".join(f'<Override PartName="{path}" ContentType="{kind}"/>' for path, kind in overrides)
    return (
        f'{_XML}<Types xmlns="{_PACKAGE}/content-types"><Default Extension="xml" ContentType="application/xml"/>'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="png" ContentType="image/png"/>{lines}</Types>'
    )


def run(text: str, properties: str = "") -> str:
    """One run of a Word document."""
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{escape(text)}</w:t></w:r>'


def paragraph(body: str, properties: str = "") -> str:
    """One paragraph of a Word document."""
    return f"<w:p><w:pPr>{properties}</w:pPr>{body}</w:p>"


def docx() -> bytes:
    """A Word document with a heading, formats, a list, a table and an inline picture."""
    numbered = '<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    drawn = (
        '<w:r><w:drawing><wp:inline><wp:extent cx="120000" cy="80000"/><wp:docPr id="1" name="P" descr="a red box"/>'
        '<a:graphic><a:graphicData uri="http://schemas.openxmlformats.org/drawingml/2006/picture"><pic:pic>'
        '<pic:blipFill><a:blip r:embed="rId3"/></pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline>'
        "</w:drawing></w:r>"
    )
    rows = "".join(
        "<w:tr>" + "".join(f"<w:tc>{paragraph(run(cell))}</w:tc>" for cell in row) + "</w:tr>"
        for row in (["Name", "Score"], ["Ada", "9.5"], ["Grace", "9"])
    )
    body = "".join(
        [
            paragraph(run("Quarterly report"), '<w:pStyle w:val="Heading1"/>'),
            paragraph(run("Sales rose by ") + run("seven", "<w:b/>") + run(" percent, ") + run("nearly", "<w:i/>")),
            paragraph(run("first point"), numbered),
            paragraph(run("second point & more"), numbered),
            f"<w:tbl>{rows}</w:tbl>",
            paragraph(run("Picture: ") + drawn + run(" done.")),
        ]
    )
    spaces = (
        f'xmlns:w="{_WORD}" xmlns:r="{_OFFICE}" '
        'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
        'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
        'xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"'
    )
    styles = (
        f'{_XML}<w:styles xmlns:w="{_WORD}"><w:style w:type="paragraph" w:styleId="Heading1">'
        '<w:name w:val="heading 1"/></w:style></w:styles>'
    )
    numbering = (
        f'{_XML}<w:numbering xmlns:w="{_WORD}"><w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0">'
        '<w:numFmt w:val="bullet"/></w:lvl></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
        "</w:numbering>"
    )
    word = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    return archive(
        {
            "[Content_Types].xml": contents(("/word/document.xml", f"{word}.document.main+xml")),
            "_rels/.rels": relations(("officeDocument", "word/document.xml")),
            "word/_rels/document.xml.rels": relations(
                ("styles", "styles.xml"), ("numbering", "numbering.xml"), ("image", "media/image1.png")
            ),
            "word/document.xml": f"{_XML}<w:document {spaces}><w:body>{body}</w:body></w:document>",
            "word/styles.xml": styles,
            "word/numbering.xml": numbering,
            "word/media/image1.png": encoded(picture(), "PNG"),
        }
    )


def xlsx(rows: list[list[str | float]]) -> bytes:
    """A workbook with one sheet; text stands inline."""

    def cell(value: str | float) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    return archive(
        {
            "[Content_Types].xml": contents(
                ("/xl/workbook.xml", f"{kind}.sheet.main+xml"), ("/xl/worksheets/sheet1.xml", f"{kind}.worksheet+xml")
            ),
            "_rels/.rels": relations(("officeDocument", "xl/workbook.xml")),
            "xl/_rels/workbook.xml.rels": relations(("worksheet", "worksheets/sheet1.xml")),
            "xl/workbook.xml": (
                f'{_XML}<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}"><sheets>'
                '<sheet name="Staff" sheetId="1" r:id="rId1"/></sheets></workbook>'
            ),
            "xl/worksheets/sheet1.xml": f'{_XML}<worksheet xmlns="{_SHEET}"><sheetData>{body}</sheetData></worksheet>',
        }
    )


def main() -> None:
    """Write all files."""
    ASSETS.mkdir(exist_ok=True)
    staff: list[list[str | float]] = [["name", "age", "city"], ["Ada", 36, "London"], ["Grace", 85, "New York"]]
    files = {
        "box.png": encoded(picture(), "PNG"),
        "box.jpg": encoded(picture(16, 16), "JPEG", quality=90),
        "box.gif": encoded(picture(), "GIF"),
        "box.webp": encoded(picture(), "WEBP", lossless=True),
        "wide.png": encoded(picture(64, 16), "PNG"),
        "tone.wav": tone(),
        "silence.mp3": mp3(),
        "report.pdf": pdf([["First page", "of the report"], ["Second page: 42 percent"], ["Third and last"]]),
        "report.docx": docx(),
        "staff.xlsx": xlsx(staff),
    }
    for name, content in files.items():
        (ASSETS / name).write_bytes(content)


if __name__ == "__main__":
    main()
