"""The public centre: Duke-Breast-Cancer-MRI (doi.org/10.7937/TCIA.e3sv-re93) -> the site's tables.

the download -> sheets.py  Clinical_and_Other_Features, Annotation_Boxes: codes and faults
                series.py  image folders of either layout: which are the dynamic phases
                build.py   both -> cases.csv, lesions.csv
                summary.py counts, to be held against the sheets
"""

from __future__ import annotations

from her2_client.ingest.duke.build import build_duke
from her2_client.ingest.duke.summary import DukeSummary, duke_table

__all__ = ["DukeSummary", "build_duke", "duke_table"]
