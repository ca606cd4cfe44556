"""Mammography and ultrasound: DICOM, PNG or JPEG, files or folders -> standardised pictures."""
