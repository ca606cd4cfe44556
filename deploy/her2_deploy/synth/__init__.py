"""A synthetic cohort of four centres: genuine DICOM, case tables, and the truth kept apart."""
