"""DCE-MRI: DICOM series, enhanced files or NIfTI -> cubes of the phases asked for.

dce.py        the way through, and how intensities are standardised
  scan.py     files of a folder -> slices; what is no dynamic series is set aside
    headers.py, enhanced.py   one file's slices
    kinds.py  the words of ImageType and SeriesDescription
  series.py   slices -> the one dynamic series
    examination.py  one patient's one examination, and no phase beside it
  phases.py   its phases, in order and complete
  scaling.py   stored values -> comparable ones
  nifti.py    the same from NIfTI
  enhancement.py  whether contrast has arrived
  volume.py   axes, field of view, sampling; plain arrays, no DICOM
"""
