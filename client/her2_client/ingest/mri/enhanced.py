"""Enhanced (multi-frame) MR: one ``Slice`` a frame, from its functional groups.

What holds for all frames stands in SharedFunctionalGroupsSequence, what differs in
PerFrameFunctionalGroupsSequence (DICOM PS3.3 C.7.6.16 and C.8.13). Phases are told apart by
TemporalPositionIndex, by the temporal dimension of DimensionIndexValues, by
TemporalPositionTimeOffset, or by the time of each frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from her2_client.ingest import dicom
from her2_client.ingest.dicom import Moment
from her2_client.ingest.mri.headers import (
    PROTOCOL,
    Header,
    Slice,
    check_geometry,
    is_original,
    series_of,
)
from her2_client.ingest.mri.kinds import (
    ANOTHER,
    is_another_sequence,
    is_motion_corrected,
    kind,
)
from her2_client.ingest.mri.scaling import frame_scale_slope
from her2_common.errors import ImageError

TEMPORAL_INDEX: Final = (Tag("TemporalPositionIndex"), Tag("TemporalPositionTimeOffset"))


def frames_of(path: Path) -> tuple[list[Slice], dict[str, int]]:
    """(slices, frames of other kinds by reason) of the enhanced file at ``path``.

    Raises:
        ImageError: no functional groups or no geometry in them, damaged.
    """
    with dicom.reading():
        dataset = dicom.header(path)
        count = dicom.frames(dataset)
        if "PerFrameFunctionalGroupsSequence" not in dataset:
            raise ImageError(
                f"expected functional groups for {count} frames, got none", reason="no geometry"
            )
        per_frame = dataset.PerFrameFunctionalGroupsSequence
        if len(per_frame) != count:
            raise ImageError(
                f"expected functional groups for {count} frames, got {len(per_frame)}",
                reason="damaged",
            )
        shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
        temporal = _temporal_dimension(dataset)
        slices, others = [], dict[str, int]()
        for number, groups in enumerate(per_frame):
            found = _Groups(shared[0], groups)
            image_type = _strings(
                found.value("MRImageFrameTypeSequence", "FrameType") or dataset.get("ImageType")
            )
            reason = kind(image_type, str(dataset.get("SeriesDescription", "")))
            if reason is None and _is_another_sequence(dataset, found):
                reason = ANOTHER
            if reason is not None:
                others[reason] = others.get(reason, 0) + 1
                continue
            slices.append(_slice(path, dataset, found, number, temporal, image_type))
    return slices, others


class _Groups:
    """The functional groups of one frame; what it has not, all frames share."""

    def __init__(self, shared: Dataset, own: Dataset) -> None:
        self.shared, self.own = shared, own

    def value(self, sequence: str, keyword: str) -> Any:
        for groups in (self.own, self.shared):
            items = groups.get(sequence)
            if items and items[0].get(keyword) not in (None, ""):
                return items[0].get(keyword)
        return None


def _slice(
    path: Path,
    dataset: Dataset,
    found: _Groups,
    number: int,
    temporal: int | None,
    image_type: tuple[str, ...],
) -> Slice:
    spacing = _floats(found.value("PixelMeasuresSequence", "PixelSpacing"), 2, "PixelSpacing")
    directions = _floats(
        found.value("PlaneOrientationSequence", "ImageOrientationPatient"),
        6,
        "ImageOrientationPatient",
    )
    position = _floats(
        found.value("PlanePositionSequence", "ImagePositionPatient"), 3, "ImagePositionPatient"
    )
    check_geometry(spacing, directions, position)
    transformed = "PixelValueTransformationSequence"
    slope = found.value(transformed, "RescaleSlope")
    intercept = found.value(transformed, "RescaleIntercept")
    return Slice(
        path=path,
        series=series_of(path, _plain(dataset)),
        size=(int(dataset.Rows), int(dataset.Columns)),
        spacing=(spacing[0], spacing[1]),
        directions=directions,
        position=position,
        when=_when(found, temporal),
        protocol=_protocol(found),
        description=str(dataset.get("SeriesDescription", "")),
        original=is_original(image_type),
        burned_in=str(dataset.get("BurnedInAnnotation", "")).upper() == "YES",
        manufacturer=str(dataset.get("Manufacturer", "")),
        study=(str(dataset.get("StudyInstanceUID", "")), str(dataset.get("StudyDate", ""))),
        b_value=float(found.value("MRDiffusionSequence", "DiffusionBValue") or 0),
        moved=is_motion_corrected(image_type, [str(dataset.get("SeriesDescription", ""))]),
        frame=number,
        rescale=(
            1.0 if slope is None else float(slope),
            0.0 if intercept is None else float(intercept),
        ),
        scale=frame_scale_slope(found.own),
    )


def _plain(dataset: Dataset) -> Header:
    keywords = ("SeriesInstanceUID", "SeriesNumber")
    return {keyword: (text,) for keyword in keywords if (text := dicom.said(dataset, keyword))}


def _is_another_sequence(dataset: Dataset, found: _Groups) -> bool:
    echo_time = found.value("MREchoSequence", "EffectiveEchoTime")
    planar = str(dataset.get("EchoPlanarPulseSequence", "")).upper() == "YES"
    return is_another_sequence(
        ["EP"] if planar else [],
        str(dataset.get("PulseSequenceName", "")),
        None if echo_time is None else float(echo_time),
    )


def _when(found: _Groups, temporal: int | None) -> tuple[Moment | None, ...]:
    """In the order of ``PHASE_KEYS``."""
    content = "FrameContentSequence"
    index = found.value(content, "TemporalPositionIndex")
    if index is None and temporal is not None:
        values = found.value(content, "DimensionIndexValues")
        listed = [values] if isinstance(values, int) else list(values or [])
        index = listed[temporal] if temporal < len(listed) else None
    acquisition = found.value(content, "FrameAcquisitionNumber")
    offset = found.value("TemporalPositionSequence", "TemporalPositionTimeOffset")
    return (
        None if index is None else ("", float(index)),
        None if offset is None or not np.isfinite(float(offset)) else ("", float(offset)),
        dicom.moment_of(str(found.value(content, "FrameAcquisitionDateTime") or "")),
        None,
        dicom.moment_of(str(found.value(content, "FrameReferenceDateTime") or "")),
        None if acquisition is None else ("", float(acquisition)),
    )


def _protocol(found: _Groups) -> tuple[float | None, ...]:
    values = {
        "RepetitionTime": found.value("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
        "EchoTime": found.value("MREchoSequence", "EffectiveEchoTime"),
        "FlipAngle": found.value("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    }
    return tuple(None if values[k] is None else float(values[k]) for k in PROTOCOL)


def _temporal_dimension(dataset: Dataset) -> int | None:
    """Which of DimensionIndexValues counts time."""
    for place, item in enumerate(dataset.get("DimensionIndexSequence") or []):
        if item.get("DimensionIndexPointer") in TEMPORAL_INDEX:
            return place
    return None


def _floats(value: Any, count: int, keyword: str) -> tuple[float, ...]:
    values = tuple(float(v) for v in (value if value is not None else ()))
    if len(values) != count or not all(abs(v) < float("inf") for v in values):
        raise ImageError(
            f"expected {keyword} with {count} finite values, got {len(values)}",
            reason="no geometry",
        )
    return values


def _strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value)
