"""The coordinator: rounds, aggregation, checkpoints, evaluation and the report."""
