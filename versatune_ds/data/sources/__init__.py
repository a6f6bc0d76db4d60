"""Find the files of a recipe's domains, and read their records in every format."""
