"""Small files that claim or unfold to gigabytes: refused soon and with little memory.

One process with a limit on its memory ingests a site of them.
"""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from tests.client.ingest.conftest import Dicoms, breast, echo

DICOMS = Dicoms()
MEMORY = 4 << 30
"""Bytes of address space; the libraries alone take a good part of it."""
PEAK = 600 << 20
"""Bytes that the process may ever have held at once."""
SECONDS = 120.0

PROGRAM = """
    import json, resource, sys
    from pathlib import Path

    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))

    from her2_client.ingest.run import ingest
    from her2_common.config import SiteConfig, load

    summary = ingest(load(SiteConfig, Path(sys.argv[1])), workers=1)
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held, too
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    notes = {note.row: [note.note.reason, note.note.message] for note in summary.notes}
    print(json.dumps({"notes": notes, "peak": peak, "accepted": summary.accepted}))
"""


def before_pixels(path: Path, element: bytes) -> Path:
    """``element`` put before SamplesPerPixel."""
    content = path.read_bytes()
    place = content.index(b"\x28\x00\x02\x00US")
    path.write_bytes(content[:place] + element + content[place:])
    return path


def claimed_png(at: Path) -> Path:
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    body = b""
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")):
        body += struct.pack(">I", len(content)) + kind + content
        body += struct.pack(">I", zlib.crc32(kind + content))
    (at / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return at / "x.png"


def whole_png(at: Path) -> Path:
    Image.new("L", (16000, 16000)).save(at / "y.png")
    return at / "y.png"


def codestream(at: Path) -> Path:
    """Header and codestream agree on 60,000 x 60,000 pixels."""
    path = DICOMS.us(at / "j2k.dcm", echo())
    dataset = pydicom.dcmread(path)
    dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    claimed = frame.replace(struct.pack(">II", 72, 64), struct.pack(">II", 60000, 60000))
    assert claimed != frame
    dataset.PixelData = encapsulate([claimed])
    dataset.Rows = dataset.Columns = 60000
    dataset.save_as(path)
    return path


def deflated(at: Path) -> Path:
    """More than a gigabyte of zeros."""
    path = DICOMS.us(at / "deflated.dcm", echo())
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(1 << 24)
    with path.open("wb") as stream:
        stream.write(content[:start])
        for _ in range(72):
            stream.write(packer.compress(block))
        stream.write(packer.flush())
    return path


def packed_nifti(at: Path) -> Path:
    """A header that is sound but for its size, and zeros."""
    header = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4)).to_bytes())
    header[40:56] = struct.pack("<8h", 4, 2000, 2000, 2000, 2, 1, 1, 1)
    with gzip.open(at / "x.nii.gz", "wb") as stream:
        stream.write(header[:352] + bytes(1 << 22))
    return at / "x.nii.gz"


def nested(at: Path) -> Path:
    """Sequences within sequences, without an end."""
    start = struct.pack("<HH2sHI", 0x0018, 0x6011, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return before_pixels(DICOMS.us(at / "nested.dcm", echo()), (start + item) * 20_000)


def endless(at: Path) -> Path:
    """An element of one gigabyte."""
    element = struct.pack("<HH2sHI", 0x0020, 0x9999, b"UN", 0, 0x40000000)
    return before_pixels(DICOMS.us(at / "endless.dcm", echo()), element)


def loop(at: Path) -> Path:
    return DICOMS.us(at / "loop.dcm", echo(), NumberOfFrames=2_000_000_000)


def large(at: Path) -> Path:
    return DICOMS.mg(at / "large.dcm", breast(), Rows=65535, Columns=65535)


def many_slices(at: Path) -> Path:
    """An enhanced file whose frames are promised, not there."""
    path = DICOMS.enhanced(at / "enhanced.dcm", np.ones((2, 3, 8, 8)))
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 60000
    dataset.save_as(path)
    return path


BOMBS: dict[str, tuple[str, Any, str]] = {
    "claimed PNG": ("us", claimed_png, "too large"),
    "whole PNG": ("us", whole_png, "too large"),
    "codestream": ("us", codestream, "too large"),
    "deflated": ("us", deflated, "too large"),
    "nested": ("us", nested, "damaged"),
    "endless": ("us", endless, "truncated"),
    "loop": ("us", loop, "frame count"),
    "large": ("mg_cc", large, "too large"),
    "packed NIfTI": ("mri", packed_nifti, "too large"),
    "enhanced": ("mri", many_slices, "too large"),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is one of Linux")
def test_a_bomb_is_refused_within_little_memory(site: Any, tmp_path: Path) -> None:
    for column, make, _ in BOMBS.values():
        site.rows.append({"case_id": f"{len(site.rows)}", column: make(tmp_path)})
    site.add("sound")
    site.config()
    assert all(path.stat().st_size < 3 << 20 for path in tmp_path.glob("*.*"))
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    process = subprocess.run(
        [sys.executable, program, site.folder / "site.yaml", str(MEMORY)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    told = json.loads(process.stdout)
    assert [told["notes"][str(row)][0] for row in range(2, 2 + len(BOMBS))] == [
        reason for _, _, reason in BOMBS.values()
    ]
    assert told["accepted"] == 1
    assert told["peak"] < PEAK
