"""Comparisons of runs: settings that differ, figures, curves and pictures, as a page, CSV and JSON. No torch."""
