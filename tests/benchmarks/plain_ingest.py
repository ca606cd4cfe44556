"""The plain pipeline that the ingest is measured against: pydicom to read, MONAI to transform.

Written as a careful researcher would write it, without tricks: the same windows, sizes, lesion
crops and intensity rules as her2_client.ingest, out of MONAI's own transforms. MRI headers are read
once; pixels are decoded for the phase that is used, not for the others.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    Flip,
    NormalizeIntensity,
    Resize,
    ResizeWithPadOrCrop,
    Spacing,
    SpatialCrop,
    SpatialPad,
)
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

from her2_common.cases import Box, Case, Image

FIELD_MM = 64.0


def plain_case(
    case: Case, boxes: dict[tuple[str, Image], Box], size: int, volume: int
) -> dict[str, np.ndarray]:
    """The arrays of one case by modality, float16."""
    torch.set_num_threads(1)
    made: dict[str, np.ndarray] = {}
    for column, path in (("mg_cc", case.mg_cc), ("mg_mlo", case.mg_mlo)):
        if path is not None:
            made[column] = mammogram(path, boxes.get((case.case_id, column)), size)  # type: ignore[arg-type]
    if case.us:
        made["us"] = ultrasound(case.us[0], boxes.get((case.case_id, "us")), size)
    if case.mri:
        made["mri"] = dce_mri(case.mri[0], boxes.get((case.case_id, "mri")), volume)
    return made


def mammogram(path: Path, box: Box | None, size: int) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    picture = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    picture = picture.astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        picture = picture.max() + picture.min() - picture
    image = EnsureChannelFirst(channel_dim="no_channel")(torch.from_numpy(picture))
    if dataset.ImageLaterality == "R":
        image = Flip(spatial_axis=1)(image)
        if box is not None:
            columns = picture.shape[1]
            box = Box(columns - box.x1, box.y0, columns - box.x0, box.y1)
    side = max(picture.shape)
    whole = Compose(
        [
            SpatialPad((side, side), method="end"),
            Resize((size, size), mode="area"),
            NormalizeIntensity(nonzero=True),
        ]
    )(image)
    crop = whole
    if box is not None:
        crop = Compose([*around(box, 1.5, size), NormalizeIntensity(nonzero=True)])(image)
    return torch.cat([whole, crop]).clamp(-5, 5).numpy().astype(np.float16)


def around(box: Box, factor: float, size: int) -> list[Any]:
    side = int(factor * max(box.x1 - box.x0, box.y1 - box.y0))
    centre = ((box.y0 + box.y1) // 2, (box.x0 + box.x1) // 2)
    return [
        SpatialCrop(roi_center=centre, roi_size=(side, side)),
        ResizeWithPadOrCrop((side, side)),
        Resize((size, size), mode="area"),
    ]


def ultrasound(path: Path, box: Box | None, size: int) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    picture = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        picture = apply_color_lut(picture, dataset)
    picture = picture.astype(np.float32)
    if picture.ndim == 3:
        picture = picture @ np.float32([0.299, 0.587, 0.114])
    region = dataset.SequenceOfUltrasoundRegions[0]
    image = EnsureChannelFirst(channel_dim="no_channel")(torch.from_numpy(picture))
    rows = slice(region.RegionLocationMinY0, region.RegionLocationMaxY1 + 1)
    columns = slice(region.RegionLocationMinX0, region.RegionLocationMaxX1 + 1)
    image = SpatialCrop(roi_slices=[rows, columns])(image)
    if box is None:
        steps: list[Any] = [SpatialPad((max(image.shape),) * 2), Resize((size, size), mode="area")]
    else:
        moved = Box(
            box.x0 - columns.start, box.y0 - rows.start, box.x1 - columns.start, box.y1 - rows.start
        )
        steps = around(moved, 2.0, size)
    return Compose([*steps, NormalizeIntensity()])(image).clamp(-5, 5).numpy().astype(np.float16)


def dce_mri(folder: Path, box: Box | None, size: int) -> np.ndarray:
    phases = defaultdict(list)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        when = dataset.get("TemporalPositionIdentifier") or dataset.get("TriggerTime")
        phases[float(when or dataset.AcquisitionTime)].append(dataset)
    chosen = phases[sorted(phases)[1]]
    row, column = np.reshape(chosen[0].ImageOrientationPatient, (2, 3)).astype(float)
    normal = np.cross(row, column)
    chosen.sort(key=lambda one: float(np.dot(normal, one.ImagePositionPatient)))
    stack = np.stack([one.pixel_array * float(one.RescaleSlope) for one in chosen])
    heights = [float(np.dot(normal, one.ImagePositionPatient)) for one in chosen[:2]]
    millimetres = (heights[1] - heights[0], *map(float, chosen[0].PixelSpacing))
    volume = MetaTensor(
        torch.from_numpy(stack.astype(np.float32))[None],
        affine=torch.diag(torch.tensor([*millimetres, 1.0])),
    )
    spacing = FIELD_MM / size
    volume = Spacing(pixdim=(spacing,) * 3, mode="bilinear")(volume)
    if box is not None and box.z0 is not None and box.z1 is not None:
        low, high = (box.z0, box.y0, box.x0), (box.z1, box.y1, box.x1)
        centre = [
            int((a + b) / 2 * mm / spacing) for a, b, mm in zip(low, high, millimetres, strict=True)
        ]
        volume = SpatialCrop(roi_center=centre, roi_size=(size,) * 3)(volume)
        volume = ResizeWithPadOrCrop((size,) * 3)(volume)
    else:
        volume = Resize((size,) * 3, mode="area")(volume)
    values = volume.numpy()
    reference = float(np.median(values[values > values.mean()]))
    return np.clip((values / reference - 1) / 0.5, -5, 5).astype(np.float16)
