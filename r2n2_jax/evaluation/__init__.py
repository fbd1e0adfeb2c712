"""Judging a trained network: metrics, tables, figures, and the report they make up."""
