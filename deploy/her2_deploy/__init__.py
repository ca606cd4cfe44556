"""Provisioning, the synthetic cohort and the demo federation on one machine."""
