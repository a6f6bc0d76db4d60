"""The page of a comparison: its tables, sections and pictures, from results that are there."""
