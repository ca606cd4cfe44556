"""What an ingest found, as a verdict, a page for the centre, and counts that may leave it."""
