"""Source images -> the standardised cache; the only part of a client that reads DICOM.

    cases.csv, lesions.csv -> case.py: one case -> mammography.py  CC, MLO -> (4, S, S)
                                                   ultrasound.py   B-mode  -> (1, S, S)
                                                   mri.py          phases  -> (1, V, V, V)
                              run.py: all cases, in order -> her2_client.cache

How each modality is standardised, and where its rules come from, stands at the head of its
module. All arrays are float16 within [-5, 5]; pixels.py has the arithmetic. A new kind of source
(NIfTI, another collection's folder layout) is one more function that returns such an array or
raises ``ImageError`` with a reason.
"""

from __future__ import annotations

from her2_client.ingest.run import Progress, ingest
from her2_client.ingest.summary import IngestSummary, summary_table

__all__ = ["IngestSummary", "Progress", "ingest", "summary_table"]
