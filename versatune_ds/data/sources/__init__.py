"""From the recipe's words to records: find files, read every format, report what was skipped."""
