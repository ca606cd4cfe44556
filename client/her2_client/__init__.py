"""A hospital: ingest, cache, local training, policy and the site executor."""
